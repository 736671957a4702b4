"""The audit record: who did what to whom, from where and when. Only ever added to."""

from datetime import datetime, timedelta
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Self

from beanie import Link, PydanticObjectId
from pydantic import Field
from pymongo import IndexModel

from quartapp import clock
from quartapp.database import Session as Tx
from quartapp.models.actor import Actor
from quartapp.models.record import Record
from quartapp.models.references import ref

if TYPE_CHECKING:
    from quartapp.models.user import User

KEPT = timedelta(days=400)


class Verb(StrEnum):
    """What was done."""

    USER_REGISTERED = "user.registered"
    USER_DISABLED = "user.disabled"
    USER_ENABLED = "user.enabled"
    PASSWORD_CHANGED = "password.changed"  # noqa: S105
    SESSION_STARTED = "session.started"
    SESSION_ENDED = "session.ended"
    SESSIONS_ENDED = "sessions.ended"
    ROLE_GRANTED = "role.granted"
    ROLE_REVOKED = "role.revoked"
    ROLE_CREATED = "role.created"
    ROLE_EDITED = "role.edited"
    ROLE_DELETED = "role.deleted"
    POST_REMOVED = "post.removed"
    COMMENT_REMOVED = "comment.removed"


class Event(Record):
    """One line of the record. `subject` is the user it happened to, if there is one."""

    actor: Link["User"] | None = None
    verb: Verb
    subject: Link["User"] | None = None
    ip: str | None = None
    at: datetime = Field(default_factory=clock.now)
    details: dict[str, Any] = {}

    class Settings:
        name = "events"
        indexes = [
            IndexModel([("subject.$id", 1), ("_id", -1)], name="of_subject"),
            IndexModel([("at", 1)], name="kept", expireAfterSeconds=int(KEPT.total_seconds())),
        ]

    @classmethod
    async def record(
        cls,
        verb: Verb,
        *,
        by: Actor,
        subject: PydanticObjectId | None = None,
        tx: Tx | None = None,
        **details: Any,
    ) -> None:
        """Adds a line; inside a transaction it stands or falls with what it tells of."""
        event = cls(
            verb=verb,
            actor=ref("users", by.user_id),
            subject=ref("users", subject),
            ip=by.ip,
            details=details,
        )
        await event.insert(session=tx)

    @classmethod
    async def page(
        cls,
        *,
        subject: PydanticObjectId | None = None,
        before: PydanticObjectId | None = None,
        limit: int = 50,
    ) -> list[Self]:
        """The newest first, with their actors and subjects."""
        match: dict[str, Any] = {"subject.$id": subject} if subject else {}
        if before:
            match["_id"] = {"$lt": before}
        return await cls.listed(match, sort="-_id", limit=limit, fetch=["actor", "subject"])
