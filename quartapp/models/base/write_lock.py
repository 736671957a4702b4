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
    """Increment the lock document of the administrators, so that other transactions that do so
    conflict.

    Call it in the transaction before counting administrators. Does not wait: of two transactions at
    once, MongoDB aborts one, and `transaction` runs it again. Without the document, which
    `models.prepare` inserts, it does nothing.
    """
    await WriteLock.change({"_id": ADMINISTRATORS}, {"$inc": {"changes": 1}}, tx=tx)


async def hold_invitations(tx: Tx) -> None:
    """Increment the lock document of the invitations, so that other transactions that do so
    conflict.

    Call it in the transaction before counting invitations. Does not wait: of two transactions at
    once, MongoDB aborts one, and `transaction` runs it again. Without the document, which
    `models.prepare` inserts, it does nothing.
    """
    await WriteLock.change({"_id": INVITATIONS}, {"$inc": {"changes": 1}}, tx=tx)
