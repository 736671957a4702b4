"""What checking a password costs: as much for everybody as for whoever has the costliest hash.

One document remembers the highest bcrypt cost that any hash here was made with. A name that nobody
has takes as long (P9), also when the setting is lower by now, or the hash came from elsewhere.
"""

from pymongo import ReturnDocument

from quartapp.models.base.record import Record
from quartapp.models.limits.counter import SWIFT

_ID = "passwords"


class Cost(Record):
    id: str  # type: ignore[assignment]
    highest: int

    class Settings:
        name = "costs"


async def highest(cost: int) -> int:
    """The highest cost so far, this one among them."""
    found = await (
        Cost.get_motor_collection()
        .with_options(write_concern=SWIFT)
        .find_one_and_update(
            {"_id": _ID},
            {"$max": {"highest": cost}},
            upsert=True,
            return_document=ReturnDocument.AFTER,
        )
    )
    return int(found["highest"])
