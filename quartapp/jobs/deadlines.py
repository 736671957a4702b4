"""The base class of background tasks that act when a time stored in the database has come."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from datetime import datetime

from quartapp import clock
from quartapp.authority.change_stream import Change
from quartapp.background import BackgroundTask
from quartapp.log import log
from quartapp.models import User

# Seconds between two looks, unless a time comes or changes earlier.
LOOK_EVERY = 10.0
LEAST = 0.01


class DeadlineTask(BackgroundTask):
    """Runs in each worker, and sleeps until the next time in `field` of a user.

    A subclass sets the class attributes and has `run` and `next_time`. Each worker wakes at the
    same moment: conditional updates let one of them make each change.
    """

    name: str
    field: str
    # The name of the warning that is logged when the database fails.
    failure: str

    def __init__(self) -> None:
        self._news = asyncio.Event()

    async def run(self) -> None:
        """Do what is due."""
        raise NotImplementedError

    async def next_time(self) -> datetime | None:
        """Return the next time in the future, or None."""
        raise NotImplementedError

    async def start(self) -> None:
        self._start_task(self._watch(), self.name)

    # ---- change stream listener

    def on_change(self, change: Change) -> None:
        """Wake the task if a user was created or replaced, or the field was changed."""
        if change.collection == User.Settings.name and (
            self.field in change.changed_fields or change.document
        ):
            self._news.set()

    def on_missed_changes(self) -> None:
        """Wake the task: changes may have been missed."""
        self._news.set()

    def on_disconnect(self) -> None:
        """Does nothing: the task also looks every LOOK_EVERY seconds without the stream."""

    # ---- watching

    async def _watch(self) -> None:
        """Do what is due, then wait until the next time comes or a user changes, at most LOOK_EVERY
        seconds. Repeat until cancelled. A failure of the database is logged as a warning, and tried
        again after LOOK_EVERY seconds."""
        while True:
            wait = LOOK_EVERY
            try:
                await self.run()
                if at := await self.next_time():
                    seconds = (at - clock.now()).total_seconds()
                    wait = min(LOOK_EVERY, max(LEAST, seconds))
            except Exception as error:
                log.warning(self.failure, error=type(error).__name__)
            with suppress(TimeoutError):
                async with asyncio.timeout(wait):
                    await self._news.wait()
            self._news.clear()
