"""Limits of sockets: messages, silence, number, unread data and the time that sessions last."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import websockets
from bson import DBRef, ObjectId

from quartapp import clock
from quartapp.ws.protocol import format_time
from tests.conftest import PASSWORD, serving
from tests.integration.flows.conftest import assert_no_errors_logged
from tests.people import Person, Server, Tab, until

PING, PER_SESSION = 1, 4
BIG = 30_000


@pytest.fixture(scope="module")
async def server(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Server]:
    async with serving(
        tmp_path_factory.mktemp("limits"),
        LIVE_PING_SECONDS=str(PING),
        LIVE_SWEEP_SECONDS="3600",
        LIVE_MAILBOX="8",
        SOCKETS_PER_SESSION=str(PER_SESSION),
    ) as server:
        await server.run(
            *("user", "create", "root", "root@example.org", "--role", "admin"), stdin=PASSWORD
        )
        yield server
    assert_no_errors_logged(server)


# ---- messages


@pytest.mark.parametrize(
    "frame",
    [
        "{",
        "",
        "null",
        "[]",
        '"pong"',
        '{"type": "hello"}',
        '{"type": ["pong"]}',
        '{"type": "ack"}',
        '{"type": "ack", "id": 1}',
        '{"type": "subscribe", "to": "everything"}',
        "[" * 4000,
        b"",
        b'{"type": "pong"}',
        json.dumps({"type": "pong", "at": "x" * 4096}),
        json.dumps({"type": "pong", "at": "ü" * 2000}, ensure_ascii=False) + " " * 80,
    ],
    ids=lambda frame: repr(frame[:24]),
)
async def test_an_unexpected_message_closes_the_socket_with_4400(ada: Person, frame: Any) -> None:
    async with ada.tab() as tab:
        await tab.socket.send(frame)
        assert await tab.closed() == 4400
        assert await tab.received("session.ended") == []
    assert await ada.is_signed_in()


async def test_pongs_and_acknowledgements_keep_the_socket_open(ada: Person) -> None:
    async with ada.tab() as tab:
        await tab.send(type="pong", at="2026-01-01T00:00:00.000+00:00")
        await tab.send(type="ack", id="17")
        await tab.socket.send(json.dumps({"type": "pong", "at": "x" * 4000}))
        await tab.next("ping")
        assert await tab.is_open()


@pytest.mark.parametrize("count", [300, 5000])
async def test_a_flood_of_unrequested_pongs_closes_the_connection(ada: Person, count: int) -> None:
    """All frames are sent at once, so that many arrive after the close frame of the server.

    The server must close the TCP connection all the same.
    """
    pong = b'{"type":"pong"}'
    frame = bytes([0x81, 0x80 | len(pong), 0, 0, 0, 0]) + pong
    with stalled_client(ada) as client:
        client.setblocking(False)
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(10):
            with suppress(ConnectionError):
                await loop.sock_sendall(client, frame * count)
            received = b""
            with suppress(ConnectionError):
                while chunk := await loop.sock_recv(client, 65536):
                    received += chunk
    assert (4400).to_bytes(2, "big") + b"too many messages" in received


async def test_only_a_silent_client_is_closed_after_two_ping_intervals(
    ada: Person,
) -> None:
    loop = asyncio.get_running_loop()
    async with ada.tab() as silent, ada.tab() as answering:
        began = loop.time()
        closing = asyncio.create_task(close_code_without_pongs(silent))
        for _ in range(4):
            await answering.next("ping")
        assert await closing == 4408
        assert loop.time() - began >= 2 * PING
        assert await answering.is_open()


async def close_code_without_pongs(tab: Tab) -> int:
    try:
        async with asyncio.timeout(4 * PING + 2):
            while True:
                await tab.socket.recv()
    except websockets.ConnectionClosed as closed:
        return closed.rcvd.code if closed.rcvd else 1006


# ---- the number of sockets


async def test_sockets_are_limited_for_each_session(ada: Person, bob: Person) -> None:
    async with AsyncExitStack() as stack:
        tries = await asyncio.gather(*(stack.enter_async_context(try_tab(ada)) for _ in range(24)))
        greeted = [tab.hello["worker"] for tab in tries if isinstance(tab, Tab)]
        assert {tab for tab in tries if not isinstance(tab, Tab)} == {503}
        assert max(greeted.count(worker) for worker in ("0", "1")) == PER_SESSION
        async with bob.tab() as tab:
            assert await tab.is_open()
    # Closed sockets free their places.
    async with ada.tabs() as tabs:
        assert [tab.hello["worker"] for tab in tabs] == ["0", "1"]


@asynccontextmanager
async def try_tab(person: Person) -> AsyncIterator[Tab | int]:
    """Yield a tab that has received `hello`, or the status that refused the handshake."""
    async with AsyncExitStack() as stack:
        try:
            tab: Tab | int = await stack.enter_async_context(person.tab())
        except websockets.InvalidStatus as refusal:
            tab = refusal.response.status_code
        yield tab


# ---- clients that do not read


@contextmanager
def stalled_client(person: Person, *, cursor: int = 0) -> Iterator[socket.socket]:
    """A socket whose client reads nothing after the handshake, with a small receive buffer."""
    address = urlsplit(person.url)
    assert address.hostname
    assert address.port
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        client.connect((address.hostname, address.port))
        key = base64.b64encode(os.urandom(16)).decode()
        client.sendall(
            f"GET /ws?cursor={cursor} HTTP/1.1\r\nHost: {address.netloc}\r\n"
            f"Origin: {person.url}\r\nCookie: {person.cookies()}\r\n"
            f"Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
            f"Sec-WebSocket-Key: {key}\r\n\r\n".encode()
        )
        assert client.recv(12) == b"HTTP/1.1 101"
        yield client


def more_than_buffers_hold() -> int:
    """Return how many big notifications are twice as much as the kernel buffers of a connection."""
    most = int(Path("/proc/sys/net/ipv4/tcp_wmem").read_text().split()[2])
    return 2 * (most + 65_536) // BIG


async def store_notifications(server: Server, person: Person, count: int) -> None:
    """Write that many big notifications for the user to the database."""
    async with server.database() as database:
        user = await database["users"].find_one({"username": person.username})
        assert user
        start = user["notice_seq"] + 1
        await database["users"].update_one({"_id": user["_id"]}, {"$inc": {"notice_seq": count}})
        await database["notices"].insert_many(
            {
                "user": DBRef("users", user["_id"]),
                "seq": seq,
                "kind": "post.removed",
                "data": {"by": "root", "title": "x" * BIG},
                "created_at": clock.now(),
                "read_at": None,
            }
            for seq in range(start, start + count)
        )


async def test_clients_that_do_not_read_do_not_delay_the_end_of_others(
    server: Server, root: Person, ada: Person
) -> None:
    await store_notifications(server, ada, more_than_buffers_hold())
    async with ada.tabs() as tabs, AsyncExitStack() as stack:
        # Each worker is blocked in the middle of sending a notification.
        for _ in range(PER_SESSION - 1):
            stack.enter_context(stalled_client(ada))
        for tab in tabs:
            await tab.next("ping")
        await root.post(f"/admin/users/{ada.username}/sessions/end")
        answered = asyncio.get_running_loop().time()
        for tab in tabs:
            assert await tab.closed() == 4401
        assert asyncio.get_running_loop().time() - answered < 1


async def test_clients_that_do_not_read_are_closed_and_free_their_places(
    server: Server, ada: Person
) -> None:
    await store_notifications(server, ada, more_than_buffers_hold())
    with stalled_clients_on_every_place(ada) as refused:
        assert refused
        await until(lambda: can_connect(ada), within=6 * PING + 2)


@contextmanager
def stalled_clients_on_every_place(person: Person) -> Iterator[int]:
    """Open such clients until twelve were refused, and yield how many were.

    On a slow machine the first ones are closed before the last ones are opened.
    """
    refused = 0
    with ExitStack() as stack:
        for _ in range(40):
            try:
                stack.enter_context(stalled_client(person))
            except AssertionError:
                refused += 1
            if refused == 12:
                break
        yield refused


async def can_connect(person: Person) -> bool:
    """Return whether a worker accepts another socket of the session."""
    for _ in range(8):
        async with try_tab(person) as tab:
            if isinstance(tab, Tab):
                return True
    return False


async def test_a_full_mailbox_closes_its_socket_and_loses_no_notification(
    server: Server, ada: Person
) -> None:
    count = more_than_buffers_hold()
    async with ada.tab(worker="0") as reader:
        start = int(reader.hello["cursor"])
        with stalled_client(ada, cursor=start):
            await store_notifications(server, ada, count)
            # The tab that reads receives all of them while the mailbox of the other overflows.
            received = [int((await reader.next("notice"))["id"]) for _ in range(count)]
            assert received == list(range(start + 1, start + count + 1))
            session = reader.hello["session"]
            await until(lambda: was_closed_as_slow(server, session), within=6 * PING)
    async with ada.tab(cursor=str(start)) as again:
        assert [int((await again.next("notice"))["id"]) for _ in range(count)] == received


async def was_closed_as_slow(server: Server, session: str) -> bool:
    return any("code=4408" in line and session in line for line in server.stderr().splitlines())


# ---- expiry


async def replace_session(server: Server, person: Person, change: dict[str, Any]) -> None:
    """Delete the session and insert a changed copy, before it has a tab.

    An update would be noticed by the workers from the change stream.
    """
    async with server.database() as database:
        user = await database["users"].find_one({"username": person.username})
        assert user
        session = await database["sessions"].find_one_and_delete({"user.$id": user["_id"]})
        assert session
        await database["sessions"].insert_one(session | change)


async def test_an_expiring_session_closes_its_open_sockets(
    server: Server, ada: Person, bob: Person
) -> None:
    """It expires by its age or by idleness, without a write and without the periodic check.

    Pongs do not prolong it: the tabs answer pings all the time.
    """
    soon = clock.now() + timedelta(seconds=5)
    await replace_session(server, ada, {"expires_at": soon})
    await replace_session(server, bob, {"seen_at": soon - timedelta(minutes=30)})
    async with ada.tabs() as adas, bob.tabs() as bobs:
        tabs = adas + bobs
        assert await asyncio.gather(*(tab.closed(within=20) for tab in tabs)) == [4401] * len(tabs)
        for tab in tabs:
            assert tab.messages[-1]["reason"] == "expired"
            assert tab.messages[-1]["by"] is None
            assert tab.messages[-1]["at"] >= format_time(soon)
            assert [message["type"] for message in tab.messages].count("ping") > 1
        for person in (ada, bob):
            assert await person.is_refused()


async def test_answering_pings_does_not_extend_the_session(server: Server, ada: Person) -> None:
    async with ada.tab() as tab, server.database() as database:
        session = {"_id": ObjectId(tab.hello["session"])}
        past = clock.now() - timedelta(minutes=20)
        await database["sessions"].update_one(session, {"$set": {"seen_at": past}})
        for _ in range(3):
            await tab.next("ping")
        found = await database["sessions"].find_one(session)
        assert found
        assert found["seen_at"] == past
        # Requesting a page does.
        assert await ada.status("/api/me") == 200

        async def is_seen() -> bool:
            found = await database["sessions"].find_one(session)
            return found is not None and found["seen_at"] > past

        await until(is_seen)
