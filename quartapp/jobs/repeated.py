"""The base classes of background tasks that look for work again and again."""

from __future__ import annotations

import asyncio
from contextlib import suppress

from quartapp.authority.change_stream import Change
from quartapp.background import BackgroundTask
from quartapp.log import log


class RepeatedTask(BackgroundTask):
    """Calls `run` until the task is stopped, with a pause of `look_every` seconds after each call.

    A subclass sets the class attributes and has `run`.
    """

    name: str
    look_every: float
    # The name of the warning that is logged when `run` fails.
    failure: str
    # Whether the warning has the text of the error, which may quote what the database stores.
    logs_detail = False

    async def start(self) -> None:
        self._start_task(self._repeat(), self.name)

    async def run(self) -> None:
        """Do what there is to do. Errors are logged, and do not end the task."""
        raise NotImplementedError

    async def seconds_to_wait(self) -> float:
        """Return the length of the pause after a `run` that has not failed."""
        return self.look_every

    async def _repeat(self) -> None:
        """Call `run` and pause for `seconds_to_wait`, forever. An error of either is logged as the
        warning `failure`, and followed by a pause of `look_every`."""
        while True:
            wait = self.look_every
            try:
                await self.run()
                wait = await self.seconds_to_wait()
            except Exception as error:
                detail = {"detail": str(error)[:200]} if self.logs_detail else {}
                log.warning(self.failure, error=type(error).__name__, **detail)
            await self._pause(wait)

    async def _pause(self, seconds: float) -> None:
        """Wait for the time of a pause."""
        await asyncio.sleep(seconds)


class ListeningTask(RepeatedTask):
    """A repeated task whose pause ends early when the change stream reports a change that concerns
    it, or may have missed one. It also runs while the stream is away."""

    def __init__(self) -> None:
        self._wakeup = asyncio.Event()

    def concerns(self, change: Change) -> bool:
        """Return whether the change ends the pause."""
        raise NotImplementedError

    # ---- change stream listener

    def on_change(self, change: Change) -> None:
        """End the pause if the change concerns this task."""
        if self.concerns(change):
            self._wakeup.set()

    def on_missed_changes(self) -> None:
        """End the pause: changes may have been missed."""
        self._wakeup.set()

    def on_disconnect(self) -> None:
        """Do nothing: the task also looks every `look_every` seconds without the stream."""

    async def _pause(self, seconds: float) -> None:
        """Wait for a change that concerns this task, at most so many seconds. Returns at once if
        one has come since the last pause."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._wakeup.wait()
        self._wakeup.clear()
