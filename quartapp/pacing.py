"""The event loop is everybody's: a flood of forms is let in one by one, and its lag is measured."""

from __future__ import annotations

import asyncio
from typing import Any

from quartapp import metrics

LOOK_EVERY = 0.05


class Paced:
    """ASGI middleware: of the POSTs that have come, one begins in each turn of the event loop.

    What a request does before it first waits takes about a millisecond, and the loop runs all that
    is ready before it looks at anything else. Five hundred at once would be half a second in which
    no page is answered and no socket is heard. Here whatever else is ready has its turn in between.
    """

    def __init__(self, app: Any) -> None:
        self._app = app
        self._turn = asyncio.Lock()

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        if scope["type"] == "http" and scope["method"] == "POST":
            async with self._turn:
                await asyncio.sleep(0)
        await self._app(scope, receive, send)


class Pulse:
    """Measures how late the loop is."""

    def __init__(self) -> None:
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        self._task = asyncio.create_task(self._measure(), name="pulse")

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    async def _measure(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            due = loop.time() + LOOK_EVERY
            await asyncio.sleep(LOOK_EVERY)
            metrics.LAG.observe(max(0.0, loop.time() - due))
