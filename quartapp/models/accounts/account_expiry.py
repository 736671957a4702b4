"""Account expiry: a date at whose end (UTC) the account counts as disabled.

The moment is stored in the user's document as `closes_at`, and the session rule compares it with
the clock, so the account expires on time also if no worker runs. `set_expiry` and `remove_expiry`
change it, and `disable_expired` disables an account for which it has passed.

These three write in an `authorized_transaction`, notify the user and record an event. They queue
no email, except that of the notification if the user has chosen it, and do not update the user
object that they were called with. The caller waits with
`wait_until_enforced`. `set_expiry` and `remove_expiry` act for a person or the command line: they
raise SessionOver or RightsChanged if the actor's session has ended or has lost a permission, and
MissingPermission if the user holds a permission that the actor lacks.
"""

from datetime import UTC, date, datetime, time, timedelta

from quartapp import clock
from quartapp.activities import ACCOUNT_EXPIRED, EXPIRY_REMOVED, EXPIRY_SET, EXPIRY_SKIPPED
from quartapp.db.mongo import Tx
from quartapp.models.accounts import status
from quartapp.models.accounts.administrators import (
    LAST_ADMINISTRATOR,
    active_administrators,
    administering,
    count_administrators,
    require_an_administrator,
)
from quartapp.models.accounts.user import User
from quartapp.models.audit.event import Event
from quartapp.models.audit.recording import record
from quartapp.models.authorization.transaction import authorized_transaction
from quartapp.models.base.actor import SYSTEM, Actor
from quartapp.models.base.write_lock import hold_administrators
from quartapp.models.sessions.reason import EndDetail, Reason
from quartapp.models.sessions.session import mark_ended

AT_MOST = timedelta(days=3660)
AT_ONCE = 100


def end_of(day: date) -> datetime:
    """Return the moment at which the day is over (UTC)."""
    return datetime.combine(day + timedelta(days=1), time(), UTC)


def is_possible(day: date) -> bool:
    """Return whether an account can expire on this day: today, or at most AT_MOST from now."""
    today = clock.now().date()
    return today <= day <= today + AT_MOST


async def set_expiry(user: User, day: date, *, by: Actor) -> Event | None:
    """Let the account expire at the end of this day (UTC), notify the user, and return the event
    EXPIRY_SET.

    In an authorized transaction that manages the user, without a barrier mark. Replaces another
    expiry; an account that has expired is active again, until `disable_expired` has disabled it. A
    deactivated account gets the expiry too. Returns None, without a change, if that is its expiry
    already, or the account is disabled or does not exist any more. Does not check that the day is
    possible (`is_possible`).

    Raises LastAdministrator, without a change, if the user was the last active administrator whose
    account never expires, or if no administrator would be active any more.
    """
    at = end_of(day)

    async def work(tx: Tx) -> Event | None:
        await hold_administrators(tx)
        before = await count_administrators(tx)
        match = {"_id": user.id, "disabled_at": None, "closes_at": {"$ne": at}}
        if not await User.change(match, {"$set": {"closes_at": at}}, tx=tx):
            return None
        await require_an_administrator(before, tx)
        return await record(EXPIRY_SET, user, by=by, tx=tx, day=day.isoformat())

    return await authorized_transaction(by, work, managing=user.id)


async def remove_expiry(user: User, *, by: Actor) -> Event | None:
    """Remove the expiry of the account, notify the user, and return the event EXPIRY_REMOVED.

    In an authorized transaction that manages the user, without a barrier mark. An account that has
    expired is active again, unless `disable_expired` has disabled it. Returns None, without a
    change, if the account has no expiry or is disabled.
    """

    async def work(tx: Tx) -> Event | None:
        match = {"_id": user.id, "disabled_at": None, "closes_at": {"$ne": None}}
        if not await User.change(match, {"$set": {"closes_at": None}}, tx=tx):
            return None
        return await record(EXPIRY_REMOVED, user, by=by, tx=tx)

    return await authorized_transaction(by, work, managing=user.id)


async def due() -> list[User]:
    """Return at most AT_ONCE users whose account has expired and is not disabled yet, the latest
    expiry first. Deactivated accounts too."""
    over = {"disabled_at": None, **status.expired_filter(clock.now())}
    return await User.find(over, sort="-closes_at", limit=AT_ONCE).to_list()


async def next_expiry() -> datetime | None:
    """Return when the next account expires that is not disabled; None if none does. Expiries in the
    past do not count."""
    ahead = {"disabled_at": None, "closes_at": {"$gt": clock.now()}}
    found = await User.find(ahead, sort="closes_at", limit=1).to_list()
    return found[0].closes_at if found else None


async def disable_expired(user: User) -> Event | None:
    """Disable an account that has expired, as of that moment, and return the event ACCOUNT_EXPIRED.

    `user` is one that `due` has returned; whether the account has expired is not checked again. In
    one transaction of SYSTEM, moves the moment from `closes_at` to `disabled_at`, increments
    `authz_version`, ends all sessions of the user (reason ACCOUNT_DISABLED, detail EXPIRED),
    notifies the user and inserts a barrier mark. Known browsers stay known.

    If no administrator is active and the user has that role, removes the expiry instead, ends no
    session, notifies the user, inserts a barrier mark as well and returns the event EXPIRY_SKIPPED.
    Only an edit of the database by hand can lead to this.

    Returns None, without a change, if the account is disabled by now, as by another worker, its
    expiry was changed, or it does not exist any more.
    """
    moment = {"disabled_at": None, "closes_at": user.closes_at}
    day = user.expires_on.isoformat() if user.expires_on else None

    async def work(tx: Tx) -> Event | None:
        await hold_administrators(tx)
        if not await active_administrators(tx=tx) and await User.find_one(
            {"_id": user.id, **await administering(tx)}, session=tx
        ):
            match = {"_id": user.id, **moment}
            if not await User.change(match, {"$set": {"closes_at": None}}, tx=tx):
                return None
            return await record(EXPIRY_SKIPPED, user, by=SYSTEM, tx=tx, why=LAST_ADMINISTRATOR)
        disabled = {"disabled_at": user.closes_at, "closes_at": None}
        if not await user.change_authority(moment, {"$set": disabled}, by=SYSTEM, tx=tx):
            return None
        event = Event.of(ACCOUNT_EXPIRED, by=SYSTEM, subject=user.id, last_day=day)
        mine = {"user.$id": user.id}
        reason, because = Reason.ACCOUNT_DISABLED, EndDetail.EXPIRED
        await mark_ended(mine, reason, by=SYSTEM, event=event, because=because, tx=tx)
        words = {"day": day}
        return await record(ACCOUNT_EXPIRED, user, by=SYSTEM, tx=tx, event=event, words=words)

    return await authorized_transaction(SYSTEM, work, ends_sessions=True)
