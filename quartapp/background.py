"""What runs beside requests, from the start of a worker to its end."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any


class Background:
    """The base of whatever has one task of its own."""

    _task: asyncio.Task[None] | None = None

    def _run(self, work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        self._task = asyncio.create_task(work, name=name)
        return self._task

    async def stop(self) -> None:
        """Returns when the task is over. May be called when none was begun."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
