"""A background task that disables accounts when they expire.

The session rule refuses an expired account whether this has run or not. This records the change in
the audit log, and closes open pages at once rather than at the next sweep.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress

from quartapp import clock
from quartapp.activities import ACCOUNT_EXPIRED
from quartapp.authority.change_stream import Change
from quartapp.background import BackgroundTask
from quartapp.log import log
from quartapp.models import User
from quartapp.models.accounts import account_expiry

# Seconds between two looks, unless an account expires or changes earlier.
LOOK_EVERY = 10.0
LEAST = 0.01


class AccountExpiry(BackgroundTask):
    """Runs in each worker. A conditional update lets one worker disable each account."""

    def __init__(self) -> None:
        self._news = asyncio.Event()

    async def start(self) -> None:
        self._start_task(self._watch(), "account expiry")

    # ---- listening

    def on_change(self, change: Change) -> None:
        """Wake the task if an account was created or replaced, or its expiry was changed."""
        if change.collection == User.Settings.name and (
            "closes_at" in change.updated_fields or change.document
        ):
            self._news.set()

    def on_missed_changes(self) -> None:
        """Wake the task: changes may have been missed."""
        self._news.set()

    def on_disconnect(self) -> None:
        """Does nothing: the task also looks every LOOK_EVERY seconds without the stream."""

    # ---- watching

    async def _watch(self) -> None:
        """Disable expired accounts, then wait until the next one expires or an account changes, at
        most LOOK_EVERY seconds. Repeat until cancelled. A failure of the database is logged as the
        warning `departures_not_read`, and tried again after LOOK_EVERY seconds."""
        while True:
            wait = LOOK_EVERY
            try:
                await disable_expired()
                wait = await _until_next()
            except Exception as error:
                log.warning("departures_not_read", error=type(error).__name__)
            with suppress(TimeoutError):
                async with asyncio.timeout(wait):
                    await self._news.wait()
            self._news.clear()


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


async def _until_next() -> float:
    """Return the seconds until the next account expires, at least LEAST and at most LOOK_EVERY.
    LOOK_EVERY if no account has an expiry. Reads the database."""
    at = await account_expiry.next_expiry()
    if at is None:
        return LOOK_EVERY
    return min(LOOK_EVERY, max(LEAST, (at - clock.now()).total_seconds()))
