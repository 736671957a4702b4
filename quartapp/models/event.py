"""The audit record: who did what to whom, from where and when. Only ever added to."""

import asyncio
from collections.abc import Collection, Sequence
from datetime import datetime, timedelta
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Self

from beanie import Link, PydanticObjectId
from pydantic import BaseModel, Field, PrivateAttr
from pymongo import IndexModel

from quartapp import clock
from quartapp.database import Session as Tx
from quartapp.models.actor import Actor
from quartapp.models.record import Record
from quartapp.models.references import CASELESS, ref
from quartapp.models.worker import Barrier

if TYPE_CHECKING:
    from quartapp.models.user import User

KEPT = timedelta(days=400)
ASK_EVERY = 0.01
RECEIPTS = 200


class Verb(StrEnum):
    """What was done."""

    USER_REGISTERED = "user.registered"
    USER_DISABLED = "user.disabled"
    USER_ENABLED = "user.enabled"
    LAST_DAY_SET = "last_day.set"
    LAST_DAY_LIFTED = "last_day.lifted"
    USER_INVITED = "user.invited"
    INVITATION_SENT_AGAIN = "invitation.sent_again"
    INVITATION_WITHDRAWN = "invitation.withdrawn"
    INVITATION_ACCEPTED = "invitation.accepted"
    USER_DEACTIVATED = "user.deactivated"
    USER_LEAVING = "user.leaving"
    USER_RESTORED = "user.restored"
    USER_ERASED = "user.erased"
    PASSWORD_CHANGED = "password.changed"  # noqa: S105
    PASSWORD_RESET = "password.reset"  # noqa: S105
    EMAIL_CONFIRMED = "email.confirmed"
    EMAIL_CHANGED = "email.changed"
    FACTOR_ADDED = "factor.added"
    FACTOR_REMOVED = "factor.removed"
    PASSKEY_REFUSED = "passkey.refused"
    FACTORS_RESET = "factors.reset"
    RECOVERY_CODE_USED = "recovery_code.used"
    RECOVERY_CODES_MADE = "recovery_codes.made"
    SESSION_STARTED = "session.started"
    SESSION_CONFIRMED = "session.confirmed"
    SESSION_ENDED = "session.ended"
    SESSIONS_ENDED = "sessions.ended"
    ROLE_GRANTED = "role.granted"
    ROLE_REVOKED = "role.revoked"
    ROLE_CREATED = "role.created"
    ROLE_EDITED = "role.edited"
    ROLE_DELETED = "role.deleted"
    POST_REMOVED = "post.removed"
    COMMENT_REMOVED = "comment.removed"
    DATA_EXPORTED = "data.exported"
    ACTIVITY_DISOWNED = "activity.disowned"


# What ends sessions. The sooner it is known everywhere, the sooner it is answered.
ENDING = {
    Verb.USER_DISABLED,
    Verb.USER_DEACTIVATED,
    Verb.USER_LEAVING,
    Verb.ACTIVITY_DISOWNED,
    Verb.PASSWORD_RESET,
    Verb.FACTORS_RESET,
    Verb.SESSION_ENDED,
    Verb.SESSIONS_ENDED,
    Verb.ROLE_REVOKED,
    Verb.ROLE_DELETED,
}


class Receipt(BaseModel):
    """What a worker says of the open tabs that an event has ended there.

    `acked` is how many said that they are locked; the slowest of them this long after the worker
    heard of it.
    """

    worker: str
    tabs: int
    acked: int
    slowest_ms: int


class Event(Record):
    """One line of the record. `subject` is the user it happened to, if there is one; `session` the
    one in which it was done, or that was begun by it.

    The receipts come after the fact, and are all that is ever added to a line. When a person is
    erased their lines stay, without a word about them: see `models.personal`.
    """

    actor: Link["User"] | None = None
    verb: Verb
    subject: Link["User"] | None = None
    session: PydanticObjectId | None = None
    ip: str | None = None
    at: datetime = Field(default_factory=clock.now)
    details: dict[str, Any] = {}
    receipts: list[Receipt] = []
    _marked: bool = PrivateAttr(default=False)

    class Settings:
        name = "events"
        indexes = [
            IndexModel([("subject.$id", 1), ("_id", -1)], name="of_subject"),
            IndexModel([("actor.$id", 1), ("_id", -1)], name="of_actor"),
            # Of those invited, who have no account yet.
            IndexModel([("details.email", 1)], name="of_address", sparse=True, collation=CASELESS),
            IndexModel([("details.author", 1)], name="quoting", sparse=True),
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
    ) -> "Event":
        """Adds a line; inside a transaction it stands or falls with what it tells of."""
        return await cls.of(verb, by=by, subject=subject, **details).insert(session=tx)

    @classmethod
    def of(
        cls, verb: Verb, *, by: Actor, subject: PydanticObjectId | None = None, **details: Any
    ) -> "Event":
        """A line that is not written yet, so that what it causes can already name it."""
        return cls(
            verb=verb,
            actor=ref("users", by.user_id),
            subject=ref("users", subject),
            session=by.session_id,
            ip=by.ip,
            details=details,
        )

    @property
    def by_rule(self) -> bool:
        """Whether nobody did it: a day came that was set before."""
        last_day = not self.details.keys().isdisjoint({"last_day", "why"})
        return self.actor is None and (last_day or self.verb is Verb.USER_ERASED)

    async def mark(self, tx: Tx, *, asker: str | None) -> None:
        """Writes a mark for the barrier, which must be the last write of the transaction: whoever
        hears of it has heard of all that was taken away. The asker is the worker that waits."""
        self._marked = True
        await Barrier.of(self, asker=asker).insert(session=tx)

    @property
    def marked(self) -> bool:
        """Whether a mark of the same id was written with it."""
        return self._marked

    @classmethod
    async def add_receipt(cls, event_id: PydanticObjectId, receipt: Receipt) -> None:
        pushed = {"$each": [receipt.model_dump()], "$slice": -RECEIPTS}
        await cls.change({"_id": event_id}, {"$push": {"receipts": pushed}})

    async def wait_for_receipts(self, tabs: int, *, seconds: float) -> str:
        """What became of so many tabs, in a sentence: once all are accounted for, or time is up."""
        deadline = clock.monotonic() + seconds
        while sum(receipt.tabs for receipt in self.receipts) < tabs:
            if clock.monotonic() > deadline:
                break
            await asyncio.sleep(ASK_EVERY)
            read = await Event.get(self.id)
            self.receipts = read.receipts if read else self.receipts
        return reach(self.receipts, tabs)

    @property
    def reach(self) -> str:
        """What became of the open tabs, in a sentence; nothing where there were none."""
        return reach(self.receipts, sum(receipt.tabs for receipt in self.receipts))

    @classmethod
    async def page(
        cls,
        *,
        subject: PydanticObjectId | None = None,
        common: Collection[PydanticObjectId] = (),
        verbs: Collection[Verb] = (),
        before: PydanticObjectId | None = None,
        limit: int = 50,
    ) -> list[Self]:
        """The newest first, with their actors and subjects; of these verbs, or of all. Those of one
        subject and, beside them, what is `common` to many."""
        match: dict[str, Any] = {"subject.$id": subject} if subject else {}
        if common:
            match = {"$or": [match, {"_id": {"$in": list(common)}}]}
        if verbs:
            match["verb"] = {"$in": list(verbs)}
        if before:
            match["_id"] = {"$lt": before}
        return await cls.listed(match, sort="-_id", limit=limit, fetch=["actor", "subject"])


def reach(receipts: Sequence[Receipt], tabs: int) -> str:
    acked = sum(receipt.acked for receipt in receipts)
    parts: list[str] = []
    if acked:
        workers = len({receipt.worker for receipt in receipts if receipt.acked})
        slowest = max(receipt.slowest_ms for receipt in receipts if receipt.acked)
        where = f"{_count(acked, 'tab')} on {_count(workers, 'worker')}"
        parts.append(f"{where} locked, slowest {slowest} ms")
    if missed := max(0, tabs - acked):
        what = f"{missed}" if acked else _count(missed, "tab")
        its = "its" if missed == 1 else "their"
        parts.append(f"{what} not reached, refused at {its} next request")
    return "; ".join(parts)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
