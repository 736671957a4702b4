"""Topics: which sockets are told of a change, how often, and at which cost."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import Any, cast

import pytest
from beanie import PydanticObjectId
from quart import Quart
from quart_auth import authenticated_client

from quartapp import clock
from quartapp.activities import SESSION_ENDED
from quartapp.models import Event, EventReceipts, Role, User
from quartapp.models.audit.receipt import Receipt
from quartapp.models.base.actor import SYSTEM
from quartapp.policy import Permission
from quartapp.runtime import runtime_of
from quartapp.ws import announcer, topics
from quartapp.ws.announcer import Announcer
from quartapp.ws.connection import Connection
from quartapp.ws.topics import Audience, Key, Source, Topic
from tests.integration.models.helpers import register, sign_in
from tests.people import SECONDS, until

OWN = PydanticObjectId()


@pytest.fixture(autouse=True)
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(announcer, "INTERVAL_SECONDS", 0.1)


async def signed_in(name: str = "ada", role: str = "member") -> tuple[User, str]:
    """Return a new user with this role, and the token of their session."""
    user = await register(name, role)
    return user, (await sign_in(user))[1]


class Page:
    """A socket that follows topics."""

    def __init__(self, socket: Any) -> None:
        self.socket = socket

    async def next(self, kind: str) -> dict[str, Any]:
        """Return the next message of this kind, and drop the messages before it."""
        async with asyncio.timeout(SECONDS):
            while True:
                message = json.loads(await self.socket.receive())
                if message["type"] == kind:
                    return message

    async def topics(self) -> list[str]:
        return (await self.next("topics.changed"))["topics"]


@asynccontextmanager
async def page(app: Quart, token: str, names: str) -> AsyncIterator[Page]:
    """Open a socket that follows these topics, and wait until it has been told of each once."""
    client = app.test_client()
    async with (
        authenticated_client(client, token),
        client.websocket(f"/ws?topics={names}", headers={"Origin": "http://localhost"}) as socket,
    ):
        yield Page(socket)


async def change_users() -> None:
    await User.change({"username": "ada"}, {"$set": {"email": "new@example.org"}})


async def test_a_change_is_announced_to_the_pages_that_follow_it(app: Quart) -> None:
    ada, token = await signed_in(role="admin")
    async with page(app, token, "users,sessions,nonsense") as mine:
        assert await mine.topics() == ["sessions", "users"]
        await change_users()
        assert await mine.topics() == ["users"]
        await sign_in(ada)
        assert await mine.topics() == ["sessions"]


async def test_a_topic_is_not_announced_without_its_permission(app: Quart) -> None:
    """Also when the permission is lost while the socket is open."""
    _, token = await signed_in(role="moderator")
    async with page(app, token, "users,events,account") as mine:
        assert await mine.topics() == ["account", "users"]
        role = await Role.named("moderator")
        assert role
        await Role.change({"_id": role.id}, {"$set": {"permissions": []}})
        await mine.next("permissions.changed")
        await change_users()
        assert await mine.topics() == ["account"]


async def test_own_topics_announce_changes_of_the_own_account_only(app: Quart) -> None:
    ada, token = await signed_in()
    bob, _ = await signed_in("bob")
    async with page(app, token, "account") as mine:
        assert await mine.topics() == ["account"]
        await Event.record(SESSION_ENDED, by=SYSTEM, subject=bob.id)
        event = await Event.record(SESSION_ENDED, by=SYSTEM, subject=ada.id)
        assert await mine.topics() == ["account"]
        async with page(app, token, f"receipts.{event.id},receipts.{OWN}") as other:
            assert await other.topics() == sorted([f"receipts.{event.id}", f"receipts.{OWN}"])
            receipt = Receipt(worker="w", tabs=1, acked=1, missed=0, slowest_ms=1)
            await EventReceipts.keep(event.id, receipt)
            assert await other.topics() == [f"receipts.{event.id}"]


async def test_fields_that_change_with_every_request_are_not_announced(app: Quart) -> None:
    ada, token = await signed_in(role="admin")
    async with page(app, token, "users,workers") as mine:
        assert await mine.topics() == ["users", "workers"]
        await User.change({"_id": ada.id}, {"$inc": {"acts": 1}, "$set": {"totp_step": 2}})
        await Event.record(SESSION_ENDED, by=SYSTEM, subject=ada.id)
        noted: list[Key] = []
        keys_of = topics.keys_of

        def keep(event: Any) -> Iterable[Key]:
            found = list(keys_of(event))
            noted.extend(found)
            return found

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(topics, "keys_of", keep)
            await User.record_use({ada.id: clock.now()})
            await change_users()
            assert await mine.topics() == ["users"]
        assert Key("workers") not in noted
        assert noted.count(Key("users")) == 1


class Listener:
    """A socket that notes what it is told, and when."""

    def __init__(self) -> None:
        self.told: list[tuple[float, set[str]]] = []

    def announce_topics(self, names: Iterable[str]) -> None:
        self.told.append((asyncio.get_running_loop().time(), set(names)))


async def test_many_changes_make_few_announcements_of_a_page(
    app: Quart, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many pages and changes there are, a worker announces a few times in a turn."""
    monkeypatch.setattr(announcer, "TURN_SECONDS", 0.01)
    part: Announcer = runtime_of(app).announcer
    listeners = [Listener() for _ in range(40)]
    followers = [
        part.subscribe(cast(Connection, each), {Key("users"): "users", Key("events"): "events"})
        for each in listeners
    ]

    async def everyone_was_told() -> bool:
        return all(each.told for each in listeners)

    await until(everyone_was_told)
    for each in listeners:
        each.told.clear()
    for _ in range(500):
        part._note({"ns": {"coll": "users"}, "operationType": "insert", "documentKey": {"_id": 1}})
        part._note({"ns": {"coll": "events"}, "operationType": "insert", "documentKey": {"_id": 1}})
    await until(everyone_was_told)
    assert [[names for _, names in each.told] for each in listeners] == [
        [{"users", "events"}]
    ] * len(listeners)
    turns = {at for each in listeners for at, _ in each.told}
    assert len(turns) >= len(listeners) / announcer.PER_TURN
    for each in followers:
        part.unsubscribe(each)


async def test_the_stream_of_topics_is_open_while_a_page_follows_one(
    app: Quart, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(announcer, "IDLE_SECONDS", 0.0)
    part = runtime_of(app).announcer
    _, token = await signed_in(role="admin")

    async def is_closed() -> bool:
        return not part._live

    assert not part._live
    async with page(app, token, "") as mine:
        await mine.next("hello")
        assert not part._live
    async with page(app, token, "users") as mine:
        assert await mine.topics() == ["users"]
        assert part._live
    await until(is_closed)
    async with page(app, token, "users") as mine:
        assert await mine.topics() == ["users"]


async def test_pages_are_told_of_all_topics_after_the_stream_was_lost(
    app: Quart, client: Any
) -> None:
    _, token = await signed_in(role="admin")
    async with page(app, token, "users,roles") as mine:
        assert await mine.topics() == ["roles", "users"]
        running = client["admin"].aggregate(
            [{"$currentOp": {"allUsers": True, "idleCursors": True}}]
        )
        cursors = [
            each["cursor"]["cursorId"]
            async for each in await running
            if "changed" in str(each.get("cursor", {}).get("originatingCommand"))
        ]
        assert cursors
        await client["test"].command("killCursors", "$cmd.aggregate", cursors=cursors)
        assert await mine.topics() == ["roles", "users"]


@pytest.mark.parametrize(("stable", "pauses"), [(0.0, [0.1, 0.1, 0.1]), (60.0, [0.1, 0.2, 0.4])])
async def test_the_back_off_begins_again_after_a_stream_that_lasted(
    monkeypatch: pytest.MonkeyPatch, stable: float, pauses: list[float]
) -> None:
    part, slept = Announcer(), []
    part._has_followers.set()

    async def lose(self: Announcer) -> None:
        self._live = True
        raise ConnectionError

    async def sleep(seconds: float) -> None:
        slept.append(seconds)
        if len(slept) == len(pauses):
            raise asyncio.CancelledError

    monkeypatch.setattr(announcer, "STABLE_SECONDS", stable)
    monkeypatch.setattr(Announcer, "_read_stream", lose)
    monkeypatch.setattr(asyncio, "sleep", sleep)
    with pytest.raises(asyncio.CancelledError):
        await part._follow()
    assert slept == pauses


def test_a_handshake_may_name_a_few_known_topics() -> None:
    many = ",".join(["users", "receipts", "receipts.nonsense", "account.x", "a" * 70, "account"])
    assert topics.parse(many, OWN) == {Key("users"): "users", Key("account", OWN): "account"}
    assert topics.parse(f"receipts.{OWN}", OWN) == {Key("receipts", OWN): f"receipts.{OWN}"}
    assert topics.parse("," * topics.MAX_TOPICS + "users", OWN) == {}
    assert topics.parse("", OWN) == {}


@pytest.mark.parametrize(
    ("name", "permissions", "audience"),
    [
        ("users", {Permission.USERS_READ}, Audience.PERMITTED),
        ("a.b", {Permission.USERS_READ}, Audience.PERMITTED),
        ("tickets", set(), Audience.PERMITTED),
        ("tickets", {Permission.USERS_READ}, Audience.OWNER),
    ],
)
def test_a_topic_states_who_may_follow_it(
    name: str, permissions: set[Permission], audience: Audience
) -> None:
    with pytest.raises(ValueError, match="topic"):
        topics.register(Topic(name, (Source("tickets"),), frozenset(permissions), audience))
