"""How connections end, with the security classes alone and with the latency classes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import h11 as http1
import pytest
from wsproto.events import CloseConnection, TextMessage

from quartapp.serving import hypercorn_security
from quartapp.serving.hypercorn_security import H11Connection
from tests.conftest import serving_in_process
from tests.integration.serving.clients import RawClient, websockets
from tests.people import SECONDS

REQUEST = b"GET / HTTP/1.1\r\nHost: here\r\n\r\n"
HANDSHAKE = (
    b"GET / HTTP/1.1\r\nHost: here\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
)
SHORT, LONG = 0.4, 2 * SECONDS


@pytest.fixture(autouse=True, params=["security", "latency"])
def classes(request: pytest.FixtureRequest) -> None:
    request.getfixturevalue(request.param)


class Application:
    """Answers 200 once `may_answer` is set. Refuses sockets, and waits for their disconnect."""

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


class InProcessServer:
    """hypercorn in this process, with an `Application`."""

    def __init__(self, keep_alive: float) -> None:
        self.application = Application()
        self.shut_down = asyncio.Event()
        self._settings = {"keep_alive_timeout": keep_alive, "errorlog": None}

    @asynccontextmanager
    async def client(self) -> AsyncIterator[RawClient]:
        async with serving_in_process(
            self.application, over=self.shut_down, **self._settings
        ) as address:
            client = RawClient(*await asyncio.open_connection(*address))
            try:
                yield client
            finally:
                client.writer.close()


@asynccontextmanager
async def answered_once() -> AsyncIterator[tuple[InProcessServer, RawClient]]:
    """Yield a server with a long idle timeout, and a connection that has received one answer."""
    server = InProcessServer(LONG)
    server.application.may_answer.set()
    async with server.client() as client:
        client.send(REQUEST)
        assert b" 200 " in await client.response_head()
        yield server, client


async def test_a_connection_without_requests_is_closed_after_its_idle_timeout() -> None:
    began = asyncio.get_running_loop().time()
    async with InProcessServer(SHORT).client() as client:
        assert await client.closed() - began >= SHORT


@pytest.mark.parametrize("takes", [SHORT / 2, 2 * SHORT], ids=["fast answer", "slow answer"])
async def test_the_idle_timeout_begins_after_the_answer(takes: float) -> None:
    server = InProcessServer(SHORT)
    async with server.client() as client:
        client.send(REQUEST)
        await server.application.asked.wait()
        await asyncio.sleep(takes)
        server.application.may_answer.set()
        answered = asyncio.get_running_loop().time()
        assert b" 200 " in await client.response_head()
        assert await client.closed() - answered >= SHORT


async def test_the_connection_of_a_disconnected_client_is_closed_at_once() -> None:
    async with answered_once() as (_, client):
        client.writer.write_eof()
        await client.closed()


async def test_disconnecting_after_a_refused_handshake_is_no_error(
    unhandled: list[dict[str, Any]],
) -> None:
    async with InProcessServer(LONG).client() as client:
        client.send(HANDSHAKE)
        assert b" 403 " in await client.response_head()
        client.writer.write_eof()
        await client.closed()
    assert not unhandled


async def test_a_request_sent_during_shutdown_is_answered() -> None:
    async with answered_once() as (server, client):
        server.shut_down.set()
        await asyncio.sleep(0)
        client.send(REQUEST)
        assert b" 200 " in await client.response_head()
        await client.closed()


async def test_an_idle_connection_is_closed_soon_after_the_server_shuts_down() -> None:
    async with answered_once() as (server, client):
        began = asyncio.get_running_loop().time()
        server.shut_down.set()
        assert await client.closed() - began >= hypercorn_security.LINGER_SECONDS


async def test_a_message_after_the_close_frame_reaches_the_application() -> None:
    async with websockets(1) as (application, [client]):
        await application.sends[0]({"type": "websocket.close", "code": 4400})
        # The client has not read the close frame yet.
        client.send(TextMessage("acknowledged"))
        assert await application.next_received() == "acknowledged"


async def test_a_client_that_floods_after_the_close_frame_is_cut_off(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(hypercorn_security, "CUT_SECONDS", SHORT)
    monkeypatch.setattr(hypercorn_security, "LATE_BYTES", 1000)
    async with websockets(1) as (application, [client]):
        await application.sends[0]({"type": "websocket.close", "code": 4400})
        client.send(TextMessage("x" * 1000))
        client.send(TextMessage("late"))
        assert await application.next_disconnected() == 0
        assert application.received.empty()
        assert (await client.next()).code == 4400


async def test_a_message_that_is_too_long_closes_the_socket() -> None:
    async with websockets(1, websocket_max_message_size=1000) as (application, [client]):
        client.send(TextMessage("x" * 1000))
        assert await application.next_received() == "x" * 1000
        client.send(TextMessage("x" * 1001))
        closing = await client.next()
        assert isinstance(closing, CloseConnection)
        assert closing.code == 1009
        assert await application.next_disconnected() == 0


@pytest.mark.parametrize(
    ("lines", "refused"), [(100, False), (102, True)], ids=["100 lines", "102 lines"]
)
def test_a_head_of_too_many_lines_is_refused_before_it_is_parsed(lines: int, refused: bool) -> None:
    connection = H11Connection(http1.SERVER)
    connection.receive_data(b"GET / HTTP/1.1\r\n" + b"a:b\r\n" * lines)
    if refused:
        with pytest.raises(http1.RemoteProtocolError) as error:
            connection.next_event()
        assert error.value.error_status_hint == 431
    else:
        assert connection.next_event() is http1.NEED_DATA
