"""Locks: documents that transactions write so that two of them conflict.

Two transactions that each remove one of the last two administrators read the other administrator as
still there, and both would commit (write skew). As both write one document, MongoDB lets one commit
and the other run again. Likewise for invitations, whose number is limited.
"""

from quartapp.db.mongo import Tx
from quartapp.models.base.record import Record

ADMINISTRATORS = "administrators"
INVITATIONS = "invitations"


class WriteLock(Record):
    """One lock. `changes` counts the transactions that held it."""

    id: str  # type: ignore[assignment]
    changes: int = 0

    class Settings:
        name = "guards"


async def hold_administrators(tx: Tx) -> None:
    """Conflict with other transactions that hold it. Call it before counting administrators."""
    await WriteLock.change({"_id": ADMINISTRATORS}, {"$inc": {"changes": 1}}, tx=tx)


async def hold_invitations(tx: Tx) -> None:
    """Conflict with other transactions that hold it. Call it before counting invitations."""
    await WriteLock.change({"_id": INVITATIONS}, {"$inc": {"changes": 1}}, tx=tx)
