"""When a connection ends: spoken to by hand, with hypercorn in this process."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from hypercorn import protocol
from hypercorn.asyncio import run
from hypercorn.protocol import h11

from quartapp import wire
from tests.conftest import serving_here
from tests.people import SECONDS

REQUEST = b"GET / HTTP/1.1\r\nHost: here\r\n\r\n"
HANDSHAKE = (
    b"GET / HTTP/1.1\r\nHost: here\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
)
SHORT, LONG = 0.4, 2 * SECONDS


class Application:
    """Answers 200, once it may. Refuses sockets, and is there until it hears that they are gone."""

    def __init__(self) -> None:
        self.asked, self.may_answer = asyncio.Event(), asyncio.Event()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        headers = [(b"content-length", b"0")]
        if scope["type"] == "websocket":
            assert (await receive())["type"] == "websocket.connect"
            answer = {"type": "websocket.http.response.start", "status": 403, "headers": headers}
            await send(answer)
            await send({"type": "websocket.http.response.body", "body": b""})
            assert (await receive())["type"] == "websocket.disconnect"
            return
        assert scope["type"] == "http"
        self.asked.set()
        await self.may_answer.wait()
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b""})


class Line:
    """A client's connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self.writer = reader, writer

    async def answer(self) -> bytes:
        async with asyncio.timeout(SECONDS):
            return await self._reader.readuntil(b"\r\n\r\n")

    async def closed(self) -> float:
        """When the server hung up, which it does without a word."""
        async with asyncio.timeout(SECONDS):
            assert await self._reader.read() == b""
        return asyncio.get_running_loop().time()


class Server:
    """hypercorn with our class of connections, in this process."""

    def __init__(self, keep_alive: float) -> None:
        self.application = Application()
        self.end = asyncio.Event()
        self._settings = {"keep_alive_timeout": keep_alive, "errorlog": None}

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Line]:
        """A connection to it."""
        async with serving_here(self.application, over=self.end, **self._settings) as address:
            reader, writer = await asyncio.open_connection(*address)
            try:
                yield Line(reader, writer)
            finally:
                writer.close()


@pytest.fixture(autouse=True)
def ours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "TCPServer", wire.Connection)
    monkeypatch.setattr(protocol, "H11Protocol", wire.Requests)
    monkeypatch.setattr(h11, "WSStream", wire.Stream)


@pytest.fixture
async def errors() -> AsyncIterator[list[dict[str, Any]]]:
    """What nobody caught on this loop."""
    loop, caught = asyncio.get_running_loop(), []
    loop.set_exception_handler(lambda _, context: caught.append(context))
    yield caught
    loop.set_exception_handler(None)


async def test_one_that_asks_for_nothing_is_closed_when_its_time_is_over() -> None:
    began = asyncio.get_running_loop().time()
    async with Server(SHORT).running() as line:
        assert await line.closed() - began >= SHORT


@pytest.mark.parametrize("takes", [SHORT / 2, 2 * SHORT])
async def test_whoever_waits_for_an_answer_is_not_idle_and_has_all_its_time_after_it(
    takes: float,
) -> None:
    server = Server(SHORT)
    async with server.running() as line:
        line.writer.write(REQUEST)
        await server.application.asked.wait()
        await asyncio.sleep(takes)
        server.application.may_answer.set()
        answered = asyncio.get_running_loop().time()
        assert b" 200 " in await line.answer()
        assert await line.closed() - answered >= SHORT


async def test_a_client_that_leaves_is_not_kept_until_its_time_is_over() -> None:
    async with asked_before() as (_, line):
        line.writer.write_eof()
        await line.closed()


async def test_a_client_that_leaves_when_its_handshake_was_refused_is_no_error(
    errors: list[dict[str, Any]],
) -> None:
    async with Server(LONG).running() as line:
        line.writer.write(HANDSHAKE)
        assert b" 403 " in await line.answer()
        line.writer.write_eof()
        await line.closed()
    assert not errors


async def test_a_server_that_leaves_still_answers_what_is_on_its_way() -> None:
    async with asked_before() as (server, line):
        server.end.set()
        await asyncio.sleep(0)
        line.writer.write(REQUEST)
        assert b" 200 " in await line.answer()
        await line.closed()


async def test_a_server_that_leaves_closes_an_idle_connection_a_moment_later() -> None:
    async with asked_before() as (server, line):
        began = asyncio.get_running_loop().time()
        server.end.set()
        assert await line.closed() - began >= wire.LINGER_SECONDS


@asynccontextmanager
async def asked_before() -> AsyncIterator[tuple[Server, Line]]:
    """A connection that is kept for long, after its first answer."""
    server = Server(LONG)
    server.application.may_answer.set()
    async with server.running() as line:
        line.writer.write(REQUEST)
        assert b" 200 " in await line.answer()
        yield server, line
