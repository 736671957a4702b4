"""A background task that disables accounts when they expire.

The session rule refuses an expired account whether this has run or not. This records the change in
the audit log, and closes open pages at once rather than at the next sweep.
"""

from __future__ import annotations

from datetime import datetime

from quartapp.activities import ACCOUNT_EXPIRED
from quartapp.jobs.deadlines import DeadlineTask
from quartapp.log import log
from quartapp.models.accounts import account_expiry


class AccountExpiry(DeadlineTask):
    """Runs in each worker. A conditional update lets one worker disable each account."""

    name = "account expiry"
    field = "closes_at"
    failure = "departures_not_read"

    async def run(self) -> None:
        await disable_expired()

    async def next_time(self) -> datetime | None:
        return await account_expiry.next_expiry()


async def disable_expired() -> None:
    """Disable expired accounts, at most AT_ONCE of them, which ends their sessions, and log
    `user_disabled` for each that this worker disabled.

    The last administrator is not disabled: the expiry is removed, and the error
    `last_administrator_stays` is logged. A failure is logged as the warning `departure_failed`, and
    the next account is tried. Raises only what the driver raises when it reads the list.
    """
    for user in await account_expiry.due():
        try:
            event = await account_expiry.disable_expired(user)
        except Exception as error:
            log.warning("departure_failed", user=user.username, error=type(error).__name__)
            continue
        if event and event.verb == ACCOUNT_EXPIRED.audit:
            log.info("user_disabled", user=user.username, last_day=event.details["last_day"])
        elif event:
            log.error("last_administrator_stays", user=user.username)
