"""Sessions: one signed-in device. Ended, not deleted, so that the reason can still be told."""

from collections.abc import AsyncIterator, Collection, Mapping
from datetime import datetime, timedelta
from typing import Any, Self

from beanie import PydanticObjectId, SortDirection
from pydantic import Field
from pymongo import IndexModel, UpdateOne

from quartapp import clock
from quartapp.activities import REAUTHENTICATED, SESSION_ENDED, Activity
from quartapp.db.mongo import Tx
from quartapp.models.audit.event import Event
from quartapp.models.authorization.transaction import authorized_transaction
from quartapp.models.base.actor import Actor
from quartapp.models.base.record import Record
from quartapp.models.base.references import (
    EVENTS,
    SESSIONS,
    EventRef,
    RoleRef,
    UserRef,
    linked_id,
    ref,
    user_ref,
)
from quartapp.models.base.tokens import new_token
from quartapp.models.factors.factor import Factor
from quartapp.models.sessions import expiry
from quartapp.models.sessions.reason import EndDetail, Reason

DESCENDING = SortDirection.DESCENDING
SEEN_EVERY = timedelta(minutes=1)
KEPT = timedelta(days=30)


class Session(Record):
    """One signed-in device, found by the SHA-256 of the token in its cookie.

    It remembers what it was built on, and is over when that is gone, whoever took it away and
    however: the roles it has acted with, and a fingerprint of the password it was opened under.
    One that was opened without a second factor is over when its user has one.
    `authority.session_rule` holds the rule.
    """

    digest: str = Field(repr=False)
    user: UserRef
    device: str
    browser: str | None = Field(default=None, repr=False)
    ip: str | None = None
    created_at: datetime
    seen_at: datetime
    expires_at: datetime
    idle_seconds: int
    remembered: bool = False
    factor: Factor | None = None
    confirmed_at: datetime
    credential: str = Field(repr=False)
    roles: list[RoleRef] = []
    uses: int = 0
    acts: int = 0
    online_until: datetime | None = None
    ended_at: datetime | None = None
    ended_reason: str | None = None
    ended_because: str | None = None
    ended_by: UserRef | None = None
    ended_event: EventRef | None = None

    class Settings:
        name = SESSIONS
        indexes = [
            IndexModel([("digest", 1)], name="by_token", unique=True),
            # `ended_at` is in none of them: a deleted role may end thousands in one transaction,
            # which takes six times as long where an index has to follow.
            IndexModel([("user.$id", 1), ("created_at", -1)], name="by_user"),
            IndexModel([("roles.$id", 1)], name="by_role"),
            IndexModel([("seen_at", -1), ("_id", -1)], name="by_use"),
            IndexModel(
                [("expires_at", 1)], name="kept", expireAfterSeconds=int(KEPT.total_seconds())
            ),
        ]

    async def confirm(self, *, by: Actor) -> str | None:
        """Its user has shown who they are just now. Returns its new token; the old one is void.

        None if it is over. Of two at once the later one's token is the one that counts: a button
        that is pressed twice must not sign anybody out.
        """
        token, digest = new_token()

        async def work(tx: Tx) -> bool:
            changed = await Session.change(
                {"_id": self.id, "ended_at": None},
                {"$set": {"digest": digest, "confirmed_at": clock.now()}},
                tx=tx,
            )
            if changed:
                await Event.record(REAUTHENTICATED, by=by, subject=self.user_id, tx=tx)
            return changed

        return token if await authorized_transaction(by, work) else None

    async def end(self, reason: Reason, *, by: Actor) -> Event | None:
        """End the session and return the event; None if it is over already. Raises
        MissingPermission.

        A user who ends the session of another device may have lost that device: its browser is no
        longer known.
        """

        async def work(tx: Tx) -> Event | None:
            if reason is Reason.ENDED_BY_USER and self.id != by.session_id and self.browser:
                same = {"user.$id": self.user_id, "browser": self.browser}
                others = {**same, "_id": {"$ne": by.session_id}}
                await Session.change_all(others, {"$set": {"browser": None}}, tx=tx)
            details = {"subject": self.user_id, "device": self.device}
            return await end_and_record(
                {"_id": self.id}, reason, SESSION_ENDED, by=by, tx=tx, **details
            )

        return await authorized_transaction(by, work, managing=self.user_id, ends_sessions=True)

    @property
    def user_id(self) -> PydanticObjectId:
        return linked_id(self.user)

    @classmethod
    async def of_user(cls, user_id: PydanticObjectId) -> list[Self]:
        """The living ones, the last used first; there are at most as many as a user may have."""
        return await cls.find(
            {"user.$id": user_id, **expiry.active_filter(clock.now())}, sort="-seen_at"
        ).to_list()

    @classmethod
    async def named(cls, ids: Collection[PydanticObjectId]) -> dict[PydanticObjectId, Self]:
        """Those of the ids that are still remembered, by their ids."""
        found = await cls.find({"_id": {"$in": list(ids)}}).to_list() if ids else []
        return {session.id: session for session in found}

    @classmethod
    async def on_now(
        cls, *, before: tuple[datetime, PydanticObjectId] | None = None, limit: int = 50
    ) -> list[Self]:
        """Everybody's living ones, the last used first, with their users."""
        match: dict[str, Any] = expiry.active_filter(clock.now())
        if before:
            seen, last = before
            match["$or"] = [{"seen_at": {"$lt": seen}}, {"seen_at": seen, "_id": {"$lt": last}}]
        newest = [("seen_at", DESCENDING), ("_id", DESCENDING)]
        return await cls.listed(match, sort=newest, limit=limit, fetch=["user"])

    @classmethod
    async def ids(
        cls, match: Mapping[str, Any], *, at_once: int
    ) -> AsyncIterator[list[PydanticObjectId]]:
        """Those that match, however many there are, in lists of at most so many."""
        found = cls.get_motor_collection().find(match, {"_id": 1}, batch_size=at_once)
        while rows := await found.to_list(at_once):
            yield [row["_id"] for row in rows]

    @classmethod
    async def were_seen(cls, seen: Mapping[PydanticObjectId, tuple[datetime, str | None]]) -> None:
        """Writes when sessions were used, and from where, in one round."""
        writes = [
            UpdateOne(
                {"_id": session_id, "ended_at": None, "seen_at": {"$lt": at}},
                {"$set": {"seen_at": at, "ip": ip}, "$inc": {"uses": 1}},
            )
            for session_id, (at, ip) in seen.items()
        ]
        if writes:
            await cls.get_motor_collection().bulk_write(writes, ordered=False)

    @property
    def lives(self) -> bool:
        """Whether it has neither ended nor expired. More is asked by `authority.session_rule`."""
        deadline = expiry.deadline(self.expires_at, self.seen_at, self.idle_seconds)
        return self.ended_at is None and deadline > clock.now()

    @property
    def online(self) -> bool:
        """Whether a page of it is open on some worker, as of that worker's last look."""
        return self.online_until is not None and self.online_until > clock.now()

    @classmethod
    async def say_online(cls, ids: Collection[PydanticObjectId], *, until: datetime) -> None:
        match = {"_id": {"$in": list(ids)}, "ended_at": None}
        await cls.change_all(match, {"$set": {"online_until": until}})


async def end_sessions(
    match: Mapping[str, Any],
    reason: Reason,
    activity: Activity,
    *,
    by: Actor,
    subject: PydanticObjectId,
    **details: Any,
) -> Event | None:
    """End the subject's sessions that match and are not over, in one transaction with the audit
    event.

    Return None if none of them was active, without an event; else the event, whose details say how
    many were. Raises MissingPermission.
    """

    async def work(tx: Tx) -> Event | None:
        return await end_and_record(
            match, reason, activity, by=by, subject=subject, tx=tx, **details
        )

    return await authorized_transaction(by, work, managing=subject, ends_sessions=True)


async def end_and_record(
    match: Mapping[str, Any],
    reason: Reason,
    activity: Activity,
    *,
    by: Actor,
    subject: PydanticObjectId,
    tx: Tx,
    **details: Any,
) -> Event | None:
    """The writes of `end_sessions`, for a transaction that does more."""
    event = Event.of(activity, by=by, subject=subject, reason=reason.value, **details)
    active = await count_active(match, tx)
    # Those that have expired are not active, but nothing may have marked them yet.
    await mark_ended(match, reason, by=by, event=event if active else None, tx=tx)
    if not active:
        return None
    event.details["count"] = active
    return await event.insert(session=tx)


async def count_active(match: Mapping[str, Any], tx: Tx) -> int:
    """How many of the sessions that match are neither over nor expired."""
    return await Session.find({**match, **expiry.active_filter(clock.now())}, session=tx).count()


async def mark_ended(
    match: Mapping[str, Any],
    reason: Reason,
    *,
    by: Actor,
    event: Event | None = None,
    because: EndDetail | None = None,
    tx: Tx | None = None,
) -> int:
    """The write alone, for verbs that keep their own record, the event. How many it ended."""
    return await Session.change_all(
        {**match, "ended_at": None},
        {
            "$set": {
                "ended_at": clock.now(),
                "ended_reason": reason.value,
                **({"ended_because": because.value} if because else {}),
                "ended_by": user_ref(by.user_id),
                "ended_event": ref(EVENTS, event and event.id),
            }
        },
        tx=tx,
    )
