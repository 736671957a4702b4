"""Guesses at passwords: what failed is counted, and each further failure must be waited for.

A key stands for whoever guesses at what. So many failures are free; after each further one the key
waits, a second first and then twice as long each time, up to the limit's period, and they are
forgotten when a whole period has passed after that without another.
"""

from datetime import datetime, timedelta
from typing import Any

from beanie import PydanticObjectId
from limits import RateLimitItem
from pymongo import IndexModel, ReturnDocument

from quartapp.models.base.record import Record
from quartapp.models.base.tokens import digest_of
from quartapp.models.limits.counter import SWIFT

# Longer than a check of a password can take: by then its worker has died.
UNDER_WAY = timedelta(seconds=20)


class FailedAttempts(Record):
    """What is known of one key. `under_way` are guesses whose outcome is not known yet: they
    count as failures until it is, so that many at once are no more than the limit allows."""

    id: str  # type: ignore[assignment]
    failed: int
    until: datetime | None
    under_way: list[dict[str, Any]]
    forget_at: datetime

    class Settings:
        name = "guesses"
        indexes = [IndexModel([("forget_at", 1)], name="kept", expireAfterSeconds=60)]

    @classmethod
    async def begin(
        cls, key: str, guess: PydanticObjectId, limit: RateLimitItem
    ) -> tuple[bool, datetime | None]:
        """Whether the guess is under way now, and if not, until when the key has to wait.

        Neither, when it depends on others under way: then ask again. One write decides, so that
        of many at once none is let in too many.
        """
        remembered = {"$gt": ["$forget_at", "$$NOW"]}
        mine = [{"guess": guess, "at": "$$NOW"}]
        room = {"$max": [1, {"$subtract": [limit.amount, "$failed"]}]}
        free = {"$and": [{"$eq": ["$until", None]}, {"$lt": [{"$size": "$under_way"}, room]}]}
        found = await _collection().find_one_and_update(
            {"_id": digest_of(key)},
            [
                {
                    "$set": {
                        "failed": {"$cond": [remembered, "$failed", 0]},
                        "until": {"$cond": [{"$gt": ["$until", "$$NOW"]}, "$until", None]},
                        "under_way": _filtered({"$gt": ["$$this.at", _in(-UNDER_WAY)]}),
                    }
                },
                {
                    "$set": {
                        "under_way": {
                            "$cond": [free, {"$concatArrays": ["$under_way", mine]}, "$under_way"]
                        },
                        "forget_at": {
                            "$cond": [{"$gt": ["$failed", 0]}, "$forget_at", _in(UNDER_WAY)]
                        },
                    }
                },
            ],
            upsert=True,
            return_document=ReturnDocument.AFTER,
        )
        return any(each["guess"] == guess for each in found["under_way"]), found["until"]

    @classmethod
    async def fail(cls, key: str, guess: PydanticObjectId, limit: RateLimitItem) -> None:
        """The guess was wrong."""
        period = timedelta(seconds=limit.get_expiry())
        doubled = {"$pow": [2, {"$min": [20, {"$subtract": ["$failed", limit.amount]}]}]}
        wait = {"$min": [_milliseconds(period), {"$multiply": [1000, doubled]}]}
        free = {"$lt": ["$failed", limit.amount]}
        since = {"$ifNull": ["$until", "$$NOW"]}
        await _collection().update_one(
            {"_id": digest_of(key)},
            [
                {
                    "$set": {
                        "failed": {"$add": [{"$ifNull": ["$failed", 0]}, 1]},
                        "under_way": _filtered({"$ne": ["$$this.guess", guess]}),
                    }
                },
                {"$set": {"until": {"$cond": [free, None, {"$add": ["$$NOW", wait]}]}}},
                {"$set": {"forget_at": {"$add": [since, _milliseconds(period)]}}},
            ],
            upsert=True,
        )

    @classmethod
    async def withdraw(cls, key: str, guess: PydanticObjectId) -> None:
        """The guess counts no more: it was right, or was never judged."""
        await _collection().update_one(
            {"_id": digest_of(key)}, {"$pull": {"under_way": {"guess": guess}}}
        )

    @classmethod
    async def forgive(cls, key: str) -> None:
        """Forgets all failures of the key."""
        await _collection().delete_one({"_id": digest_of(key)})


def _collection() -> Any:
    return FailedAttempts.get_motor_collection().with_options(write_concern=SWIFT)


def _filtered(condition: dict[str, Any]) -> dict[str, Any]:
    return {"$filter": {"input": {"$ifNull": ["$under_way", []]}, "as": "this", "cond": condition}}


def _in(delta: timedelta) -> dict[str, Any]:
    return {"$add": ["$$NOW", _milliseconds(delta)]}


def _milliseconds(delta: timedelta) -> int:
    return int(delta.total_seconds() * 1000)
