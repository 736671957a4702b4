"""The highest bcrypt cost of all stored password hashes.

A sign-in with a username that does not exist has to take as long as one with the costliest hash,
also if BCRYPT_COST is lower by now, or if the hash was imported. One document stores the highest
cost.
"""

from pymongo import ReturnDocument

from quartapp.models.base.record import Record
from quartapp.models.limits.counter import SWIFT

_ID = "passwords"


class Cost(Record):
    """The document with the highest cost."""

    id: str  # type: ignore[assignment]
    highest: int

    class Settings:
        name = "costs"


async def highest(cost: int) -> int:
    """Store this cost if it is higher than the stored one, and return the higher of both. Mostly
    only reads."""
    costs = Cost.get_motor_collection().with_options(write_concern=SWIFT)
    # Mostly it is stored already, and reading it costs less than a write that changes nothing.
    stored = await costs.find_one({"_id": _ID})
    if stored is None or stored["highest"] < cost:
        stored = await costs.find_one_and_update(
            {"_id": _ID},
            {"$max": {"highest": cost}},
            upsert=True,
            return_document=ReturnDocument.AFTER,
        )
    return int(stored["highest"])
