"""The document that every change which could cost the last administrator writes.

Two such changes at once each see the other's administrator still there, and a transaction alone
would let both pass (write skew). Writing one document makes them conflict: one runs again.
"""

from quartapp.database import Session as Tx
from quartapp.models.record import Record

ADMINISTRATORS = "administrators"


class Guard(Record):
    id: str  # type: ignore[assignment]
    changes: int = 0

    class Settings:
        name = "guards"


async def hold_administrators(tx: Tx) -> None:
    """Call it first in the transaction, before anything is counted."""
    await Guard.change({"_id": ADMINISTRATORS}, {"$inc": {"changes": 1}}, tx=tx)
