"""Open pages by the thousand, in a process that does nothing else.

A client library spends more time on a frame than the server does, and that would be measured too.
So a tab here is a bare protocol that understands what this server says, and no more of WebSockets.
`python -m bench.tabs URL` is told on stdin what to do: see `Crowd` in bench.crowd.
"""

from __future__ import annotations

import asyncio
import gc
import json
import random
import sys
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterable, Iterator
from typing import Any, Self, TypeVar, cast
from urllib.parse import urlsplit

import uvloop

T = TypeVar("T")
R = TypeVar("R")

TEXT, CLOSE, PING, PONG = 1, 8, 9, 10
GOING_AWAY = (1001).to_bytes(2, "big")
LINE_BYTES = 2**26
PATIENCE_SECONDS = 120
ATTEMPTS = 20

# One clock for all processes of the machine.
now = time.monotonic


class Tab(asyncio.Protocol):
    """One page's socket. Answers as the page would, and remembers when it was first told what.

    `moments` has a future for each type of message; for `close`, the close frame; and for `gone`,
    the end of the connection.
    """

    def __init__(self, url: str, cookie: str) -> None:
        address = urlsplit(url)
        self.hello: dict[str, Any] = {}
        self.code = 0
        self.last_words = ""
        loop = asyncio.get_running_loop()
        self.moments: defaultdict[str, asyncio.Future[float]] = defaultdict(loop.create_future)
        self._open = False
        self._buffer = b""
        self._handshake = (
            f"GET /ws HTTP/1.1\r\nHost: {address.netloc}\r\nOrigin: {url}\r\nCookie: {cookie}\r\n"
            "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
            "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
        ).encode()

    @classmethod
    async def open(cls, url: str, cookie: str) -> Self:
        """Returns when it was greeted. Raises ConnectionError when it is turned away."""
        tab, address = cls(url, cookie), urlsplit(url)
        assert address.hostname
        assert address.port
        loop = asyncio.get_running_loop()
        await loop.create_connection(lambda: tab, address.hostname, address.port)
        async with asyncio.timeout(PATIENCE_SECONDS):
            await tab.moments["hello"]
        return tab

    def leave(self) -> None:
        """As a browser leaves a page."""
        self._send(CLOSE, GOING_AWAY)

    # ---- what asyncio calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's are no subclass of it.
        self._transport = cast("asyncio.Transport", transport)
        self._transport.write(self._handshake)

    def data_received(self, data: bytes) -> None:
        moment = now()
        self._buffer += data
        if not self._open and not self._accepted():
            return
        for opcode, payload in self._frames():
            if opcode == TEXT:
                self._hear(json.loads(payload), moment)
            elif opcode == PING:
                self._send(PONG, payload)
            elif opcode == CLOSE:
                self.code = int.from_bytes(payload[:2], "big")
                self._remember("close", moment)
                self._send(CLOSE, payload[:2])

    def connection_lost(self, exc: Exception | None) -> None:
        self._remember("gone", now())
        for awaited in self.moments.values():
            if not awaited.done():
                awaited.set_exception(exc or ConnectionError(f"closed with {self.code}"))
                awaited.exception()  # Nobody may be waiting for it.

    # ---- helpers

    def _accepted(self) -> bool:
        head, found, rest = self._buffer.partition(b"\r\n\r\n")
        if found and head.startswith(b"HTTP/1.1 101"):
            self._open, self._buffer = True, rest
        elif found:
            self.connection_lost(ConnectionRefusedError(head.split(b"\r\n")[0].decode()))
            self._transport.close()
        return self._open

    def _frames(self) -> Iterator[tuple[int, bytes]]:
        """The frames that have come whole. The server masks none, and sends none in pieces."""
        while len(self._buffer) >= 4:
            size, start = self._buffer[1], 2
            assert size < 127, "this server says nothing that is so long"
            if size == 126:
                size, start = int.from_bytes(self._buffer[2:4], "big"), 4
            if len(self._buffer) < start + size:
                return
            opcode, payload = self._buffer[0] & 15, self._buffer[start : start + size]
            self._buffer = self._buffer[start + size :]
            yield opcode, payload

    def _hear(self, message: dict[str, Any], moment: float) -> None:
        kind = self.last_words = message["type"]
        if kind == "hello":
            self.hello = message
        elif kind == "ping":
            self._say(type="pong", at=message["at"])
        else:
            self._say(type="ack", id=message["id"])
        self._remember(kind, moment)

    def _remember(self, kind: str, moment: float) -> None:
        if not self.moments[kind].done():
            self.moments[kind].set_result(moment)

    def _say(self, **message: Any) -> None:
        self._send(TEXT, json.dumps(message).encode())

    def _send(self, opcode: int, payload: bytes) -> None:
        # A client must mask; nothing says that the mask may not be four zeros.
        self._transport.write(bytes((0x80 | opcode, 0x80 | len(payload), 0, 0, 0, 0)) + payload)


class Tabs:
    """All tabs of this process, told together."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._tabs: list[Tab] = []

    async def open(self, cookies: list[str], at_once: int) -> int:
        """Opens one for each cookie. How many were turned away at first, and came again."""
        self._returns = 0
        self._tabs += await several(self._come, cookies, at_once=at_once)
        return self._returns

    async def _come(self, cookie: str) -> Tab:
        for _ in range(ATTEMPTS):
            try:
                return await Tab.open(self._url, cookie)
            except ConnectionError:
                self._returns += 1
                await asyncio.sleep(random.random())
        return await Tab.open(self._url, cookie)

    async def told(self, kind: str) -> list[float]:
        """When each was first told this; returns when all were."""
        async with asyncio.timeout(PATIENCE_SECONDS):
            return await asyncio.gather(*(tab.moments[kind] for tab in self._tabs))

    async def codes(self) -> list[int]:
        return [tab.code for tab in self._tabs]

    async def forget(self) -> None:
        """What was told so far; also the tabs that are closed."""
        self._tabs = [tab for tab in self._tabs if not tab.code]
        for tab in self._tabs:
            tab.moments.clear()

    async def leave(self) -> None:
        """Closes all of them. Returns when the server has closed its end."""
        for tab in self._tabs:
            # A server that is pressed may have closed it.
            if not tab.code:
                tab.leave()
        await self.told("gone")
        self._tabs.clear()


async def several(
    work: Callable[[T], Awaitable[R]], items: Iterable[T], *, at_once: int
) -> list[R]:
    """What the work makes of each item, so many at once."""
    gate = asyncio.Semaphore(at_once)

    async def one(item: T) -> R:
        async with gate:
            return await work(item)

    return await asyncio.gather(*map(one, items))


async def main(url: str) -> None:
    """Does one thing after the other, until nobody is there to ask for more."""
    # A collection over thousands of tabs would look like a slow server.
    gc.disable()
    tabs = Tabs(url)
    orders = asyncio.StreamReader(limit=LINE_BYTES)
    await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(orders), sys.stdin
    )
    while line := await orders.readline():
        verb, *arguments = json.loads(line)
        print(json.dumps(await getattr(tabs, verb)(*arguments)), flush=True)


if __name__ == "__main__":
    uvloop.run(main(sys.argv[1]))
