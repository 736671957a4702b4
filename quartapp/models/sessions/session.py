"""Sessions: one signed-in device. Ended, not deleted, so that the reason can still be told."""

import hashlib
import secrets
from collections.abc import AsyncIterator, Callable, Collection, Coroutine, Mapping
from datetime import datetime, timedelta
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Self, TypeVar

from beanie import Link, PydanticObjectId, SortDirection
from pydantic import Field
from pymongo import IndexModel, UpdateOne

from quartapp import clock
from quartapp.db.mongo import Session as Tx
from quartapp.db.mongo import transaction
from quartapp.models.audit.event import ENDING, Event, Verb
from quartapp.models.authorization.privileges import require_to_manage, usable
from quartapp.models.base.actor import Actor
from quartapp.models.base.record import Record
from quartapp.models.base.references import DomainError, linked_id, ref
from quartapp.models.email.outbox import Letter
from quartapp.models.factors.factor import Factor, has_shown_one

if TYPE_CHECKING:
    from quartapp.models.accounts.user import User
    from quartapp.models.roles.role import Role

T = TypeVar("T")
DESCENDING = SortDirection.DESCENDING
SEEN_EVERY = timedelta(minutes=1)
KEPT = timedelta(days=30)
TOKEN_LENGTH = 43


class Reason(StrEnum):
    """Why a session is over."""

    SIGNED_OUT = "signed_out"
    ENDED_BY_USER = "ended_by_user"
    ENDED_BY_ADMIN = "ended_by_admin"
    ROLE_REVOKED = "role_revoked"
    ROLE_DELETED = "role_deleted"
    PASSWORD_CHANGED = "password_changed"  # noqa: S105
    FACTOR_REQUIRED = "factor_required"
    EMAIL_UNVERIFIED = "email_unverified"
    ACCOUNT_DISABLED = "account_disabled"
    EXPIRED = "expired"

    def message(
        self, by: str | None, *, own: bool = False, because: "Because | None" = None
    ) -> str:
        """The sentence that the person who was signed out reads; `own` if they did it."""
        texts = MESSAGES | OWN_MESSAGES if own else MESSAGES
        text = BECAUSE_MESSAGES[because] if because and not own else texts[self]
        return text.format(by=by or "An administrator")


class Because(StrEnum):
    """What a disabled account is, where it is more than that. Reasons are names that programs
    know, so this stands beside them, for people."""

    LAST_DAY = "last_day"
    DELETED = "deleted"


MESSAGES = {
    Reason.SIGNED_OUT: "You signed out.",
    Reason.ENDED_BY_USER: "You ended this session from another device.",
    Reason.ENDED_BY_ADMIN: "{by} ended your session.",
    Reason.ROLE_REVOKED: "{by} took a role from you. Sign in again to go on with the others.",
    Reason.ROLE_DELETED: "{by} deleted a role that you held. Sign in again to go on.",
    Reason.PASSWORD_CHANGED: "The password of your account was changed. Sign in with the new one.",
    Reason.FACTOR_REQUIRED: "Your account asks for a second factor now. Sign in again with it.",
    Reason.EMAIL_UNVERIFIED: "Your email address has to be verified. Sign in to verify it.",
    Reason.ACCOUNT_DISABLED: "{by} disabled your account.",
    Reason.EXPIRED: "Your session expired. Sign in again to go on.",
}
BECAUSE_MESSAGES = {
    Because.LAST_DAY: "The last day of your account is over.",
    Because.DELETED: "{by} closed your account, and it will be deleted.",
}
OWN_MESSAGES = {Reason.ACCOUNT_DISABLED: "You closed your account."}


class Session(Record):
    """One signed-in device, found by the SHA-256 of the token in its cookie.

    It remembers what it was built on, and is over when that is gone, whoever took it away and
    however: the roles it has acted with, and a fingerprint of the password it was opened under.
    One that was opened without a second factor is over when its user has one.
    `authority.session_rule` holds the rule.
    """

    digest: str = Field(repr=False)
    user: Link["User"]
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
    roles: list[Link["Role"]] = []
    uses: int = 0
    acts: int = 0
    online_until: datetime | None = None
    ended_at: datetime | None = None
    ended_reason: str | None = None
    ended_because: str | None = None
    ended_by: Link["User"] | None = None
    ended_event: Link[Event] | None = None

    class Settings:
        name = "sessions"
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

    @classmethod
    async def start(
        cls,
        user: "User",
        *,
        device: str,
        by: Actor,
        idle: timedelta,
        lifetime: timedelta,
        remembered: bool = False,
        factor: Factor | None = None,
        browser: str | None = None,
        at_most: int = 20,
    ) -> tuple["Session", str]:
        """Opens a session for the user as just read, and returns it with its token.

        The token is a random 256 bits (ASVS 7.2.3) and stands nowhere but in the answer. A user
        who was disabled, lost a role or got a new password since `user` was read has opened a
        session that is over already. Past `at_most` sessions the oldest ones are ended. A letter
        tells of a `browser` (what it is known again by) that had no session of this user yet.
        """
        token, digest = new_token()
        now = clock.now()
        session = cls(
            digest=digest,
            user=user,  # type: ignore[arg-type]
            device=device,
            browser=browser,
            ip=by.ip,
            created_at=now,
            seen_at=now,
            expires_at=now + lifetime,
            idle_seconds=int(idle.total_seconds()),
            remembered=remembered,
            factor=factor,
            confirmed_at=now,
            credential=user.credential,
        )

        async def work(tx: Tx) -> None:
            session.roles = await _existing(user.roles, tx)
            if await _is_new_here(user, browser, tx):
                await user.write(Letter.SIGNED_IN, tx, device=device, ip=by.ip)
            await session.insert(session=tx)
            event = Event.of(Verb.SESSION_STARTED, by=by, subject=user.id, device=device)
            event.session = session.id
            await event.insert(session=tx)

        await transaction(work)
        await cls._end_oldest(user, keep=at_most, by=by)
        return session, token

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
                await Event.record(Verb.SESSION_CONFIRMED, by=by, subject=self.user_id, tx=tx)
            return changed

        return token if await acting(by, work) else None

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
            match, verb = {"_id": self.id}, Verb.SESSION_ENDED
            return await end_and_record(
                match, reason, verb, by=by, subject=self.user_id, tx=tx, device=self.device
            )

        return await acting(by, work, managing=self.user_id)

    @property
    def user_id(self) -> PydanticObjectId:
        return linked_id(self.user)

    @classmethod
    async def is_known(
        cls,
        user: "User | None",
        *,
        browser: str | None = None,
        ip: str | None = None,
        tx: Tx | None = None,
    ) -> bool:
        """Return whether the user has signed in from this browser or address within about a month.

        Only with the password that the account has now, and not before its browsers were
        forgotten (see `User.forget_browsers`). Without a user the database is asked as well, so
        that it takes as long.
        """
        whence = {"browser": browser} if browser else {"ip": ip}
        match: dict[str, Any] = {"user.$id": user and user.id, **whence}
        if user:
            match["credential"] = user.credential
            if forgotten := user.browsers_forgotten:
                kept = {"_id": forgotten.keep}
                match["$or"] = [{"created_at": {"$gt": forgotten.at}}, kept]
        return await cls.find_one(match, session=tx) is not None

    @classmethod
    async def of_user(cls, user_id: PydanticObjectId) -> list[Self]:
        """The living ones, the last used first; there are at most as many as a user may have."""
        return await cls.find({"user.$id": user_id, **alive()}, sort="-seen_at").to_list()

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
        match: dict[str, Any] = alive()
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
        """Whether it is neither ended nor past its time. Whether it counts, `principal` says."""
        idle_until = self.seen_at + timedelta(seconds=self.idle_seconds)
        return self.ended_at is None and min(self.expires_at, idle_until) > clock.now()

    @property
    def online(self) -> bool:
        """Whether a page of it is open on some worker, as of that worker's last look."""
        return self.online_until is not None and self.online_until > clock.now()

    @classmethod
    async def say_online(cls, ids: Collection[PydanticObjectId], *, until: datetime) -> None:
        match = {"_id": {"$in": list(ids)}, "ended_at": None}
        await cls.change_all(match, {"$set": {"online_until": until}})

    @classmethod
    async def _end_oldest(cls, user: "User", *, keep: int, by: Actor) -> None:
        # After the commit of the new one, so that of sign-ins at once the last sees them all.
        # Sessions of another password, or without the factor that the user has, are over and do
        # not count.
        theirs: dict[str, Any] = {"user.$id": user.id, "credential": user.credential, **alive()}
        if user.factors:
            theirs["factor"] = {"$ne": None}
        surplus = await cls.find(
            theirs,
            sort=[("created_at", DESCENDING), ("_id", DESCENDING)],
            skip=keep,
        ).to_list()
        if surplus:
            match = {"_id": {"$in": [session.id for session in surplus]}}
            reason, verb = Reason.ENDED_BY_USER, Verb.SESSIONS_ENDED
            await end_sessions(match, reason, verb, by=by, subject=user.id)


async def _is_new_here(user: "User", browser: str | None, tx: Tx) -> bool:
    """Whether others have signed in to this account, but not this browser."""
    sessions, theirs = Session.get_motor_collection(), {"user.$id": user.id}
    if browser is None or not await sessions.find_one(theirs, {"_id": 1}, session=tx):
        return False
    return not await Session.is_known(user, browser=browser, tx=tx)


async def _existing(roles: Collection[Link["Role"]], tx: Tx) -> list[Link["Role"]]:
    """Those not deleted. A link that some other program left behind gives nothing, so a session
    cannot lose it: it would be over from the start, and its user shut out."""
    collection = Session.get_motor_collection().database["roles"]
    match = {"_id": {"$in": [linked_id(role) for role in roles]}}
    found = {row["_id"] async for row in collection.find(match, {"_id": 1}, session=tx)}
    return [role for role in roles if linked_id(role) in found]


class SessionOver(DomainError):
    """The session in which something was begun ended before it was done."""

    def __init__(self, session_id: PydanticObjectId) -> None:
        self.session_id = session_id
        super().__init__("Your session ended before this was done, so nothing was changed.")


class RightsChanged(DomainError):
    """A permission that the actor came with was taken away before it was done."""

    def __init__(self) -> None:
        super().__init__("Your permissions changed before this was done, so nothing was changed.")


async def acting(
    by: Actor,
    work: Callable[[Tx], Coroutine[Any, Any, T]],
    *,
    managing: PydanticObjectId | None = None,
) -> T:
    """`transaction(work)`, if the actor's authority lasts until the commit.

    A request may be slow, and what was taken away meanwhile must not be used at its end. So each
    transaction writes the actor's session, which makes it and the end of that session exclude each
    other. Raises SessionOver and RightsChanged. An event that ends sessions gets its mark here.

    `managing` is the user whose account is changed. Raises MissingPermission if that is another
    user who holds a permission that the actor does not hold.
    """

    async def checked(tx: Tx) -> T:
        if by.session_id is not None:
            living = {"_id": by.session_id, "ended_at": None}
            if not await Session.change(living, {"$inc": {"acts": 1}}, tx=tx):
                raise SessionOver(by.session_id)
            await _require_permissions(by, tx)
        if managing is not None:
            await require_to_manage(by, managing, tx)
        done = await work(tx)
        if isinstance(done, Event) and done.verb in ENDING:
            await done.mark(tx, asker=by.worker)
        return done

    return await transaction(checked)


async def _require_permissions(by: Actor, tx: Tx) -> None:
    database = Session.get_motor_collection().database
    user = await database["users"].find_one({"_id": by.user_id}, session=tx) or {}
    closes_at = user.get("closes_at")
    if by.session_id is not None and closes_at is not None and closes_at <= clock.now():
        raise SessionOver(by.session_id)
    if user.get("authz_version") == by.version:
        return
    session = await database["sessions"].find_one({"_id": by.session_id}, session=tx) or {}
    held = await usable(user, shown=has_shown_one(session, user), tx=tx)
    if not by.permissions <= held.permissions:
        raise RightsChanged


async def end_sessions(
    match: Mapping[str, Any],
    reason: Reason,
    verb: Verb,
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
        return await end_and_record(match, reason, verb, by=by, subject=subject, tx=tx, **details)

    return await acting(by, work, managing=subject)


async def end_and_record(
    match: Mapping[str, Any],
    reason: Reason,
    verb: Verb,
    *,
    by: Actor,
    subject: PydanticObjectId,
    tx: Tx,
    **details: Any,
) -> Event | None:
    """The writes of `end_sessions`, for a transaction that does more."""
    event = Event.of(verb, by=by, subject=subject, reason=reason.value, **details)
    active = await count_active(match, tx)
    # Those that have expired are not active, but nothing may have marked them yet.
    await mark_ended(match, reason, by=by, event=event if active else None, tx=tx)
    if not active:
        return None
    event.details["count"] = active
    return await event.insert(session=tx)


async def count_active(match: Mapping[str, Any], tx: Tx) -> int:
    """How many of the sessions that match are neither over nor expired."""
    return await Session.find({**match, **alive()}, session=tx).count()


async def mark_ended(
    match: Mapping[str, Any],
    reason: Reason,
    *,
    by: Actor,
    event: Event | None = None,
    because: Because | None = None,
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
                "ended_by": ref("users", by.user_id),
                "ended_event": ref("events", event and event.id),
            }
        },
        tx=tx,
    )


def alive(now: datetime | None = None) -> dict[str, Any]:
    """The filter for sessions that are neither ended, nor past their time, nor idle too long."""
    now = now or clock.now()
    idle_since = {"$add": ["$seen_at", {"$multiply": ["$idle_seconds", 1000]}]}
    return {
        "ended_at": None,
        "expires_at": {"$gt": now},
        "$expr": {"$gt": [idle_since, now]},
    }


def new_token() -> tuple[str, str]:
    """A random token of 256 bits, and the digest by which it is kept."""
    token = secrets.token_urlsafe(32)
    return token, digest_of(token)


def digest_of(token: str) -> str:
    """SHA-256: enough for a random token, and the same in every worker."""
    return hashlib.sha256(token.encode()).hexdigest()


def fingerprint(password_hash: str) -> str:
    """Return what tells one password hash from another, and nothing else about it."""
    return hashlib.sha256(password_hash.encode()).hexdigest()[:32]


def credential_of(user: Mapping[str, Any]) -> str:
    """Return what tells one password of a user from another, as the user's document says it.

    What was opened under another password is over: sessions, links, the second step of a sign-in.
    It is the fingerprint of the first hash that the password had here. When the same password is
    hashed anew, the document keeps it beside the fingerprint of the new hash; a hash that any other
    program writes does not fit that, and is another password.
    """
    mark = fingerprint(user["password_hash"])
    kept = user.get("kept_credential") or {}
    return kept["credential"] if kept.get("hash") == mark else mark
