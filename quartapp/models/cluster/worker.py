"""Workers that serve, with their heartbeats."""

from datetime import datetime

from beanie import Document
from pymongo import IndexModel

from quartapp.db import mongo

# Far more than a lease, which is what a worker may trust its memory for after a heartbeat.
STALE_SECONDS = 60.0


class Worker(Document):
    """A worker's heartbeat. Each process has an id of its own.

    `at` is the time by the clock of the primary whose term in office `primary` names.
    """

    id: str  # type: ignore[assignment]
    name: str
    beat: int
    at: datetime
    primary: str | None = None

    class Settings:
        name = "workers"
        indexes = [IndexModel([("at", 1)], name="kept", expireAfterSeconds=3600)]

    @classmethod
    async def say(cls, worker_id: str, name: str, beat: int) -> None:
        """Writes the beat with the database's own time. Returns after a majority has it."""
        await cls.get_motor_collection().update_one(
            {"_id": worker_id},
            {
                "$set": {"name": name, "beat": beat, "primary": mongo.primary_term()},
                "$currentDate": {"at": True},
            },
            upsert=True,
        )

    @classmethod
    async def everyone(cls) -> dict[str, float]:
        """Return the workers that may be serving, with the seconds since their last heartbeats.

        A worker that was killed leaves its document behind, which does not count once it is stale
        by the database's clock. Two primaries may have different clocks, so a document that was
        written in another primary's term counts until it expires.
        """
        age = {"$divide": [{"$subtract": ["$$NOW", "$at"]}, 1000]}
        pipeline = [{"$project": {"age": age, "primary": 1}}]
        found = await cls.get_motor_collection().aggregate(pipeline).to_list(None)
        # Asked after the reading: whoever has answered was the primary by then.
        comparable = {None, mongo.primary_term() or None}
        return {
            each["_id"]: each["age"]
            for each in found
            if each["age"] <= STALE_SECONDS or each.get("primary") not in comparable
        }

    @classmethod
    async def leave(cls, worker_id: str) -> None:
        await cls.get_motor_collection().delete_one({"_id": worker_id})
