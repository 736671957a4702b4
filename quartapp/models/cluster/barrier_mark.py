"""Barrier marks: documents whose place in the change stream workers acknowledge."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from beanie import PydanticObjectId
from pydantic import BaseModel
from pymongo import IndexModel, UpdateOne

from quartapp.models.base.record import Record


class Ack(BaseModel):
    """A worker's acknowledgement that it has handled all changes up to a mark.

    `tabs` counts its open tabs whose sessions the event of the mark has ended.
    """

    worker: str
    tabs: int


class BarrierMark(Record):
    """A document that marks a position in the order of writes.

    A mark for an audit event (`event`) is inserted after all other writes of its transaction. A
    worker that reads the mark in the change stream has therefore read these writes. It acknowledges
    the mark to the worker `asker`: directly if both run on one host, else by adding an Ack to
    `acks`. Marks are deleted after a minute.
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
        """Append each Ack to the mark of its id, in one bulk write. Marks that no longer exist
        are ignored. Raises the driver's errors, also for an empty mapping."""
        writes = [
            UpdateOne({"_id": mark_id}, {"$push": {"acks": ack.model_dump()}})
            for mark_id, ack in acks.items()
        ]
        await cls.get_motor_collection().bulk_write(writes, ordered=False)
