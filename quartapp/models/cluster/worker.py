"""Heartbeats of the workers, from which a barrier knows for whom to wait."""

from datetime import datetime

from beanie import Document
from pymongo import IndexModel

from quartapp.db import mongo

# Much longer than a lease, the time for which a worker may use its cache after a heartbeat.
STALE_SECONDS = 60.0


class Worker(Document):
    """The heartbeat of one worker process. Each process has a new id.

    `beat` is the number that the worker gave its last heartbeat; `at` is its time by the clock of
    the primary, and `primary` identifies that primary's term. Documents are deleted after an hour
    without a heartbeat.
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
    async def record_heartbeat(cls, worker_id: str, name: str, beat: int) -> None:
        """Store the heartbeat of this worker: its name, the number `beat`, the database's own
        time and the primary's term. Creates the document if it is missing. Returns after a
        majority has it; raises the driver's errors."""
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
        """Return the ids of the workers that may be serving, with the seconds since their last
        heartbeats.

        A worker that was killed leaves its document behind, which does not count once it is older
        than STALE_SECONDS by the database's clock. Two primaries may have different clocks, so a
        document that was written in another primary's term counts until it expires.
        """
        age = {"$divide": [{"$subtract": ["$$NOW", "$at"]}, 1000]}
        pipeline = [{"$project": {"age": age, "primary": 1}}]
        found = await cls.get_motor_collection().aggregate(pipeline).to_list(None)
        # Read after the query, so that it is the term of the primary that has answered.
        comparable = {None, mongo.primary_term() or None}
        return {
            each["_id"]: each["age"]
            for each in found
            if each["age"] <= STALE_SECONDS or each.get("primary") not in comparable
        }

    @classmethod
    async def leave(cls, worker_id: str) -> None:
        """Delete the document of this worker. Does nothing if there is none."""
        await cls.get_motor_collection().delete_one({"_id": worker_id})
