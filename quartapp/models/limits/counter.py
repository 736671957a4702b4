"""How often something was done: counts that all workers share, for the `limits` library."""

from datetime import datetime
from typing import Any

from limits.aio.storage import Storage
from pymongo import IndexModel, ReturnDocument, WriteConcern
from pymongo.errors import PyMongoError

from quartapp import clock
from quartapp.models.base.record import Record
from quartapp.models.base.tokens import digest_of

# A count that a failover loses is no loss; waiting for a majority at each handshake would be.
SWIFT = WriteConcern(w=1)


class Allowance(Record):
    """One count, under the digest of what it counts, until its window closes."""

    id: str  # type: ignore[assignment]
    times: int
    until: datetime

    class Settings:
        name = "allowances"
        indexes = [IndexModel([("until", 1)], name="kept", expireAfterSeconds=60)]


class Allowances(Storage):
    """The library's storage over our own connection: its own would open another client, with
    other timeouts, and go by each worker's clock."""

    @property
    def base_exceptions(self) -> type[Exception]:
        return PyMongoError

    async def incr(self, key: str, expiry: int, amount: int = 1) -> int:
        """The count after this one. A window of `expiry` seconds opens with its first count."""
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
        found = await _find(key)
        return found.times if found else 0

    async def get_expiry(self, key: str) -> float:
        found = await _find(key)
        return (found.until if found else clock.now()).timestamp()

    async def clear(self, key: str) -> None:
        await Allowance.erase(digest_of(key))

    async def reset(self) -> int:
        return (await _collection().delete_many({})).deleted_count

    async def check(self) -> bool:
        """Whether the database answers is asked elsewhere."""
        return True


def _collection() -> Any:
    return Allowance.get_motor_collection().with_options(write_concern=SWIFT)


async def _find(key: str) -> Allowance | None:
    return await Allowance.find_one({"_id": digest_of(key), "until": {"$gt": clock.now()}})
