"""When a connection ends, and how: spoken to by hand, with hypercorn in this process."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import h11 as http1
import pytest
from hypercorn import protocol
from hypercorn.asyncio import run
from hypercorn.protocol import h11
from wsproto import ConnectionType, WSConnection
from wsproto.events import AcceptConnection, CloseConnection, TextMessage
from wsproto.events import Request as WSRequest

from quartapp import wire
from quartapp.ws.line import LINE
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

    async def some(self) -> bytes:
        return await self._reader.read(1024)

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


class Sockets:
    """Takes in sockets, and all that comes on them until they are gone."""

    def __init__(self) -> None:
        self.lines: list[Any] = []
        self.came: asyncio.Queue[None] = asyncio.Queue()
        self.gone: asyncio.Queue[int] = asyncio.Queue()
        self.received: list[str] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        assert scope["type"] == "websocket"
        assert (await receive())["type"] == "websocket.connect"
        await send({"type": "websocket.accept", "subprotocol": None, "headers": []})
        number = len(self.lines)
        self.lines.append(scope["extensions"][LINE])
        self.came.put_nowait(None)
        while (message := await receive())["type"] != "websocket.disconnect":
            self.received.append(message["text"])
        self.gone.put_nowait(number)


class Visitor:
    """A client of theirs that closes as it likes."""

    def __init__(self, line: Line) -> None:
        self._line, self._speech = line, WSConnection(ConnectionType.CLIENT)

    async def hears(self) -> Any:
        while True:
            for event in self._speech.events():
                return event
            async with asyncio.timeout(SECONDS):
                self._speech.receive_data(await self._line.some())

    def says(self, event: Any) -> None:
        self._line.writer.write(self._speech.send(event))

    async def closed(self) -> None:
        await self._line.closed()


@asynccontextmanager
async def sockets(count: int) -> AsyncIterator[tuple[Sockets, list[Visitor]]]:
    application = Sockets()
    async with AsyncExitStack() as stack:
        serving = serving_here(application, over=asyncio.Event(), errorlog=None)
        address = await stack.enter_async_context(serving)
        clients = []
        for _ in range(count):
            line = Line(*await asyncio.open_connection(*address))
            stack.callback(line.writer.close)
            client = Visitor(line)
            client.says(WSRequest(host="here", target="/"))
            assert isinstance(await client.hears(), AcceptConnection)
            await application.came.get()
            clients.append(client)
        yield application, clients


async def put_away(application: Sockets) -> int:
    async with asyncio.timeout(SECONDS):
        return await application.gone.get()


async def test_last_words_go_past_the_application_and_so_does_what_is_answered() -> None:
    async with sockets(1) as (application, [client]):
        heard: asyncio.Queue[str] = asyncio.Queue()
        application.lines[0].say("over", heard.put_nowait)
        assert (await client.hears()).data == "over"
        client.says(TextMessage("understood"))
        async with asyncio.timeout(SECONDS):
            assert await heard.get() == "understood"
        application.lines[0].hang_up(4401, "why")
        closing = await client.hears()
        assert (closing.code, closing.reason) == (4401, "why")
        client.says(closing.response())
        await client.closed()
        assert await put_away(application) == 0
        assert application.received == []


async def test_what_is_said_after_the_close_frame_is_heard_while_somebody_listens(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Also while others are told that their sessions are over, for whom all else waits."""
    for wait in ("QUIET_SECONDS", "AT_LAST_SECONDS"):
        monkeypatch.setattr(wire, wait, 2 * SECONDS)
    async with sockets(1) as (application, [client]):
        heard: asyncio.Queue[str] = asyncio.Queue()
        application.lines[0].say("over", heard.put_nowait)
        application.lines[0].hang_up(4401, "why", listen=2 * SECONDS)
        assert (await client.hears()).data == "over"
        # It has not looked at the close frame yet, after which it would send nothing.
        client.says(TextMessage("understood"))
        async with asyncio.timeout(SECONDS):
            assert await heard.get() == "understood"
        assert (await client.hears()).code == 4401
        assert application.received == []


async def test_whoever_says_nothing_is_cut_off_when_nobody_listens_any_more(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(wire, "CUT_SECONDS", 0.0)
    loop = asyncio.get_running_loop()
    async with sockets(2) as (application, [first, second]):
        began = loop.time()
        for line in application.lines:
            line.say("over", application.received.append)
            line.hang_up(4401, "why", listen=SHORT)
        application.lines[1].hang_up(4401, "why")
        assert await put_away(application) == 1
        assert await put_away(application) == 0
        assert loop.time() - began >= SHORT
        for client in (first, second):
            assert [type(await client.hears()) for _ in range(2)] == [TextMessage, CloseConnection]
            await client.closed()


async def test_a_flood_after_the_close_frame_is_not_listened_to(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(wire, "CUT_SECONDS", SHORT)
    monkeypatch.setattr(wire, "LATE_BYTES", 1000)
    async with sockets(1) as (application, [client]):
        heard: list[str | bytes] = []
        application.lines[0].say("over", heard.append)
        application.lines[0].hang_up(4401, "why", listen=2 * SECONDS)
        client.says(TextMessage("x" * 1000))
        client.says(TextMessage("understood"))
        assert await put_away(application) == 0
        assert heard == []


async def test_whoever_does_not_answer_a_close_is_cut_off_when_its_time_is_over(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(wire, "CUT_SECONDS", SHORT)
    loop = asyncio.get_running_loop()
    async with sockets(1) as (application, [client]):
        began = loop.time()
        application.lines[0].hang_up(1012, "")
        assert (await client.hears()).code == 1012
        await client.closed()
        assert loop.time() - began >= SHORT
        assert await put_away(application) == 0


async def test_nothing_is_said_to_whoever_has_left_and_nothing_of_it_left_to_the_collector(
    errors: list[dict[str, Any]],
) -> None:
    gc.collect()
    gc.disable()
    try:
        async with sockets(1) as (application, [client]):
            client.says(CloseConnection(1000))
            assert await put_away(application) == 0
            line = application.lines.pop()
            # What it keeps of this, it would be kept by.
            line.say("over", lambda _, kept=line: kept)
            line.hang_up(4401, "why")
            assert (await client.hears()).code == 1000
            await client.closed()
            gone = asyncio.Event()
            weakref.finalize(line, gone.set)
            del line
            async with asyncio.timeout(SECONDS):
                await gone.wait()
    finally:
        gc.enable()
    assert not errors


@pytest.mark.parametrize("answers", [True, False])
async def test_whoever_is_over_is_put_away_once_nobody_is_left_to_be_told(
    monkeypatch: pytest.MonkeyPatch, answers: bool
) -> None:
    monkeypatch.setattr(wire, "CUT_SECONDS", wire.QUIET_SECONDS / 2)
    async with sockets(2) as (application, [first, second]):
        application.lines[0].hang_up(4401, "")
        closing = await first.hears()
        if answers:
            first.says(closing.response())
        for _ in range(4):
            await asyncio.sleep(wire.QUIET_SECONDS / 2)
            application.lines[1].say("wait", application.received.append)
            assert (await second.hears()).data == "wait"
            assert application.gone.empty()
        assert await put_away(application) == 0
        await first.closed()


async def test_whoever_is_over_is_put_away_at_last_though_others_are_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(wire, "AT_LAST_SECONDS", 0.0)
    monkeypatch.setattr(wire, "QUIET_SECONDS", 2 * SECONDS)
    async with sockets(1) as (application, [client]):
        application.lines[0].hang_up(4401, "")
        client.says((await client.hears()).response())
        assert await put_away(application) == 0


async def test_few_are_put_away_at_once_and_the_others_soon(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(wire, "QUIET_SECONDS", 0.0)
    lull, out = wire.Lull(), 0

    async def one() -> None:
        nonlocal out
        await lull.come()
        out += 1

    lull.put_off()
    lull._quiet_at += SHORT
    waiting = [asyncio.create_task(one()) for _ in range(3 * wire.AT_ONCE)]
    most = before = 0
    async with asyncio.timeout(SECONDS):
        while not all(task.done() for task in waiting):
            await asyncio.sleep(0)
            most, before = max(most, out - before), out
    assert 0 < most <= wire.AT_ONCE


@pytest.mark.parametrize(("lines", "refused"), [(100, False), (102, True)])
def test_a_head_of_too_many_lines_is_refused_before_it_is_parsed(lines: int, refused: bool) -> None:
    connection = wire.Http1(http1.SERVER)
    connection.receive_data(b"GET / HTTP/1.1\r\n" + b"a:b\r\n" * lines)
    if refused:
        with pytest.raises(http1.RemoteProtocolError) as error:
            connection.next_event()
        assert error.value.error_status_hint == 431
    else:
        assert connection.next_event() is http1.NEED_DATA
