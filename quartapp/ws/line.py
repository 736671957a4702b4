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
        """Says it. What comes from then on is passed to `hear`, until `hang_up`."""

    def hang_up(self, code: int, reason: str) -> None:
        """Sends the close frame. Whoever has not answered it a second later is cut off.

        Not sooner: a line that is cut while the client still speaks is reset, and what was said
        last is lost with it.
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

    def say(self, text: str, hear: Callable[[str | bytes], None]) -> None:
        self._speaking = asyncio.create_task(self._say(text))

    def hang_up(self, code: int, reason: str) -> None:
        self._speaking = asyncio.create_task(self._hang_up(code, reason, self._speaking))

    async def _say(self, text: str) -> None:
        with suppress(Exception):
            async with asyncio.timeout(CUT_SECONDS):
                await self._socket.send(text)

    async def _hang_up(self, code: int, reason: str, said: asyncio.Task[None] | None) -> None:
        if said is not None:
            # The close frame has a second of its own: when thousands are told at once, the words
            # of some may take all of theirs.
            await asyncio.wait([said])
        if (handler := self._handler()) is None:
            return
        with suppress(Exception):
            async with asyncio.timeout(CUT_SECONDS):
                await self._socket.close(code, reason)
                await asyncio.wait([handler])
        handler.cancel()
