"""Counters that all workers share: a storage for the `limits` library."""

from datetime import datetime
from typing import Any

from limits.aio.storage import Storage
from pymongo import IndexModel, ReturnDocument, WriteConcern
from pymongo.errors import PyMongoError

from quartapp import clock
from quartapp.models.base.record import Record
from quartapp.models.base.tokens import digest_of

# Waiting for a majority at each handshake costs more than a count that a failover loses.
SWIFT = WriteConcern(w=1)


class Counter(Record):
    """One counter, under the digest of its key, until its window ends."""

    id: str  # type: ignore[assignment]
    times: int
    until: datetime

    class Settings:
        name = "allowances"
        indexes = [IndexModel([("until", 1)], name="kept", expireAfterSeconds=60)]


class CounterStorage(Storage):
    """Storage of the `limits` library over the application's connection.

    The library's own would open another client, with other timeouts, and use each worker's clock.
    """

    @property
    def base_exceptions(self) -> type[Exception]:
        """The exceptions that mean that the storage failed. Required by the `limits` library."""
        return PyMongoError

    async def incr(self, key: str, expiry: int, amount: int = 1) -> int:
        """Add `amount` to the counter of the key and return the new count.

        The first call for a key, and the first after its window has ended, start a window of
        `expiry` seconds with the count `amount`. Uses the clock of the database.
        """
        open_still = {"$gt": ["$until", "$$NOW"]}
        closes = {"$add": ["$$NOW", expiry * 1000]}
        found = await _collection().find_one_and_update(
            {"_id": digest_of(key)},
            [
                {
                    "$set": {
                        "times": {"$cond": [open_still, {"$add": ["$times", amount]}, amount]},
                        "until": {"$cond": [open_still, "$until", closes]},
                    }
                }
            ],
            upsert=True,
            return_document=ReturnDocument.AFTER,
        )
        return int(found["times"])

    async def get(self, key: str) -> int:
        """Return the count of the key; 0 if it has no window now."""
        found = await _find(key)
        return found.times if found else 0

    async def get_expiry(self, key: str) -> float:
        """Return the end of the key's window as a timestamp; the present time if it has none."""
        found = await _find(key)
        return (found.until if found else clock.now()).timestamp()

    async def clear(self, key: str) -> None:
        """Delete the counter of the key."""
        await Counter.erase(digest_of(key))

    async def reset(self) -> int:
        """Delete all counters, and return how many there were."""
        return (await _collection().delete_many({})).deleted_count

    async def check(self) -> bool:
        """Return True, without asking the database: whether it answers is checked elsewhere."""
        return True


def _collection() -> Any:
    return Counter.get_motor_collection().with_options(write_concern=SWIFT)


async def _find(key: str) -> Counter | None:
    return await Counter.find_one({"_id": digest_of(key), "until": {"$gt": clock.now()}})
