"""What the job `role_expiry` finds in the database: grants that have expired or will soon."""

from datetime import datetime
from typing import NamedTuple

from quartapp import clock
from quartapp.models.accounts.role_ends import RoleEnd
from quartapp.models.accounts.user import User

AT_ONCE = 100


class UserWithEnd(NamedTuple):
    """A user, and the end of one of the user's grants."""

    user: User
    end: RoleEnd


async def due() -> list[UserWithEnd]:
    """Return the grants that have expired, of at most AT_ONCE users; also ends whose role the user
    does not have, or that was deleted."""
    now = clock.now()
    users = await User.find({"role_ends.until": {"$lte": now}}, limit=AT_ONCE).to_list()
    return [UserWithEnd(u, end) for u in users for end in u.role_ends if end.until <= now]


async def warnings_due() -> list[UserWithEnd]:
    """Return the grants of which the user has to be warned now, of at most AT_ONCE users; also ends
    whose role the user does not have, again in each call until they are removed."""
    now = clock.now()
    users = await User.find({"role_ends.warn_at": {"$lte": now}}, limit=AT_ONCE).to_list()
    return [
        UserWithEnd(u, end)
        for u in users
        for end in u.role_ends
        if end.warn_at and end.warn_at <= now
    ]


async def next_time() -> datetime | None:
    """Return when the next grant expires or the next warning is due; None if there is neither.
    Times in the past do not count."""
    now = clock.now()
    times: list[datetime] = []
    for field, index in (("until", "role_ends"), ("warn_at", "role_warnings")):
        # The index has the times in order. A sort by a field of an array could not use it.
        ahead = {f"role_ends.{field}": {"$gt": now}}
        for user in await User.find(ahead, limit=1, hint=index).to_list():
            found = (getattr(end, field) for end in user.role_ends)
            times += [at for at in found if at and at > now]
    return min(times, default=None)
