"""A client that sends one request after the other over several connections and checks each answer.

It does as little as possible for each answer, because it shares the cores with the server.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit


@dataclass(frozen=True)
class Answer:
    """An HTTP response, and the seconds since its request was sent."""

    head: bytes
    body: bytes
    seconds: float

    @property
    def status(self) -> int:
        return int(self.head.split(b" ", 2)[1])

    def json(self) -> Any:
        return json.loads(self.body)


class Connection(asyncio.Protocol):
    """A keep-alive connection to the server at `url`."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._answer: asyncio.Future[Answer] | None = None
        self._sent = 0.0

    @classmethod
    async def open(cls, url: str) -> Connection:
        host, port = urlsplit(url).netloc.split(":")
        loop = asyncio.get_running_loop()
        _, connection = await loop.create_connection(cls, host, int(port))
        return connection

    async def ask(self, request: bytes) -> Answer:
        """Send a request and wait for the response, which must have a Content-Length or no body.

        Raises ConnectionError if the server closes the connection.
        """
        self._answer = asyncio.get_running_loop().create_future()
        self._sent = time.perf_counter()
        self._transport.write(request)
        return await self._answer

    def close(self) -> None:
        self._answer = None
        self._transport.close()

    def connection_made(self, transport: Any) -> None:
        self._transport: asyncio.Transport = transport

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        head_end = self._buffer.find(b"\r\n\r\n") + 4
        if head_end < 4 or self._answer is None:
            return
        head = bytes(self._buffer[:head_end])
        _, found, rest = head.lower().partition(b"content-length:")
        end = head_end + (int(rest[: rest.index(b"\r")]) if found else 0)
        if len(self._buffer) >= end:
            body = bytes(self._buffer[head_end:end])
            del self._buffer[:end]
            answer, self._answer = self._answer, None
            answer.set_result(Answer(head, body, time.perf_counter() - self._sent))

    def connection_lost(self, exc: Exception | None) -> None:
        if self._answer and not self._answer.done():
            self._answer.set_exception(ConnectionError("the server has closed the connection"))


def get(url: str, path: str, cookie: str) -> bytes:
    """Return the bytes of a GET request."""
    return (
        f"GET {path} HTTP/1.1\r\nHost: {urlsplit(url).netloc}\r\nCookie: {cookie}\r\n"
        "Accept: */*\r\nUser-Agent: bench\r\n\r\n"
    ).encode()


async def rate(
    url: str, requests: Sequence[bytes], check: Callable[[int, Answer], None], seconds: float
) -> tuple[float, int]:
    """Return the answers per second and their number, with one connection for each request.

    Each connection repeats its request. `check` gets the index of the request and each answer, and
    raises if the answer is wrong. Connecting is not part of the time.
    """
    connections = [await Connection.open(url) for _ in requests]
    began = time.perf_counter()
    until = began + seconds

    async def repeat(number: int, connection: Connection) -> int:
        count = 0
        while time.perf_counter() < until:
            check(number, await connection.ask(requests[number]))
            count += 1
        return count

    try:
        count = sum(await asyncio.gather(*map(repeat, range(len(requests)), connections)))
        return count / (time.perf_counter() - began), count
    finally:
        for connection in connections:
            connection.close()
