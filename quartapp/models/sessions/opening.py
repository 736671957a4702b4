"""Opening a session, and recognizing the browsers that a user has signed in with."""

from collections.abc import Collection
from datetime import timedelta
from typing import Any

from beanie import SortDirection

from quartapp import clock
from quartapp.activities import SESSIONS_ENDED, SIGNED_IN
from quartapp.db.mongo import Tx, transaction
from quartapp.models.accounts.user import User
from quartapp.models.audit.event import Event
from quartapp.models.base.actor import Actor
from quartapp.models.base.record import documents
from quartapp.models.base.references import ROLES, RoleRef, linked_id
from quartapp.models.base.tokens import new_token
from quartapp.models.factors.factor import Factor
from quartapp.models.sessions import expiry
from quartapp.models.sessions.reason import Reason
from quartapp.models.sessions.session import Session, end_sessions

DESCENDING = SortDirection.DESCENDING


async def open_session(
    user: User,
    *,
    device: str,
    by: Actor,
    idle: timedelta,
    lifetime: timedelta,
    remembered: bool = False,
    factor: Factor | None = None,
    browser: str | None = None,
    at_most: int = 20,
) -> tuple[Session, str]:
    """Opens a session for the user as just read, and returns it with its token.

    The token is a random 256 bits (ASVS 7.2.3) and stands nowhere but in the answer. A user
    who was disabled, lost a role or got a new password since `user` was read has opened a
    session that is over already. Past `at_most` sessions the oldest ones are ended. A letter
    tells of a `browser` (what it is known again by) that had no session of this user yet.
    """
    token, digest = new_token()
    now = clock.now()
    session = Session(
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
            await user.queue_email(SIGNED_IN, tx, device=device, ip=by.ip)
        await session.insert(session=tx)
        event = Event.of(SIGNED_IN, by=by, subject=user.id, device=device)
        event.session = session.id
        await event.insert(session=tx)

    await transaction(work)
    await _end_oldest(user, keep=at_most, by=by)
    return session, token


async def is_known_browser(
    user: User | None,
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
    return await Session.find_one(match, session=tx) is not None


async def _end_oldest(user: User, *, keep: int, by: Actor) -> None:
    # After the commit of the new one, so that of sign-ins at once the last sees them all.
    # Sessions of another password, or without the factor that the user has, are over and do
    # not count.
    theirs: dict[str, Any] = {
        "user.$id": user.id,
        "credential": user.credential,
        **expiry.active_filter(clock.now()),
    }
    if user.factors:
        theirs["factor"] = {"$ne": None}
    surplus = await Session.find(
        theirs,
        sort=[("created_at", DESCENDING), ("_id", DESCENDING)],
        skip=keep,
    ).to_list()
    if surplus:
        match = {"_id": {"$in": [session.id for session in surplus]}}
        reason = Reason.ENDED_BY_USER
        await end_sessions(match, reason, SESSIONS_ENDED, by=by, subject=user.id)


async def _is_new_here(user: User, browser: str | None, tx: Tx) -> bool:
    """Whether others have signed in to this account, but not this browser."""
    sessions, theirs = Session.get_motor_collection(), {"user.$id": user.id}
    if browser is None or not await sessions.find_one(theirs, {"_id": 1}, session=tx):
        return False
    return not await is_known_browser(user, browser=browser, tx=tx)


async def _existing(roles: Collection[RoleRef], tx: Tx) -> list[RoleRef]:
    """Those not deleted. A link that some other program left behind gives nothing, so a session
    cannot lose it: it would be over from the start, and its user shut out."""
    collection = documents(ROLES)
    match = {"_id": {"$in": [linked_id(role) for role in roles]}}
    found = {row["_id"] async for row in collection.find(match, {"_id": 1}, session=tx)}
    return [role for role in roles if linked_id(role) in found]
