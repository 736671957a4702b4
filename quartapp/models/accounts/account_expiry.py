"""The last day of an account, at whose end, by UTC, nobody comes in by it any more.

The moment stands in the user's document, and the session rule compares it with the clock: no
worker has to do anything for the account to be disabled. The functions here record it.
"""

from datetime import UTC, date, datetime, time, timedelta

from quartapp import clock
from quartapp.db.mongo import Tx
from quartapp.models.accounts.administrators import (
    active_administrators,
    administering,
    count_administrators,
    require_an_administrator,
)
from quartapp.models.accounts.user import User
from quartapp.models.audit.event import Event, Verb
from quartapp.models.authorization.transaction import authorized_transaction
from quartapp.models.base.actor import NOBODY, Actor
from quartapp.models.base.write_lock import hold_administrators
from quartapp.models.notifications.notice import Kind
from quartapp.models.sessions.reason import Because, Reason
from quartapp.models.sessions.session import mark_ended

AT_MOST = timedelta(days=3660)
AT_ONCE = 100


def closing(day: date) -> datetime:
    """The moment at which the day is over."""
    return datetime.combine(day + timedelta(days=1), time(), UTC)


def is_possible(day: date) -> bool:
    """Whether it can be a last day: today at the earliest, and not more than ten years away."""
    today = clock.now().date()
    return today <= day <= today + AT_MOST


async def appoint(user: User, day: date, *, by: Actor) -> Event | None:
    """Makes this the last day of the account; None if it was, or the account is disabled.

    Raises LastAdministrator for the last one who has no last day.
    """
    at = closing(day)

    async def work(tx: Tx) -> Event | None:
        await hold_administrators(tx)
        before = await count_administrators(tx)
        match = {"_id": user.id, "disabled_at": None, "closes_at": {"$ne": at}}
        if not await User.change(match, {"$set": {"closes_at": at}}, tx=tx):
            return None
        await require_an_administrator(before, tx)
        await user.notify(Kind.LAST_DAY_SET, tx, by=by.username, day=day.isoformat())
        return await Event.record(
            Verb.LAST_DAY_SET, by=by, subject=user.id, tx=tx, day=day.isoformat()
        )

    return await authorized_transaction(by, work, managing=user.id)


async def lift(user: User, *, by: Actor) -> Event | None:
    """The account stays after all; None if it had no last day, or is disabled."""

    async def work(tx: Tx) -> Event | None:
        match = {"_id": user.id, "disabled_at": None, "closes_at": {"$ne": None}}
        return await _lift(user, match, by=by, tx=tx)

    return await authorized_transaction(by, work, managing=user.id)


async def due() -> list[User]:
    """Whose last day is over and not on record yet, the latest first."""
    over = {"disabled_at": None, "closes_at": {"$lte": clock.now()}}
    return await User.find(over, sort="-closes_at", limit=AT_ONCE).to_list()


async def next_closing() -> datetime | None:
    """When the next account closes."""
    ahead = {"disabled_at": None, "closes_at": {"$gt": clock.now()}}
    found = await User.find(ahead, sort="closes_at", limit=1).to_list()
    return found[0].closes_at if found else None


async def close(user: User) -> Event | None:
    """Disables one of those due as of the moment at which the account closed; None for all but one
    of those who do so at once.

    The last administrator stays instead: no verb brings them here, but a hand in the database may.
    """
    moment = {"disabled_at": None, "closes_at": user.closes_at}
    day = user.last_day.isoformat() if user.last_day else None

    async def work(tx: Tx) -> Event | None:
        await hold_administrators(tx)
        if not await active_administrators(tx=tx) and await User.find_one(
            {"_id": user.id, **await administering(tx)}, session=tx
        ):
            match = {"_id": user.id, **moment}
            return await _lift(user, match, by=NOBODY, tx=tx, why="the last administrator")
        closed = {"disabled_at": user.closes_at, "closes_at": None}
        if not await user.change_authority(moment, {"$set": closed}, by=NOBODY, tx=tx):
            return None
        event = Event.of(Verb.USER_DISABLED, by=NOBODY, subject=user.id, last_day=day)
        mine = {"user.$id": user.id}
        reason, because = Reason.ACCOUNT_DISABLED, Because.LAST_DAY
        await mark_ended(mine, reason, by=NOBODY, event=event, because=because, tx=tx)
        await user.notify(Kind.LAST_DAY_OVER, tx, day=day)
        return await event.insert(session=tx)

    return await authorized_transaction(NOBODY, work, ends_sessions=True)


async def _lift(
    user: User, match: dict[str, object], *, by: Actor, tx: Tx, why: str | None = None
) -> Event | None:
    if not await User.change(match, {"$set": {"closes_at": None}}, tx=tx):
        return None
    await user.notify(Kind.LAST_DAY_LIFTED, tx, by=by.username)
    details = {"why": why} if why else {}
    return await Event.record(Verb.LAST_DAY_LIFTED, by=by, subject=user.id, tx=tx, **details)
