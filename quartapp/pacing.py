"""The event loop is everybody's: a flood of forms is let in one by one, and its lag is measured."""

from __future__ import annotations

import asyncio
from typing import Any

from quartapp import metrics
from quartapp.background import Background

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


class Pulse(Background):
    """Measures how late the loop is."""

    async def start(self) -> None:
        self._run(self._measure(), "pulse")

    async def _measure(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            due = loop.time() + LOOK_EVERY
            await asyncio.sleep(LOOK_EVERY)
            metrics.LAG.observe(max(0.0, loop.time() - due))
