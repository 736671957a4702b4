"""Acknowledgements of barrier marks that go through the database."""

from collections.abc import Collection
from datetime import datetime
from typing import Self

from beanie import PydanticObjectId
from pydantic import Field
from pymongo import IndexModel

from quartapp import clock
from quartapp.models.base.record import Record


class Acknowledgement(Record):
    """A worker's acknowledgement that it has handled all changes up to a barrier mark.

    `asker` is the worker that waits for it, or None if that is a command. Each worker's change
    stream delivers only the acknowledgements for itself and those for commands. `tabs` counts the
    worker's open tabs whose sessions the event of the mark has ended. Deleted after a minute.
    """

    mark: PydanticObjectId
    asker: str | None = None
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
        """Insert the acknowledgements with one command."""
        rows = [ack.model_dump(by_alias=True) for ack in acks]
        await cls.get_motor_collection().insert_many(rows, ordered=False)

    @classmethod
    async def tabs_by_worker(cls, mark_id: PydanticObjectId) -> dict[str, int]:
        """Return the workers that have acknowledged the mark, with their numbers of tabs."""
        return {ack.worker: ack.tabs for ack in await cls.find({"mark": mark_id}).to_list()}
