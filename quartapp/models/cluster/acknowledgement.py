"""Acknowledgements of barrier marks that go through the database."""

from collections.abc import Collection
from datetime import datetime
from typing import Self

from beanie import PydanticObjectId
from pydantic import Field
from pymongo import IndexModel, WriteConcern

from quartapp import clock
from quartapp.models.base.record import Record


class Acknowledgement(Record):
    """A worker's acknowledgement that it has handled all changes up to a barrier mark.

    The process that waits for it reads it; no change stream delivers it. `tabs` counts the worker's
    open tabs whose sessions the event of the mark has ended. Deleted after a minute.
    """

    mark: PydanticObjectId
    worker: str
    tabs: int
    at: datetime = Field(default_factory=clock.now)

    class Settings:
        name = "acknowledgements"
        indexes = [
            IndexModel([("mark", 1)], name="of_mark"),
            IndexModel([("at", 1)], name="kept", expireAfterSeconds=60),
        ]

    @classmethod
    async def write(cls, acks: Collection[Self]) -> None:
        """Insert the acknowledgements with one command, without waiting for a majority.

        An acknowledgement is true even if it is rolled back, so its reader needs no majority.
        """
        rows = [ack.model_dump(by_alias=True) for ack in acks]
        collection = cls.get_motor_collection().with_options(write_concern=WriteConcern(w=1))
        await collection.insert_many(rows, ordered=False)

    @classmethod
    async def tabs_by_worker(cls, mark_id: PydanticObjectId) -> dict[str, int]:
        """Return the workers that have acknowledged the mark, with their numbers of tabs."""
        return {ack.worker: ack.tabs for ack in await cls.find({"mark": mark_id}).to_list()}
