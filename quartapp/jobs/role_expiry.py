"""A background task that records when a grant of a role expires, and warns the user before.

The session rule refuses sessions that use an expired grant whether this has run or not. This takes
the role from the user, records it in the audit log, and closes open pages at once rather than at
the next sweep.
"""

from __future__ import annotations

from datetime import datetime

from quartapp.activities import ROLE_EXPIRED
from quartapp.jobs.deadlines import DeadlineTask
from quartapp.log import log
from quartapp.models import User
from quartapp.models.accounts import role_expiry
from quartapp.models.accounts.role_ends import RoleEnd


class RoleExpiry(DeadlineTask):
    """Runs in each worker. A conditional update lets one worker record each expiry."""

    name = "role expiry"
    field = "role_ends"
    failure = "role_ends_not_read"

    async def run(self) -> None:
        await expire_grants()
        await warn_users()

    async def next_time(self) -> datetime | None:
        return await role_expiry.next_time()


async def expire_grants() -> None:
    """Record the grants that have expired, which ends the sessions of their users, and log
    `authz_change` for each that this worker recorded.

    The last administrator keeps the role: the end is removed, and the error
    `last_administrator_stays` is logged. An end whose role the user does not have is removed
    without a record. A failure is logged as the warning `role_expiry_failed`, and the next grant is
    tried. Raises only what the driver raises when it reads the list.

    Repeats while there are more than AT_ONCE users and something was done.
    """
    more = True
    while more:
        found = await role_expiry.due()
        done = [await _expire(user, end) for user, end in found]
        more = len(found) >= role_expiry.AT_ONCE and any(done)


async def _expire(user: User, end: RoleEnd) -> bool:
    """Record that the grant has expired, and log it (see `expire_grants`). Return True, also if
    another worker has recorded it; False after a failure, which is logged."""
    try:
        event = await user.expire_grant(end)
    except Exception as error:
        log.warning("role_expiry_failed", user=user.username, error=type(error).__name__)
        return False
    if event and event.verb == ROLE_EXPIRED.audit:
        log.info("authz_change", user=user.username, expired=event.details["role"])
    elif event:
        log.error("last_administrator_stays", user=user.username)
    return True


async def warn_users() -> None:
    """Notify the users whose roles end soon, each grant once. A failure is logged as the warning
    `role_warning_failed`, and the next user is tried. Raises only what the driver raises when it
    reads the list."""
    for user, end in await role_expiry.warnings_due():
        try:
            await user.warn_of_end(end)
        except Exception as error:
            log.warning("role_warning_failed", user=user.username, error=type(error).__name__)
