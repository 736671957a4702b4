"""Barrier marks: documents whose place in the change stream workers acknowledge."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from beanie import PydanticObjectId
from pymongo import IndexModel

from quartapp.models.base.record import Record


@dataclass(frozen=True)
class TabsOf:
    """Whose open tabs are counted: those of these users, of these sessions, and of the users who
    hold one of these roles. A tab counts once."""

    users: Sequence[PydanticObjectId] = ()
    sessions: Sequence[PydanticObjectId] = ()
    roles: Sequence[PydanticObjectId] = ()


class BarrierMark(Record):
    """A document that marks a position in the order of writes.

    A mark for an audit event (`event`) is inserted after all other writes of its transaction. A
    worker that reads the mark in the change stream has therefore read these writes. It acknowledges
    the mark to the worker `asker`: directly if both run on one host, else with an Acknowledgement.
    Marks are deleted after a minute.

    With `tabs_of`, the fields of a TabsOf, the acknowledgement has the number of open tabs of these
    users, sessions and roles, instead of those that the event has ended.
    """

    at: datetime
    asker: str | None = None
    event: PydanticObjectId | None = None
    tabs_of: dict[str, list[PydanticObjectId]] | None = None

    class Settings:
        name = "barriers"
        indexes = [IndexModel([("at", 1)], name="kept", expireAfterSeconds=60)]
