"""Workers that serve, and the barriers at which they say that they have heard."""

from datetime import datetime
from typing import Any

from beanie import Document
from pymongo import IndexModel

from quartapp.database import Session as Tx
from quartapp.models.record import Record


class Worker(Document):
    """A worker's heartbeat. Its id is made anew at each start."""

    id: str  # type: ignore[assignment]
    name: str
    beat: int
    at: datetime

    class Settings:
        name = "workers"
        indexes = [IndexModel([("at", 1)], name="kept", expireAfterSeconds=3600)]

    @classmethod
    async def say(cls, worker_id: str, name: str, beat: int) -> None:
        """Writes the beat with the database's own time. Returns after a majority has it."""
        await cls.get_motor_collection().update_one(
            {"_id": worker_id},
            {"$set": {"name": name, "beat": beat}, "$currentDate": {"at": True}},
            upsert=True,
        )

    @classmethod
    async def leave(cls, worker_id: str) -> None:
        await cls.get_motor_collection().delete_one({"_id": worker_id})


class Barrier(Record):
    """A mark in the order of the writes. Whoever has passed it in the stream adds its name."""

    asked_by: str
    at: datetime
    acks: list[str] = []

    class Settings:
        name = "barriers"
        indexes = [IndexModel([("at", 1)], name="kept", expireAfterSeconds=60)]

    @classmethod
    async def acknowledge(cls, ids: list[Any], worker_id: str, *, tx: Tx | None = None) -> None:
        await cls.change_all({"_id": {"$in": ids}}, {"$addToSet": {"acks": worker_id}}, tx=tx)
