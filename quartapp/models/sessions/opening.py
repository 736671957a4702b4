"""Opening a session, and recognizing the browsers in which a user has signed in before."""

from datetime import timedelta
from typing import Any, NamedTuple

from quartapp import clock
from quartapp.activities import SESSIONS_ENDED, SIGNED_IN
from quartapp.db.mongo import Tx, transaction
from quartapp.models.accounts.role_ends import expired_roles
from quartapp.models.accounts.user import User
from quartapp.models.audit.event import Event
from quartapp.models.base.actor import Actor
from quartapp.models.base.record import documents
from quartapp.models.base.references import ROLES, RoleRef, linked_id
from quartapp.models.base.tokens import new_token
from quartapp.models.factors.factor import Factor
from quartapp.models.roles.deletion import RoleDeletion
from quartapp.models.sessions import expiry
from quartapp.models.sessions.reason import Reason
from quartapp.models.sessions.session import Session, end_sessions


class Opened(NamedTuple):
    """A new session and the token for its cookie.

    `oldest_ended` is whether the user had too many sessions: then the caller waits until the end of
    the oldest ones is enforced.
    """

    session: Session
    token: str
    oldest_ended: bool


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
) -> Opened:
    """Create a session of the user, and return it with the token for its cookie.

    The token has 256 random bits (ASVS 7.2.3); the database has only its digest. One transaction
    takes deleted roles and those whose grants have expired from the user, which ends earlier
    sessions and notifies the user (`_bring_roles_up_to_date`), and inserts the session, which lists
    the other roles, and the event SIGNED_IN. It also queues an email to the user if they have other
    sessions on record, but none that `is_known_browser` finds for this `browser`: not without a
    `browser`, and not to an unverified address.

    Then a second transaction ends the user's oldest sessions beyond `at_most` (reason
    ENDED_BY_USER, event SESSIONS_ENDED). If it fails, the error is raised although the session
    exists. The caller calls `wait_until_enforced()` if `oldest_ended`, sets the cookie, and counts
    the sign-in.

    Checks nothing about the user, whom the caller has read. If the account is not active, or lost a
    role or changed its password since then, the new session is invalid from the start.
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
        session.roles = await _bring_roles_up_to_date(user, tx)
        if await _is_new_here(user, browser, tx):
            await user.queue_email(SIGNED_IN, tx, device=device, ip=by.ip)
        await session.insert(session=tx)
        event = Event.of(SIGNED_IN, by=by, subject=user.id, device=device)
        event.session = session.id
        await event.insert(session=tx)

    await transaction(work)
    oldest_ended = await _end_oldest(user, keep=at_most, by=by)
    return Opened(session, token, oldest_ended)


async def is_known_browser(
    user: User | None,
    *,
    browser: str | None = None,
    ip: str | None = None,
    tx: Tx | None = None,
) -> bool:
    """Return whether the user has a session on record, active or not, from this browser, or without
    a `browser` from this IP address.

    Sessions are on record for about a month after their end. They count only if they were opened
    with the present password, and after the last `User.forget_browsers` (except the one it kept).
    Pass one of `browser` and `ip`: with neither, sessions without an IP address match. Without a
    user it also sends the query, to take as long, and returns False.
    """
    whence = {"browser": browser} if browser else {"ip": ip}
    match: dict[str, Any] = {"user.$id": user and user.id, **whence}
    if user:
        match["credential"] = user.credential
        if forgotten := user.browsers_forgotten:
            # As the outer condition, each part of it is answered by an index.
            later = {**match, "created_at": {"$gt": forgotten.at}}
            match = {"$or": [later, {**match, "_id": forgotten.keep}]}
    return await Session.get_motor_collection().find_one(match, {"_id": 1}, session=tx) is not None


async def _end_oldest(user: User, *, keep: int, by: Actor) -> bool:
    """End the user's oldest active sessions but for the newest `keep`, with the effects of
    `end_sessions`. Return whether there were more, also if another request has ended them
    meanwhile.
    """
    # Runs after the commit of the new session, so that of several sign-ins at once the last one
    # finds all of their sessions. Sessions with another password, or without the factor that the
    # user has, are invalid and do not count.
    theirs: dict[str, Any] = {
        "user.$id": user.id,
        "credential": user.credential,
        **expiry.active_filter(clock.now()),
    }
    if user.factors:
        theirs["factor"] = {"$ne": None}
    # Sorted here, because no index has them in this order: there are only a few more than `keep`.
    rows = await Session.get_motor_collection().find(theirs, {"created_at": 1}).to_list(None)
    rows.sort(key=lambda row: (row["created_at"], row["_id"]), reverse=True)
    surplus = [row["_id"] for row in rows[keep:]]
    if surplus:
        match = {"_id": {"$in": surplus}}
        reason = Reason.ENDED_BY_USER
        await end_sessions(match, reason, SESSIONS_ENDED, by=by, subject=user.id)
    return bool(surplus)


async def _is_new_here(user: User, browser: str | None, tx: Tx) -> bool:
    """Return whether the user has sessions on record, but none from this browser; False for no
    browser.
    """
    sessions, theirs = Session.get_motor_collection(), {"user.$id": user.id}
    if browser is None or not await sessions.find_one(theirs, {"_id": 1}, session=tx):
        return False
    return not await is_known_browser(user, browser=browser, tx=tx)


async def _bring_roles_up_to_date(user: User, tx: Tx) -> list[RoleRef]:
    """Record the grants of the user that have expired (`User.expire_in_transaction`), take deleted
    roles from the user (`RoleDeletion.remove_role_from`), and return the other roles of the user.

    Both notify the user. A session of a user who still has a link to a deleted role is invalid, so
    the user could not sign in otherwise. Recording an expired grant later would end the new
    session. A link that another program left behind is left out of the answer as well.
    """
    now = clock.now()
    for end in [each for each in user.role_ends if each.until <= now]:
        await user.expire_in_transaction(end, tx=tx)
    expired = expired_roles(user.__dict__, now)
    collection = documents(ROLES)
    ids = {linked_id(role) for role in user.roles}
    match = {"_id": {"$in": list(ids)}}
    found = {row["_id"] async for row in collection.find(match, {"_id": 1}, session=tx)}
    for deletion in await RoleDeletion.of_roles(ids - found, tx=tx):
        await deletion.remove_role_from([user.id], tx)
    return [role for role in user.roles if linked_id(role) in found - expired]
