"""The way to a client past all that waits for it, for the last that is said."""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import Callable
from contextlib import suppress
from typing import Protocol, cast

# The name under which a server offers a Line of its own, as an ASGI extension of the socket.
LINE = "quartapp.line"
CUT_SECONDS = 1.0


class Line(Protocol):
    """Its methods return at once. After the first of them the application sends nothing more."""

    def say(self, text: str, hear: Callable[[str | bytes], None]) -> None:
        """Send a text frame. Messages that arrive from then on are passed to `hear`."""

    def hang_up(self, code: int, reason: str, *, listen: float = 0.0) -> None:
        """Send the close frame, unless it was sent, and cut the connection if the client does not
        answer it.

        For `listen` seconds messages are still passed to `hear`; after that they are dropped. The
        cut comes after `listen` seconds too, but not sooner than CUT_SECONDS: a connection that is
        cut while the client still sends is reset, and the close frame may be lost with it. A second
        call sets both times anew.
        """


class Socket(Protocol):
    """What is used of Quart's websocket."""

    async def send(self, data: str, /) -> None: ...
    async def receive(self) -> str | bytes: ...
    async def close(self, code: int, reason: str = "") -> None: ...


class PlainLine:
    """On a server that offers none: Quart's own way, through its queues. Made by the handler.

    What comes is received as before.
    """

    def __init__(self, socket: Socket) -> None:
        self._socket = socket
        # A task that was cancelled holds its frames, and they hold us.
        self._handler = weakref.ref(cast("asyncio.Task[None]", asyncio.current_task()))
        self._speaking: asyncio.Task[None] | None = None
        self._closing: asyncio.Task[None] | None = None
        self._wait = CUT_SECONDS
        self._cut: asyncio.TimerHandle | None = None

    def say(self, text: str, hear: Callable[[str | bytes], None]) -> None:
        self._speaking = asyncio.create_task(self._say(text))

    def hang_up(self, code: int, reason: str, *, listen: float = 0.0) -> None:
        self._wait = max(listen, CUT_SECONDS)
        if self._closing is None:
            self._closing = asyncio.create_task(self._close(code, reason))
        elif self._closing.done():
            self._cut_later()

    async def _say(self, text: str) -> None:
        with suppress(Exception):
            async with asyncio.timeout(CUT_SECONDS):
                await self._socket.send(text)

    async def _close(self, code: int, reason: str) -> None:
        if self._speaking is not None:
            # The close frame has a second of its own: when thousands are told at once, the words
            # of some may take all of theirs.
            await asyncio.wait([self._speaking])
        try:
            async with asyncio.timeout(CUT_SECONDS):
                await self._socket.close(code, reason)
        except Exception:
            self._cut_off()
        else:
            self._cut_later()

    def _cut_later(self) -> None:
        if self._cut is not None:
            self._cut.cancel()
        self._cut = asyncio.get_running_loop().call_later(self._wait, self._cut_off)

    def _cut_off(self) -> None:
        if (handler := self._handler()) is not None:
            handler.cancel()
