"""Barrier marks: positions in the order of writes that workers acknowledge."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from beanie import PydanticObjectId
from pydantic import BaseModel
from pymongo import IndexModel, UpdateOne

from quartapp.models.base.record import Record


class Ack(BaseModel):
    """A worker has passed the mark, with so many open tabs of sessions that the event ended."""

    worker: str
    tabs: int


class BarrierMark(Record):
    """A mark in the order of the writes, after those of an event if there is one.

    Whoever has passed it in the stream tells the worker that asks, where the two are neighbours;
    else it adds its name.
    """

    at: datetime
    asker: str | None = None
    event: PydanticObjectId | None = None
    acks: list[Ack] = []

    class Settings:
        name = "barriers"
        indexes = [IndexModel([("at", 1)], name="kept", expireAfterSeconds=60)]

    @classmethod
    async def acknowledge(cls, acks: Mapping[Any, Ack]) -> None:
        """Adds these to the marks, in one round."""
        writes = [
            UpdateOne({"_id": mark_id}, {"$push": {"acks": ack.model_dump()}})
            for mark_id, ack in acks.items()
        ]
        await cls.get_motor_collection().bulk_write(writes, ordered=False)
