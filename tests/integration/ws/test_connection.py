"""A connection over a fake socket, for timing that is hard to reproduce over a real one."""

from __future__ import annotations

import asyncio
import gc
import json
import weakref
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest
from beanie import PydanticObjectId

from quartapp import clock
from quartapp.activities import ACCOUNT_CREATED
from quartapp.authority.session_rule import EndedSession, HeldRole, Principal
from quartapp.models.base.references import user_ref
from quartapp.models.notifications.notice import Notice
from quartapp.models.sessions.reason import Reason
from quartapp.ws import connection as ws_connection
from quartapp.ws import fast_path
from quartapp.ws.connection import Connection
from quartapp.ws.fast_path import QueuedChannel
from quartapp.ws.hub import Hub, Limits, NoCapacity
from quartapp.ws.protocol import CloseCode
from tests.people import SECONDS

USER, SESSION = PydanticObjectId(), PydanticObjectId()
MAILBOX = 4
ADA = Principal(
    session_id=SESSION,
    user_id=USER,
    username="ada",
    roles=("member",),
    permissions=frozenset({"posts.write"}),
    version=5,
    changed_by="root",
    cursor=0,
    unread=0,
    seen_at=clock.now(),
    confirmed_at=clock.now(),
    seconds_left=60.0,
)
MODERATOR = replace(ADA, permissions=frozenset({"posts.write", "users.read"}), version=6)


class Socket:
    """A fake socket that collects messages unless it is stuck, and answers as told."""

    def __init__(self) -> None:
        self.answers: asyncio.Queue[str] = asyncio.Queue()
        self.said: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self.code: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self.reads = asyncio.Event()
        self.reads.set()

    async def send(self, data: str, /) -> None:
        await self.reads.wait()
        self.said.put_nowait(json.loads(data))

    async def receive(self) -> str | bytes:
        return await self.answers.get()

    async def close(self, code: int, reason: str = "") -> None:
        await self.reads.wait()
        self.code.set_result(code)

    async def next(self) -> dict[str, Any]:
        async with asyncio.timeout(2):
            return await self.said.get()


@pytest.fixture(autouse=True)
def nothing_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Find no missed notifications, because these tests have no database."""

    async def none(*_: object, **__: object) -> list[Notice]:
        return []

    monkeypatch.setattr(Notice, "after", none)


@asynccontextmanager
async def connected(**changes: Any) -> AsyncIterator[tuple[Connection, Socket]]:
    """A connection of ADA after its hello, with a handler as /ws runs it."""
    socket, made = Socket(), asyncio.get_running_loop().create_future()

    async def handler() -> None:
        connection = connection_of(socket, **changes)
        connection.send_hello(ADA, cursor=None, worker="0")
        made.set_result(connection)
        await connection.run()

    task = asyncio.create_task(handler())
    connection: Connection = await made
    assert (await socket.next())["type"] == "hello"
    try:
        yield connection, socket
    finally:
        task.cancel()
        await asyncio.wait([task])


def connection_of(socket: Socket, **changes: Any) -> Connection:
    words = {"session_id": SESSION, "user_id": USER, "mailbox": MAILBOX, "ping_seconds": 60}
    return Connection(socket, QueuedChannel(socket), **(words | changes))


def notice(seq: int) -> Notice:
    return Notice.model_construct(
        user=user_ref(USER),
        seq=seq,
        kind=ACCOUNT_CREATED.notification_kind,
        data={},
        created_at=clock.now(),
    )


async def silent(socket: Socket) -> bool:
    """Return whether no message was sent within a few turns of the event loop."""
    for _ in range(10):
        await asyncio.sleep(0)
    return socket.said.empty()


async def test_a_closed_connection_leaves_no_reference_cycle() -> None:
    """Collecting it would stop the worker while the collector visits all open connections."""
    gc.collect()
    gc.disable()
    try:
        async with connected() as (connection, socket):
            gone = weakref.ref(connection)
            connection.close(CloseCode.RESTART)
            await socket.code
        await connection.wait_closed()
        del connection, socket
        assert gone() is None
    finally:
        gc.enable()


async def test_changed_permissions_are_sent_with_the_difference() -> None:
    async with connected() as (connection, socket):
        assert connection.update_principal(MODERATOR)
        news = await socket.next()
        assert (news["version"], news["added"], news["removed"]) == (6, ["users.read"], [])
        assert (news["permissions"], news["by"]) == (["posts.write", "users.read"], "root")


async def test_permissions_of_an_older_version_are_ignored() -> None:
    async with connected() as (connection, socket):
        assert connection.update_principal(replace(MODERATOR, version=4))
        assert await silent(socket)
        assert connection.sent_principal == ADA


async def test_changed_permissions_of_the_same_version_are_not_sent() -> None:
    async with connected() as (connection, socket):
        assert not connection.update_principal(replace(MODERATOR, version=5))
        assert await silent(socket)
        assert connection.update_principal(MODERATOR)
        assert (await socket.next())["version"] == 6


async def test_a_new_version_of_the_same_permissions_is_not_sent() -> None:
    async with connected() as (connection, socket):
        assert connection.update_principal(replace(ADA, version=9))
        assert await silent(socket)
        assert not connection.update_principal(replace(MODERATOR, version=9))


MEMBER, CREW = (HeldRole(PydanticObjectId(), version, 0) for version in (2, 7))
BEFORE = replace(ADA, held=(MEMBER,))


@pytest.mark.parametrize(
    ("version", "held", "numbered"),
    [
        (6, MEMBER._replace(version=3, content=1), True),
        (5, MEMBER._replace(content=1), False),
        (3, MEMBER._replace(version=0, content=1), False),
        (4, MEMBER, True),
    ],
    ids=["edited", "edited by hand", "replaced by hand", "read before"],
)
async def test_a_change_of_a_role_is_sent_when_its_version_has_been_raised(
    version: int, held: HeldRole, numbered: bool
) -> None:
    async with connected() as (connection, _):
        assert connection.update_principal(replace(BEFORE, version=5))
        now = replace(MODERATOR, version=version, held=(held,))
        assert connection.update_principal(now) is numbered


async def test_a_role_given_by_hand_is_sent_when_the_users_version_has_been_raised() -> None:
    """The version of the role alone makes the sum higher."""
    async with connected() as (connection, socket):
        assert connection.update_principal(BEFORE)
        given = replace(MODERATOR, version=12, held=(MEMBER, CREW))
        assert not connection.update_principal(given)
        assert await silent(socket)
        assert connection.update_principal(replace(given, version=13))
        assert (await socket.next())["version"] == 13


async def test_an_expired_session_is_checked_once_unless_it_was_used() -> None:
    hub = Hub(Limits(sockets=9, per_session=9, per_user=9, per_address=9, handshakes=9))
    async with connected() as (connection, socket):
        hub.join(connection)
        assert hub.expired_sessions() == set()
        # Only the time is new, so no message is sent.
        hub.apply_states([replace(ADA, seconds_left=0.0)])
        assert hub.expired_sessions() == {SESSION}
        hub.apply_states([replace(ADA, seconds_left=60.0)])
        assert hub.expired_sessions() == set()
        assert await silent(socket)


async def test_a_change_before_hello_makes_the_connection_check_again() -> None:
    async def handler() -> Connection:
        return connection_of(Socket())

    connection = await asyncio.create_task(handler())
    assert connection.update_principal(MODERATOR)
    connection.deliver_notice(notice(1))
    connection.announce_session({"id": "1"})
    assert connection.state_changed.is_set()
    assert connection.sent_principal is None


async def test_notifications_are_sent_in_order_and_once() -> None:
    async with connected() as (connection, socket):
        for seq in (1, 2, 1, 2, 3):
            connection.deliver_notice(notice(seq))
            await asyncio.sleep(0)
        assert [(await socket.next())["id"] for _ in range(3)] == ["1", "2", "3"]
        assert await silent(socket)


async def test_missed_notifications_are_loaded_before_later_ones_are_sent(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def stored(_: Any, seq: int, *, limit: int) -> list[Notice]:
        return [notice(each) for each in (1, 2, 3) if each > seq][:limit]

    async with connected() as (connection, socket):
        # It has found no missed notification before this one was stored.
        assert await silent(socket)
        monkeypatch.setattr(Notice, "after", stored)
        connection.deliver_notice(notice(3))
        assert [(await socket.next())["id"] for _ in range(3)] == ["1", "2", "3"]
        assert await silent(socket)


async def test_a_full_mailbox_closes_the_socket_of_a_client_that_does_not_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ws_connection, "STUCK_SECONDS", 0.0)
    async with connected() as (connection, socket):
        socket.reads.clear()
        connection.deliver_notice(notice(1))
        await asyncio.sleep(0)
        for seq in range(2, MAILBOX + 3):
            connection.deliver_notice(notice(seq))
        socket.reads.set()
        async with asyncio.timeout(SECONDS):
            assert await socket.code == CloseCode.TOO_SLOW


async def test_a_full_queue_closes_the_socket_if_a_message_is_not_stored() -> None:
    async with connected() as (connection, socket):
        socket.reads.clear()
        for number in range(MAILBOX + 2):
            connection.announce_session({"id": str(number)})
        socket.reads.set()
        assert await socket.code == CloseCode.TOO_SLOW


async def test_the_end_notice_bypasses_a_full_queue_and_is_the_last_message() -> None:
    async with connected() as (connection, socket):
        socket.reads.clear()
        for seq in range(1, MAILBOX):
            connection.deliver_notice(notice(seq))
        await asyncio.sleep(0)
        connection.end(EndedSession(SESSION, USER, Reason.ROLE_REVOKED, "root", clock.now()))
        connection.update_principal(MODERATOR)
        socket.reads.set()
        assert await socket.code == CloseCode.ENDED
        said = [socket.said.get_nowait() for _ in range(socket.said.qsize())]
        assert said[-1]["type"] == "session.ended"
        assert (said[-1]["reason"], said[-1]["by"]) == ("role_revoked", "root")
        assert [m["type"] for m in said].count("session.ended") == 1


async def test_no_message_follows_the_end_notice() -> None:
    async with connected() as (connection, socket):
        connection.end(EndedSession(SESSION, USER, Reason.EXPIRED, None, clock.now()))
        connection.update_principal(MODERATOR)
        assert (await socket.next())["type"] == "session.ended"
        assert await socket.code == CloseCode.ENDED
        assert socket.said.empty()


async def test_the_close_frame_waits_for_the_acknowledgement(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ws_connection, "ACK_SECONDS", 2 * SECONDS)
    async with connected() as (connection, socket):
        connection.end(EndedSession(SESSION, USER, Reason.ENDED_BY_ADMIN, None, clock.now()))
        words = await socket.next()
        socket.answers.put_nowait(json.dumps({"type": "ack", "id": words["id"]}))
        async with asyncio.timeout(SECONDS):
            assert await socket.code == CloseCode.ENDED
            assert await connection.end_ack is not None


async def test_a_pong_does_not_acknowledge_the_end_notice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fast_path, "CUT_SECONDS", 0.1)
    async with connected() as (connection, socket):
        connection.close(CloseCode.TOO_SLOW)
        socket.answers.put_nowait('{"type": "pong"}')
        assert await socket.code == CloseCode.TOO_SLOW
        assert socket.answers.empty()
        assert await connection.end_ack is None


async def test_an_acknowledgement_counts_after_the_close_frame(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ws_connection, "ACK_SECONDS", 0.0)
    monkeypatch.setattr(ws_connection, "LATE_ACK_SECONDS", 2 * SECONDS)
    # A socket that is closed without waiting for a late acknowledgement is cut off at once.
    monkeypatch.setattr(fast_path, "CUT_SECONDS", 0.0)
    async with connected() as (connection, socket):
        connection.end(EndedSession(SESSION, USER, Reason.ENDED_BY_ADMIN, None, clock.now()))
        words = await socket.next()
        async with asyncio.timeout(SECONDS):
            assert await socket.code == CloseCode.ENDED
            assert await silent(socket)
            assert not connection.end_ack.done()
            socket.answers.put_nowait(json.dumps({"type": "ack", "id": words["id"]}))
            assert await connection.end_ack is not None


async def test_a_client_that_never_acknowledges_is_closed_after_the_timeout(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ws_connection, "ACK_SECONDS", 0.1)
    monkeypatch.setattr(ws_connection, "LATE_ACK_SECONDS", 0.2)
    monkeypatch.setattr(fast_path, "CUT_SECONDS", 0.1)
    async with connected() as (connection, socket):
        connection.end(EndedSession(SESSION, USER, Reason.ENDED_BY_ADMIN, None, clock.now()))
        assert (await socket.next())["type"] == "session.ended"
        async with asyncio.timeout(SECONDS):
            assert await socket.code == CloseCode.ENDED
            assert await connection.end_ack is None
            await connection.wait_closed()


async def test_a_stopping_worker_waits_for_no_acknowledgement(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ws_connection, "ACK_SECONDS", 2 * SECONDS)
    monkeypatch.setattr(ws_connection, "LATE_ACK_SECONDS", 4 * SECONDS)
    monkeypatch.setattr(fast_path, "CUT_SECONDS", 0.1)
    hub = Hub(LIMITS)
    async with connected() as (connection, _):
        hub.join(connection)
        hub.apply_states([EndedSession(SESSION, USER, Reason.ENDED_BY_ADMIN, None, clock.now())])
        async with asyncio.timeout(SECONDS):
            await hub.close_for_restart()
            assert await connection.end_ack is None


async def test_a_socket_of_an_ended_session_counts_until_it_is_closed() -> None:
    """Otherwise a client could hold any number of sockets by ending its sessions."""
    hub = Hub(replace(LIMITS, per_session=1, per_user=1, per_address=1))
    async with connected(address=HERE) as (connection, _):
        hub.join(connection)
        hub.apply_states([EndedSession(SESSION, USER, Reason.ENDED_BY_ADMIN, None, clock.now())])
        assert (len(hub), hub.connected_sessions(), hub.sessions_of([USER])) == (1, [], set())
        hub.check_capacity(SESSION, USER, "192.0.2.99")
        with pytest.raises(NoCapacity):
            hub.check_capacity(PydanticObjectId(), PydanticObjectId(), HERE)
    for _ in range(2):
        hub.leave(connection)
    assert len(hub) == 0
    hub.check_capacity(SESSION, USER, HERE)


async def test_a_socket_that_accepts_no_data_is_closed_after_a_second() -> None:
    async with connected() as (connection, socket):
        socket.reads.clear()
        connection.deliver_notice(notice(1))
        await asyncio.sleep(0)
        connection.end(EndedSession(SESSION, USER, Reason.EXPIRED, None, clock.now()))
        async with asyncio.timeout(3):
            await connection.wait_closed()
        assert not socket.code.done()


async def test_a_silent_client_is_closed_after_two_intervals() -> None:
    async with connected(ping_seconds=0.05) as (_, socket):
        assert (await socket.next())["type"] == "ping"
        assert await socket.code == CloseCode.TOO_SLOW


LIMITS = Limits(sockets=100, per_session=100, per_user=100, per_address=100, handshakes=100)
HERE = "192.0.2.1"


def stranger(hub: Hub) -> None:
    """Open a connection of another user from another address."""
    hub.check_capacity(PydanticObjectId(), PydanticObjectId(), "192.0.2.99")


async def test_the_hub_lists_open_connections_and_removes_closed_ones() -> None:
    async def handler() -> Connection:
        return connection_of(Socket())

    hub = Hub(LIMITS)
    first, second = [await asyncio.create_task(handler()) for _ in range(2)]
    hub.join(first)
    hub.join(second)
    assert (len(hub), hub.connected_sessions(), hub.sessions_of([USER])) == (
        2,
        [SESSION],
        {SESSION},
    )
    for _ in range(2):
        hub.leave(first)
    assert len(hub) == 1
    hub.leave(second)
    assert (len(hub), hub.connected_sessions(), hub.sessions_of([USER])) == (0, [], set())


@pytest.mark.parametrize("limit", ["sockets", "per_session", "per_user", "per_address"])
async def test_the_hub_is_full_at_each_of_its_limits(limit: str) -> None:
    async def handler() -> Connection:
        return connection_of(Socket(), address=HERE)

    hub = Hub(replace(LIMITS, **{limit: 2}))
    two = [await asyncio.create_task(handler()) for _ in range(2)]
    for connection in two:
        hub.check_capacity(SESSION, USER, HERE)
        hub.join(connection)
    asking = {
        "sockets": (PydanticObjectId(), PydanticObjectId(), "192.0.2.99"),
        "per_session": (SESSION, PydanticObjectId(), "192.0.2.99"),
        "per_user": (PydanticObjectId(), USER, "192.0.2.99"),
        "per_address": (PydanticObjectId(), PydanticObjectId(), HERE),
    }
    with pytest.raises(NoCapacity):
        hub.check_capacity(*asking[limit])
    if limit != "sockets":
        stranger(hub)
    hub.leave(two[0])
    hub.check_capacity(*asking[limit])


async def test_the_hub_limits_handshakes_and_refuses_them_while_draining() -> None:
    hub = Hub(replace(LIMITS, handshakes=2))
    turns = [hub.begin_handshake() for _ in range(2)]
    with pytest.raises(NoCapacity):
        hub.begin_handshake()
    for _ in range(2):
        hub.end_handshake(turns[0])
    hub.begin_handshake()
    with pytest.raises(NoCapacity):
        hub.begin_handshake()
    hub.end_handshake(turns[1])
    hub.draining = True
    with pytest.raises(NoCapacity):
        hub.begin_handshake()


async def test_the_hub_finds_users_whose_permissions_changed_unversioned() -> None:
    hub = Hub(LIMITS)
    async with connected() as (connection, _):
        hub.join(connection)
        unversioned = replace(MODERATOR, version=5)
        assert hub.apply_states([unversioned]) == [(ADA, unversioned)]
        assert hub.apply_states([MODERATOR]) == []
        hub.leave(connection)


async def test_a_new_session_is_announced_to_other_sessions_of_its_user() -> None:
    """Also if the new session has a socket before its event arrives."""
    other, stranger = PydanticObjectId(), PydanticObjectId()
    hub = Hub(LIMITS)
    async with (
        connected() as (mine, new),
        connected(session_id=other) as (elsewhere, old),
        connected(session_id=PydanticObjectId(), user_id=stranger) as (nobodys, strange),
    ):
        for connection in (mine, elsewhere, nobodys):
            hub.join(connection)
        hub.announce_session(USER, SESSION, {"id": str(SESSION)})
        assert (await old.next())["session"] == {"id": str(SESSION)}
        assert await silent(new)
        assert await silent(strange)
        for connection in (mine, elsewhere, nobodys):
            hub.leave(connection)
