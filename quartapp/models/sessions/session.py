"""Sessions, and the operations that end them. An ended session is kept to tell why it ended."""

from collections.abc import Collection, Mapping
from datetime import datetime, timedelta
from typing import Any, Self

from beanie import PydanticObjectId
from pydantic import Field
from pymongo import IndexModel, UpdateOne

from quartapp import clock
from quartapp.activities import REAUTHENTICATED, SESSION_ENDED, Activity
from quartapp.db.mongo import Tx
from quartapp.models.accounts.account import ForgottenBrowsers
from quartapp.models.audit.event import Event
from quartapp.models.authorization.transaction import authorized_transaction
from quartapp.models.base.actor import Actor
from quartapp.models.base.record import Record, documents
from quartapp.models.base.references import (
    EVENTS,
    SESSIONS,
    USERS,
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

SEEN_EVERY = timedelta(minutes=1)
KEPT = timedelta(days=30)
# How many sessions one transaction changes so that they forget their browser.
FORGOTTEN_AT_ONCE = 500


class Session(Record):
    """A device on which a user is signed in, found by the SHA-256 of the token in its cookie.

    It stores what it depends on: the roles that it has ever used, a fingerprint of the password,
    and the second factor that was shown. It is invalid once the user lacks one of these roles, has
    another password, or has a second factor while the session has shown none, no matter which
    program changed the user document. `authority.session_rule` decides this.
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
    # The path of the page that was opened last, and the name of the worker that serves its socket.
    page: str | None = None
    worker: str | None = None
    ended_at: datetime | None = None
    ended_reason: str | None = None
    ended_because: str | None = None
    ended_by: UserRef | None = None
    ended_event: EventRef | None = None

    class Settings:
        name = SESSIONS
        indexes = [
            IndexModel([("digest", 1)], name="by_token", unique=True),
            # A user can have many ended sessions, and has few others. The same is true for an IP
            # address.
            IndexModel(
                [("user.$id", 1), ("expires_at", 1)],
                name="not_ended_by_user",
                partialFilterExpression={"ended_at": None},
            ),
            IndexModel(
                [("ip", 1), ("expires_at", -1)],
                name="not_ended_by_ip",
                partialFilterExpression={"ended_at": None},
            ),
            # For `models.sessions.opening.is_known_browser`.
            IndexModel(
                [("user.$id", 1), ("browser", 1), ("credential", 1), ("created_at", -1)],
                name="by_browser",
            ),
            IndexModel(
                [("user.$id", 1), ("ip", 1), ("credential", 1), ("created_at", -1)], name="by_ip"
            ),
            IndexModel([("roles.$id", 1)], name="by_role"),
            IndexModel([("idle_seconds", 1), ("seen_at", -1), ("_id", -1)], name="by_idle_time"),
            IndexModel([("online_until", -1)], name="by_online", sparse=True),
            IndexModel(
                [("expires_at", 1)], name="kept", expireAfterSeconds=int(KEPT.total_seconds())
            ),
        ]

    async def confirm(self, *, by: Actor) -> str | None:
        """Mark the session as just re-authenticated and replace its token; return the new token.

        In an authorized transaction, which also records the event REAUTHENTICATED; raises
        SessionOver if the actor's session, which is usually this one, has ended, and RightsChanged.
        Returns None if another session has ended. Checks no password: the caller has. The old token
        no longer works; of two calls at once, only the token of the later one works. The caller
        waits until all workers know it and sets the cookie.
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
        """End the session, in an authorized transaction that manages its user; return the event
        SESSION_ENDED.

        The event has the reason and the device; with it, a barrier mark is inserted, for which the
        caller waits. Returns None, without either, if the session has ended or expired already; an
        expired one is marked as ended. Sends no notification and no email. Raises
        SessionOver and RightsChanged if the actor's own session is no longer valid, and
        MissingPermission if the user holds a permission that the actor lacks.

        If a user ends a session on another device (ENDED_BY_USER), the device may be lost: all of
        the user's sessions from the same browser, except the actor's, forget which browser they are
        from, so that it is no longer known. If these are more than FORGOTTEN_AT_ONCE, all other
        browsers of the user become unknown instead.
        """

        async def work(tx: Tx) -> Event | None:
            if reason is Reason.ENDED_BY_USER and self.id != by.session_id and self.browser:
                await self._forget_browser(by, tx)
            details = {"subject": self.user_id, "device": self.device}
            return await end_and_record(
                {"_id": self.id}, reason, SESSION_ENDED, by=by, tx=tx, **details
            )

        return await authorized_transaction(by, work, managing=self.user_id, ends_sessions=True)

    async def _forget_browser(self, by: Actor, tx: Tx) -> None:
        """Make the browser of this session unknown, in the caller's transaction.

        The user's sessions from it, except the actor's, forget it. If these are more than
        FORGOTTEN_AT_ONCE, all browsers become unknown instead, except that of the actor's session.
        """
        match = {
            "user.$id": self.user_id,
            "browser": self.browser,
            "_id": {"$ne": by.session_id},
        }
        ids = await Session.ids(match, limit=FORGOTTEN_AT_ONCE + 1, tx=tx)
        if len(ids) <= FORGOTTEN_AT_ONCE:
            await Session.change_all({"_id": {"$in": ids}}, {"$set": {"browser": None}}, tx=tx)
            return
        forgotten = ForgottenBrowsers(at=clock.now(), keep=by.session_id).model_dump()
        update = {"$set": {"browsers_forgotten": forgotten}}
        await documents(USERS).update_one({"_id": self.user_id}, update, session=tx)

    @property
    def user_id(self) -> PydanticObjectId:
        return linked_id(self.user)

    @classmethod
    async def of_user(cls, user_id: PydanticObjectId) -> list[Self]:
        """Return the user's active sessions, most recently used first."""
        match = {"user.$id": user_id, **expiry.active_filter(clock.now())}
        found = await cls.find(match).to_list()
        return sorted(found, key=lambda session: session.seen_at, reverse=True)

    @classmethod
    async def named(cls, ids: Collection[PydanticObjectId]) -> dict[PydanticObjectId, Self]:
        """Return the sessions of these ids that are still stored, by their ids. Also ended ones."""
        found = await cls.find({"_id": {"$in": list(ids)}}).to_list() if ids else []
        return {session.id: session for session in found}

    @classmethod
    async def record_use(cls, seen: Mapping[PydanticObjectId, tuple[datetime, str | None]]) -> None:
        """Store when and from which IP address sessions were last used, in one bulk write.

        Increments `uses`. Skips sessions that have ended, or that another worker has seen later.
        """
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
    def is_active(self) -> bool:
        """Whether it has neither ended nor expired. `authority.session_rule` has the other
        conditions.
        """
        deadline = expiry.deadline(self.expires_at, self.seen_at, self.idle_seconds)
        return self.ended_at is None and deadline > clock.now()

    @property
    def online(self) -> bool:
        """Whether a page of the session is open, as the worker that holds its socket last reported.
        False once that report is outdated."""
        return self.online_until is not None and self.online_until > clock.now()

    @classmethod
    async def mark_opened(
        cls, pages: Mapping[PydanticObjectId, str | None], *, worker: str, until: datetime
    ) -> None:
        """Store which page each of these sessions has opened on this worker, and that it is open
        until the given time, in one bulk write. Skips ended ones."""
        opened = {"online_until": until, "worker": worker}
        writes = [
            UpdateOne({"_id": session_id, "ended_at": None}, {"$set": {**opened, "page": page}})
            for session_id, page in pages.items()
        ]
        if writes:
            await cls.get_motor_collection().bulk_write(writes, ordered=False)

    @classmethod
    async def mark_online(cls, ids: Collection[PydanticObjectId], *, until: datetime) -> None:
        """Report that pages of these sessions are open, valid until the given time. Skips ended
        ones.
        """
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
    """End the matching sessions of the user `subject`, in an authorized transaction that manages
    them.

    Records an event of the activity, with `details` and the number of active sessions, and inserts
    a barrier mark, for which the caller waits. Returns the event; None, without an event, if none
    of the sessions was active; expired ones are marked as ended all the same. Sends no
    notification. Raises SessionOver, RightsChanged, and MissingPermission if the user holds a
    permission that the actor lacks.
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
    """The writes of `end_sessions`, for the caller's transaction, which inserts the barrier mark.

    Marks the matching sessions as ended, also those that have expired but were not marked. If at
    least one was active, inserts the audit event and returns it; else returns None.
    """
    event = Event.of(activity, by=by, subject=subject, reason=reason.value, **details)
    active = await count_active(match, tx)
    # Also marks sessions that have expired, if nothing has marked them yet.
    await mark_ended(match, reason, by=by, event=event if active else None, tx=tx)
    if not active:
        return None
    event.details["count"] = active
    return await event.insert(session=tx)


async def count_active(match: Mapping[str, Any], tx: Tx) -> int:
    """Return how many of the matching sessions have neither ended nor expired."""
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
    """Mark the matching sessions that are not marked yet as ended, also expired ones, and return
    how many these are.

    Stores the time, the reason with its detail, the actor and the event. Writes the sessions alone:
    the caller records the event and inserts the barrier mark.
    """
    ended = end_fields(
        reason, by=by.user_id, event=event and event.id, at=clock.now(), because=because
    )
    return await Session.change_all({**match, "ended_at": None}, {"$set": ended}, tx=tx)


def end_fields(
    reason: Reason,
    *,
    by: PydanticObjectId | None,
    event: PydanticObjectId | None,
    at: datetime,
    because: EndDetail | None = None,
) -> dict[str, Any]:
    """Return the fields that mark a session as ended. `by` is the id of the user who ended it, and
    `event` that of the audit event."""
    return {
        "ended_at": at,
        "ended_reason": reason.value,
        **({"ended_because": because.value} if because else {}),
        "ended_by": user_ref(by),
        "ended_event": ref(EVENTS, event),
    }
