"""Barrier marks: documents whose place in the change stream workers acknowledge."""

from datetime import datetime

from beanie import PydanticObjectId
from pymongo import IndexModel

from quartapp.models.base.record import Record


class BarrierMark(Record):
    """A document that marks a position in the order of writes.

    A mark for an audit event (`event`) is inserted after all other writes of its transaction. A
    worker that reads the mark in the change stream has therefore read these writes. It acknowledges
    the mark to the worker `asker`: directly if both run on one host, else with an Acknowledgement.
    Marks are deleted after a minute.
    """

    at: datetime
    asker: str | None = None
    event: PydanticObjectId | None = None

    class Settings:
        name = "barriers"
        indexes = [IndexModel([("at", 1)], name="kept", expireAfterSeconds=60)]
