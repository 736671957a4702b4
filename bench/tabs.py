"""Simulate thousands of open pages in a process that does nothing else.

A client library spends more time on a frame than the server does, which would distort the results.
So a tab is an asyncio protocol that implements only what this server uses of WebSockets.
`python -m bench.tabs URL` reads its commands from standard input: see `Crowd` in bench.crowd.
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

# The monotonic clock is the same for all processes of the machine.
now = time.monotonic


class Tab(asyncio.Protocol):
    """The WebSocket of one page. Answers as the page would.

    `moments` has a future for each type of message, with the time at which the first one arrived;
    `close` stands for the close frame, and `gone` for the end of the connection. `code` is the
    close code, or 0. `last_message` is the type of the last message.
    """

    def __init__(self, url: str, cookie: str) -> None:
        address = urlsplit(url)
        self.hello: dict[str, Any] = {}
        self.code = 0
        self.last_message = ""
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
        """Connect, and return after the `hello`. Raises ConnectionError when the server refuses."""
        tab, address = cls(url, cookie), urlsplit(url)
        assert address.hostname
        assert address.port
        loop = asyncio.get_running_loop()
        await loop.create_connection(lambda: tab, address.hostname, address.port)
        async with asyncio.timeout(PATIENCE_SECONDS):
            await tab.moments["hello"]
        return tab

    def leave(self) -> None:
        """Send the close frame that a browser sends when its user leaves the page."""
        self._send(CLOSE, GOING_AWAY)

    # ---- called by asyncio

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports are not subclasses of asyncio.Transport.
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
                awaited.exception()  # Marks it as retrieved: it may have no waiter.

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
        """Yield the complete frames. The server neither masks nor fragments frames."""
        while len(self._buffer) >= 4:
            size, start = self._buffer[1], 2
            assert size < 127, "this server sends no frame that long"
            if size == 126:
                size, start = int.from_bytes(self._buffer[2:4], "big"), 4
            if len(self._buffer) < start + size:
                return
            opcode, payload = self._buffer[0] & 15, self._buffer[start : start + size]
            self._buffer = self._buffer[start + size :]
            yield opcode, payload

    def _hear(self, message: dict[str, Any], moment: float) -> None:
        kind = self.last_message = message["type"]
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
        # A client must mask its frames, and a mask of four zeros is allowed.
        self._transport.write(bytes((0x80 | opcode, 0x80 | len(payload), 0, 0, 0, 0)) + payload)


class Tabs:
    """All tabs of this process. The public methods are the commands of `main`."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._tabs: list[Tab] = []

    async def open(self, cookies: list[str], at_once: int) -> int:
        """Open a tab for each cookie; return how many attempts were refused and repeated."""
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
        """Wait until all tabs have received this type of message; return when each first did."""
        async with asyncio.timeout(PATIENCE_SECONDS):
            return await asyncio.gather(*(tab.moments[kind] for tab in self._tabs))

    async def codes(self) -> list[int]:
        return [tab.code for tab in self._tabs]

    async def forget(self) -> None:
        """Forget the messages received so far, and the tabs that are closed."""
        self._tabs = [tab for tab in self._tabs if not tab.code]
        for tab in self._tabs:
            tab.moments.clear()

    async def leave(self) -> None:
        """Close all tabs. Returns when the server has closed the connections."""
        for tab in self._tabs:
            # An overloaded server may have closed it.
            if not tab.code:
                tab.leave()
        await self.told("gone")
        self._tabs.clear()


async def several(
    work: Callable[[T], Awaitable[R]], items: Iterable[T], *, at_once: int
) -> list[R]:
    """Apply `work` to each item, at most `at_once` at a time; return the results in order."""
    gate = asyncio.Semaphore(at_once)

    async def one(item: T) -> R:
        async with gate:
            return await work(item)

    return await asyncio.gather(*map(one, items))


async def main(url: str) -> None:
    """Run the commands from standard input one after the other, until it is closed."""
    # A garbage collection over thousands of tabs would look like a slow server.
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
