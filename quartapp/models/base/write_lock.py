"""Documents that are written by whatever must not be done by two at once.

Two changes which could each cost the last administrator see the other's administrator still there,
and a transaction alone would let both pass (write skew). Writing one document makes them conflict:
one runs again. Likewise for invitations, which are counted, and one for each address.
"""

from quartapp.db.mongo import Tx
from quartapp.models.base.record import Record

ADMINISTRATORS = "administrators"
INVITATIONS = "invitations"


class Guard(Record):
    id: str  # type: ignore[assignment]
    changes: int = 0

    class Settings:
        name = "guards"


async def hold_administrators(tx: Tx) -> None:
    """Call it first in the transaction, before anything is counted."""
    await Guard.change({"_id": ADMINISTRATORS}, {"$inc": {"changes": 1}}, tx=tx)


async def hold_invitations(tx: Tx) -> None:
    """Likewise."""
    await Guard.change({"_id": INVITATIONS}, {"$inc": {"changes": 1}}, tx=tx)
