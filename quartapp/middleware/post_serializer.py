"""The event loop is shared: a flood of requests is let in one by one, and its lag is measured."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Any

from quartapp import metrics
from quartapp.background import Background

LOOK_EVERY = 0.05
PROBES = frozenset({"/livez", "/readyz", "/metrics"})


class Turnstile:
    """Lets one through in each turn of the event loop, in the order in which they came."""

    def __init__(self) -> None:
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._used = False

    async def passed(self) -> None:
        """Return at once if nobody else has passed in this turn, else when it is one's turn."""
        loop = asyncio.get_running_loop()
        if self._used:
            mine: asyncio.Future[None] = loop.create_future()
            self._waiting.append(mine)
            await mine
        else:
            self._used = True
            loop.call_soon(self._next_turn)

    def _next_turn(self) -> None:
        self._used = False
        while self._waiting and not self._used:
            first = self._waiting.popleft()
            # The client of one that is done has hung up.
            if not first.done():
                first.set_result(None)
                self._used = True
                asyncio.get_running_loop().call_soon(self._next_turn)


class Paced:
    """ASGI middleware: one POST and one other request begin in each turn of the event loop.

    What a request does before it first waits takes some milliseconds, and the loop runs all that is
    ready before it looks at anything else. Five hundred at once would be half a second in which no
    page is answered and no socket is heard. Here whatever else is ready has its turn in between.

    A flood of pages does not delay a POST, such as a revocation, nor the other way round. Probes do
    not wait.
    """

    def __init__(self, app: Any) -> None:
        self._app = app
        self._posts, self._others = Turnstile(), Turnstile()

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        if scope["type"] == "http" and scope["path"] not in PROBES:
            await (self._posts if scope["method"] == "POST" else self._others).passed()
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
