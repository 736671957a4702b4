"""Failed attempts to sign in, such as wrong passwords, with a growing delay after too many.

A key names what is counted, for example an account and a network. The failure number `limit.amount`
blocks the key for one second, and each further failure for twice as long as the one before, at most
the period of the limit. The failures of a key are forgotten when a whole period has passed, after
its last block, without another failure.

Call `begin` before an attempt, then one of `fail`, `withdraw` and `forgive`. All times are by the
clock of the database.
"""

from datetime import datetime, timedelta
from typing import Any

from beanie import PydanticObjectId
from limits import RateLimitItem
from pymongo import IndexModel, ReturnDocument

from quartapp.models.base.record import Record
from quartapp.models.base.tokens import digest_of
from quartapp.models.limits.counter import SWIFT

# Longer than checking a password can take: an older attempt is of a worker that has died.
UNDER_WAY = timedelta(seconds=20)


class FailedAttempts(Record):
    """The failed attempts of one key, under the digest of the key.

    `until` is the end of the block; None if the key is not blocked. `under_way` lists the attempts
    whose outcome is not known yet: they count as failures, so that parallel attempts are no more
    than the limit allows. The document is deleted about a minute after `forget_at`.
    """

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
        """Try to register the attempt `guess`. Return whether it may go on, and until when the key
        is blocked if it is.

        - (True, None): the attempt is in `under_way`; the caller must report its outcome.
        - (False, time): the key is blocked until then, and the attempt is not registered.
        - (False, None): others under way take all of the room, so call this again a little later.

        One atomic update decides. It also drops attempts that began more than UNDER_WAY ago, whose
        worker has died, and failures that are forgotten by now.
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
        """Record that the attempt failed: remove it from `under_way`, add one failure, and block
        the key if these are at least `limit.amount`.

        The block lasts one second, doubled with each further failure, at most the period of the
        limit. The failures are forgotten one period after the end of the block.
        """
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
        """Remove the attempt from `under_way` without counting it: it succeeded, or its
        outcome is not known.
        """
        await _collection().update_one(
            {"_id": digest_of(key)}, {"$pull": {"under_way": {"guess": guess}}}
        )

    @classmethod
    async def forgive(cls, key: str) -> None:
        """Delete all that is stored about the key: its failures, its block and its attempts under
        way.
        """
        await _collection().delete_one({"_id": digest_of(key)})


def _collection() -> Any:
    """Return the collection, with writes that do not wait for a majority."""
    return FailedAttempts.get_motor_collection().with_options(write_concern=SWIFT)


def _filtered(condition: dict[str, Any]) -> dict[str, Any]:
    """Return an aggregation expression: the attempts under way for which the condition is true."""
    return {"$filter": {"input": {"$ifNull": ["$under_way", []]}, "as": "this", "cond": condition}}


def _in(delta: timedelta) -> dict[str, Any]:
    """Return an aggregation expression: the database's present time plus `delta`."""
    return {"$add": ["$$NOW", _milliseconds(delta)]}


def _milliseconds(delta: timedelta) -> int:
    return int(delta.total_seconds() * 1000)
