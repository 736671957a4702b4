"""What a client may not do, and what it costs the others: nothing. A server with short patience."""

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
from quartapp.ws.protocol import timestamp
from tests.conftest import PASSWORD, serving
from tests.flows.conftest import assert_unsurprised
from tests.people import Person, Server, Tab, until

PING, PER_SESSION = 1, 4
BIG = 30_000


@pytest.fixture(scope="module")
async def server(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Server]:
    async with serving(
        tmp_path_factory.mktemp("brisk"),
        LIVE_PING_SECONDS=str(PING),
        LIVE_SWEEP_SECONDS="3600",
        LIVE_MAILBOX="8",
        SOCKETS_PER_SESSION=str(PER_SESSION),
    ) as server:
        await server.run(
            *("user", "create", "root", "root@example.org", "--role", "admin"), stdin=PASSWORD
        )
        yield server
    assert_unsurprised(server)


# ---- what is said


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
        assert await tab.heard("session.ended") == []
    assert await ada.is_signed_in()


async def test_pongs_and_acknowledgements_keep_the_socket_open(ada: Person) -> None:
    async with ada.tab() as tab:
        await tab.say(type="pong", at="2026-01-01T00:00:00.000+00:00")
        await tab.say(type="ack", id="17")
        await tab.socket.send(json.dumps({"type": "pong", "at": "x" * 4000}))
        await tab.next("ping")
        assert await tab.is_open()


@pytest.mark.parametrize("count", [300, 5000])
async def test_a_flood_of_unrequested_pongs_closes_the_connection(ada: Person, count: int) -> None:
    """In one piece, so that frames are still coming in when the server has closed: its side of the
    connection must end all the same, and not wait for somebody to take them."""
    pong = b'{"type":"pong"}'
    frame = bytes([0x81, 0x80 | len(pong), 0, 0, 0, 0]) + pong
    with deaf(ada) as line:
        line.setblocking(False)
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(10):
            with suppress(ConnectionError):
                await loop.sock_sendall(line, frame * count)
            received = b""
            with suppress(ConnectionError):
                while chunk := await loop.sock_recv(line, 65536):
                    received += chunk
    assert (4400).to_bytes(2, "big") + b"too many messages" in received


async def test_only_a_silent_client_is_closed_after_two_ping_intervals(
    ada: Person,
) -> None:
    loop = asyncio.get_running_loop()
    async with ada.tab() as mute, ada.tab() as polite:
        began = loop.time()
        patience = asyncio.create_task(until_silence_is_punished(mute))
        for _ in range(4):
            await polite.next("ping")
        assert await patience == 4408
        assert loop.time() - began >= 2 * PING
        assert await polite.is_open()


async def until_silence_is_punished(tab: Tab) -> int:
    try:
        async with asyncio.timeout(4 * PING + 2):
            while True:
                await tab.socket.recv()
    except websockets.ConnectionClosed as closed:
        return closed.rcvd.code if closed.rcvd else 1006


# ---- how many there may be


async def test_sockets_are_limited_for_each_session(ada: Person, bob: Person) -> None:
    async with AsyncExitStack() as stack:
        tries = await asyncio.gather(*(stack.enter_async_context(opened(ada)) for _ in range(24)))
        greeted = [tab.hello["worker"] for tab in tries if isinstance(tab, Tab)]
        assert {tab for tab in tries if not isinstance(tab, Tab)} == {503}
        assert max(greeted.count(worker) for worker in ("0", "1")) == PER_SESSION
        async with bob.tab() as tab:
            assert await tab.is_open()
    # Who leaves makes room.
    async with ada.tabs() as tabs:
        assert [tab.hello["worker"] for tab in tabs] == ["0", "1"]


@asynccontextmanager
async def opened(person: Person) -> AsyncIterator[Tab | int]:
    """A greeted tab, or the status with which it was refused."""
    async with AsyncExitStack() as stack:
        try:
            tab: Tab | int = await stack.enter_async_context(person.tab())
        except websockets.InvalidStatus as refusal:
            tab = refusal.response.status_code
        yield tab


# ---- clients that do not read


@contextmanager
def deaf(person: Person, *, cursor: int = 0) -> Iterator[socket.socket]:
    """A socket whose client shook hands and reads nothing more, with the smallest of buffers."""
    address = urlsplit(person.url)
    assert address.hostname
    assert address.port
    with socket.socket() as line:
        line.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        line.connect((address.hostname, address.port))
        key = base64.b64encode(os.urandom(16)).decode()
        line.sendall(
            f"GET /ws?cursor={cursor} HTTP/1.1\r\nHost: {address.netloc}\r\n"
            f"Origin: {person.url}\r\nCookie: {person.cookies()}\r\n"
            f"Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
            f"Sec-WebSocket-Key: {key}\r\n\r\n".encode()
        )
        assert line.recv(12) == b"HTTP/1.1 101"
        yield line


def more_than_buffers_hold() -> int:
    """So many big notices fill what the kernel keeps for one connection, twice over."""
    most = int(Path("/proc/sys/net/ipv4/tcp_wmem").read_text().split()[2])
    return 2 * (most + 65_536) // BIG


async def pile_up(server: Server, person: Person, count: int) -> None:
    """Stores so many big notices for the person."""
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
    await pile_up(server, ada, more_than_buffers_hold())
    async with ada.tabs() as tabs, AsyncExitStack() as stack:
        # Stuck in the middle of a notice, on both workers.
        for _ in range(PER_SESSION - 1):
            stack.enter_context(deaf(ada))
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
    await pile_up(server, ada, more_than_buffers_hold())
    with deaf_on_every_place(ada):
        assert not await there_is_room(ada)
        await until(lambda: there_is_room(ada), within=6 * PING + 2)


@contextmanager
def deaf_on_every_place(person: Person) -> Iterator[None]:
    with ExitStack() as stack:
        for _ in range(40):
            try:
                stack.enter_context(deaf(person))
            except AssertionError:
                continue
        yield


async def there_is_room(person: Person) -> bool:
    """Whether a worker takes another socket of the session."""
    for _ in range(8):
        async with opened(person) as tab:
            if isinstance(tab, Tab):
                return True
    return False


async def test_a_full_mailbox_closes_its_socket_and_loses_no_notification(
    server: Server, ada: Person
) -> None:
    count = more_than_buffers_hold()
    async with ada.tab(worker="0") as reader:
        start = int(reader.hello["cursor"])
        with deaf(ada, cursor=start):
            await pile_up(server, ada, count)
            # The one that reads has it all, while the other's mailbox overflows.
            heard = [int((await reader.next("notice"))["id"]) for _ in range(count)]
            assert heard == list(range(start + 1, start + count + 1))
            session = reader.hello["session"]
            await until(lambda: was_cut_off(server, session), within=6 * PING)
    async with ada.tab(cursor=str(start)) as again:
        assert [int((await again.next("notice"))["id"]) for _ in range(count)] == heard


async def was_cut_off(server: Server, session: str) -> bool:
    return any("code=4408" in line and session in line for line in server.said().splitlines())


# ---- time


async def as_if_signed_in_before(server: Server, person: Person, change: dict[str, Any]) -> None:
    """Of a document that changes every worker hears. This one is there anew before it has a tab."""
    async with server.database() as database:
        user = await database["users"].find_one({"username": person.username})
        assert user
        session = await database["sessions"].find_one_and_delete({"user.$id": user["_id"]})
        assert session
        await database["sessions"].insert_one(session | change)


async def test_an_expiring_session_closes_its_open_sockets(
    server: Server, ada: Person, bob: Person
) -> None:
    """By its age or by idleness, when nothing is written and no sweep is due. Pongs renew neither:
    the tabs answer all along."""
    soon = clock.now() + timedelta(seconds=5)
    await as_if_signed_in_before(server, ada, {"expires_at": soon})
    await as_if_signed_in_before(server, bob, {"seen_at": soon - timedelta(minutes=30)})
    async with ada.tabs() as adas, bob.tabs() as bobs:
        tabs = adas + bobs
        assert await asyncio.gather(*(tab.closed(within=20) for tab in tabs)) == [4401] * len(tabs)
        for tab in tabs:
            assert tab.said[-1]["reason"] == "expired"
            assert tab.said[-1]["by"] is None
            assert tab.said[-1]["at"] >= timestamp(soon)
            assert [message["type"] for message in tab.said].count("ping") > 1
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
        # A page is one.
        assert await ada.status("/api/me") == 200

        async def is_seen() -> bool:
            found = await database["sessions"].find_one(session)
            return found is not None and found["seen_at"] > past

        await until(is_seen)
