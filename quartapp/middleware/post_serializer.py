"""ASGI middleware that spreads the start of simultaneous requests over turns of the event loop."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Any

# Load balancers and Prometheus must be answered also under load.
PROBES = frozenset({"/livez", "/readyz", "/metrics"})


class OnePerLoopTurn:
    """Lets the caller of `wait` that waits longest continue in each turn of the event loop."""

    def __init__(self) -> None:
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._used = False

    async def wait(self) -> None:
        """Return at once if no other caller has continued in this turn of the loop; else wait for
        the turns of those who came before, one turn for each."""
        loop = asyncio.get_running_loop()
        if self._used:
            mine: asyncio.Future[None] = loop.create_future()
            self._waiting.append(mine)
            await mine
        else:
            self._used = True
            loop.call_soon(self._next_turn)

    def _next_turn(self) -> None:
        """Let the first caller continue that still waits. Schedules itself for the next turn if
        there is one; otherwise the next call of `wait` returns at once."""
        self._used = False
        while self._waiting and not self._used:
            first = self._waiting.popleft()
            # A future that is done belongs to a client that has disconnected.
            if not first.done():
                first.set_result(None)
                self._used = True
                asyncio.get_running_loop().call_soon(self._next_turn)


class PostSerializer:
    """Starts one POST and one other request in each turn of the event loop.

    A request works for some milliseconds before it first waits, and the loop runs everything that
    is ready before it looks at sockets again. If 500 requests started in one turn, no page would be
    answered and no socket read for half a second. With one at a time, other work runs in between.

    POSTs and other requests wait in separate queues, so a flood of page loads does not delay a
    revocation. Health checks and metrics do not wait.
    """

    def __init__(self, app: Any) -> None:
        self._app = app
        self._posts, self._others = OnePerLoopTurn(), OnePerLoopTurn()

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        """Call the application, for HTTP requests in their turn. Sockets do not wait."""
        if scope["type"] == "http" and scope["path"] not in PROBES:
            await (self._posts if scope["method"] == "POST" else self._others).wait()
        await self._app(scope, receive, send)
