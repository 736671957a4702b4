"""A background task that writes when sessions and users were last seen, many in one write."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

from quartapp import clock
from quartapp.authority.session_rule import Principal
from quartapp.background import BackgroundTask
from quartapp.log import log
from quartapp.models.accounts.user import User
from quartapp.models.sessions.session import SEEN_EVERY, Session

FLUSH_SECONDS = 2.0


class LastSeenWriter(BackgroundTask):
    """Writes the last use of each session at most once in SEEN_EVERY, and that of its user, in
    `User.seen_at`, at most once in USER_SEEN_EVERY.

    The change stream leaves these writes out, so no other worker hears of them.
    """

    def __init__(self) -> None:
        # By session: the last use that its principal has, and the time of the monotonic clock until
        # which another use is not written.
        self._noted: dict[Any, tuple[datetime, float]] = {}
        self._pending: dict[Any, tuple[datetime, str | None]] = {}
        self._pending_users: dict[Any, datetime] = {}

    async def start(self) -> None:
        self._start_task(self._flush_often(), "last seen")

    async def stop(self) -> None:
        """Stop the task, and write what is noted. Logs a failure of the write
        (`seen_not_written`)."""
        await super().stop()
        await self._flush()

    def note(self, principal: Principal, address: Callable[[], str | None]) -> None:
        """Note that the session was used now, for the task to write it within FLUSH_SECONDS.

        Notes nothing if the last use that was written is more recent than SEEN_EVERY; but when this
        worker sees the session for the first time, it notes that the user was seen. `address` is
        called only if the use of the session is noted. Returns at once.
        """
        # Most calls end here. Reading the wall clock costs more than the rest of this method.
        seen_at, until = self._noted.get(principal.session_id, (None, 0.0))
        if seen_at == principal.seen_at and clock.monotonic() < until:
            return
        now = clock.now()
        self._pending_users[principal.user_id] = now
        left = principal.seen_at + SEEN_EVERY - now
        if left <= timedelta(0):
            self._pending[principal.session_id] = (now, address())
            left = SEEN_EVERY
        until = clock.monotonic() + left.total_seconds()
        self._noted[principal.session_id] = (principal.seen_at, until)

    async def _flush_often(self) -> None:
        """Write what is noted every FLUSH_SECONDS, then forget the sessions whose next use would be
        noted. Repeat until cancelled."""
        while True:
            await asyncio.sleep(FLUSH_SECONDS)
            await self._flush()
            now = clock.monotonic()
            self._noted = {key: noted for key, noted in self._noted.items() if noted[1] > now}

    async def _flush(self) -> None:
        """Write all noted uses: first the sessions in one write, then the users in another. If one
        fails, logs the warning `seen_not_written`; what is not written by then is lost."""
        pending, self._pending = self._pending, {}
        users, self._pending_users = self._pending_users, {}
        try:
            await Session.record_use(pending)
            await User.record_use(users)
        except Exception as error:
            log.warning("seen_not_written", sessions=len(pending), error=type(error).__name__)
