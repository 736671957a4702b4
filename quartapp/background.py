"""The base class of parts that run one task in the background."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any


class BackgroundTask:
    """Base class of a part of the worker that has one asyncio task."""

    _task: asyncio.Task[None] | None = None

    def _start_task(self, coroutine: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        """Start the coroutine as this object's task, and return the task."""
        self._task = asyncio.create_task(coroutine, name=name)
        return self._task

    async def stop(self) -> None:
        """Cancel the task and wait until it has ended. Errors of the task are not raised.

        Does nothing if no task was started.
        """
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
