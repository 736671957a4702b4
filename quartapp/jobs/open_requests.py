"""The number of open requests for roles, for the navigation of administrators."""

from __future__ import annotations

import asyncio
from contextlib import suppress

from quartapp.authority.change_stream import Change
from quartapp.background import BackgroundTask
from quartapp.log import log
from quartapp.models import RoleRequest

# Seconds after which the requests are counted again if a change was missed.
LOOK_EVERY = 60.0


class OpenRequests(BackgroundTask):
    """Counts the open requests when one has changed, so that no page has to."""

    def __init__(self) -> None:
        self._news = asyncio.Event()
        self._count = 0

    @property
    def count(self) -> int:
        """How many requests were open when last counted, up to `request.COUNTED`."""
        return self._count

    async def start(self) -> None:
        self._start_task(self._watch(), "open requests")

    async def refresh(self) -> None:
        """Count the open requests now. Raises the driver's errors."""
        self._count = await RoleRequest.count_open()

    # ---- change stream listener

    def on_change(self, change: Change) -> None:
        """Wake the task if a request was made, decided or deleted."""
        if change.collection == RoleRequest.Settings.name:
            self._news.set()

    def on_missed_changes(self) -> None:
        """Wake the task: changes may have been missed."""
        self._news.set()

    def on_disconnect(self) -> None:
        """Does nothing: the task also counts every LOOK_EVERY seconds without the stream."""

    async def _watch(self) -> None:
        """Count, then wait until a request changes, at most LOOK_EVERY seconds. Repeat until
        cancelled. A failure of the database is logged as the warning `requests_not_counted`."""
        while True:
            try:
                await self.refresh()
            except Exception as error:
                log.warning("requests_not_counted", error=type(error).__name__)
            with suppress(TimeoutError):
                async with asyncio.timeout(LOOK_EVERY):
                    await self._news.wait()
            self._news.clear()
