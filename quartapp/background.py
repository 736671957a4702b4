"""The base class of parts that run tasks in the background."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any


class BackgroundTask:
    """Base class of a part of the worker that has asyncio tasks, mostly one."""

    _tasks: tuple[asyncio.Task[None], ...] = ()

    def _start_task(self, coroutine: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        """Start the coroutine as a task of this object, and return the task."""
        task = asyncio.create_task(coroutine, name=name)
        self._tasks = (*self._tasks, task)
        return task

    async def stop(self) -> None:
        """Cancel the tasks and wait until they have ended. Their errors are not raised.

        Does nothing if no task was started. A stopped object can be started again.
        """
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        self._tasks = ()
