"""Change events that come late, twice or in any order leave no page outdated."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, cast

import pytest
from beanie import PydanticObjectId

from quartapp.authority import session_states
from quartapp.authority.change_stream import Change, ChangeStream
from quartapp.authority.lease import Lease
from quartapp.authority.principal_cache import PrincipalCache
from quartapp.authority.session_rule import EndedSession, Principal
from quartapp.db.mongo import Database
from quartapp.models import Role, Session, User
from quartapp.models.accounts.registration import register as register_account
from quartapp.models.base.actor import SYSTEM
from quartapp.models.sessions.opening import open_session
from quartapp.models.sessions.reason import Reason
from quartapp.policy import Permission
from quartapp.ws.connection import Connection
from quartapp.ws.dispatcher import Dispatcher
from quartapp.ws.fast_path import QueuedChannel
from quartapp.ws.hub import Hub, Limits
from quartapp.ws.receipts import Receipts
from tests.integration.models.helpers import role
from tests.people import until

LIMITS = Limits(sockets=100, per_session=100, per_user=100, per_address=100, handshakes=100)
DAY = timedelta(days=1)


class Events:
    """Collects the events of the change stream."""

    def __init__(self) -> None:
        self.all: list[Change] = []

    def on_change(self, change: Change) -> None:
        self.all.append(change)

    def on_missed_changes(self) -> None:
        """There is no state to drop."""

    def on_disconnect(self) -> None:
        """There is no state to drop."""


class Trusted:
    """A lease that never ends, so the cache is always used."""

    valid = True


class Socket:
    """Collects the sent messages and never answers."""

    def __init__(self) -> None:
        self.said: list[dict[str, Any]] = []
        self.code: int | None = None

    async def send(self, data: str, /) -> None:
        self.said.append(json.loads(data))

    async def receive(self) -> str | bytes:
        return await asyncio.Event().wait() and ""

    async def close(self, code: int, reason: str = "") -> None:
        self.code = code


@dataclass
class Page:
    """One open page, and its state according to the messages."""

    session: Session
    token: str
    socket: Socket = field(default_factory=Socket)

    @property
    def believes(self) -> tuple[int, list[str], list[str]]:
        """Return the version, roles and permissions of the last message."""
        told = [m for m in self.socket.said if m["type"] in ("hello", "permissions.changed")]
        return told[-1]["version"], told[-1]["roles"], told[-1]["permissions"]

    @property
    def versions(self) -> list[int]:
        return [m["version"] for m in self.socket.said if "version" in m]

    @property
    def notices(self) -> list[int]:
        return [int(m["id"]) for m in self.socket.said if m["type"] == "notice"]


class Worker:
    """The listeners of one worker, which receive events from the test only."""

    def __init__(self) -> None:
        self.hub = Hub(LIMITS)
        receipts = Receipts(self.hub, "0")
        self.feed = Dispatcher(self.hub, receipts, sweep_seconds=3600)
        self.principals = PrincipalCache(cast(Lease, Trusted()), max_entries=100)
        self._tasks: list[asyncio.Task[None]] = []

    def tell(self, change: Change) -> None:
        self.principals.on_change(change)
        self.feed.on_change(change)

    async def open(self, user: User) -> Page:
        session, token, _ = await open_session(user, device="x", by=SYSTEM, idle=DAY, lifetime=DAY)
        page, greeted = Page(session, token), asyncio.Event()

        async def handler() -> None:
            connection = Connection(
                page.socket,
                QueuedChannel(page.socket),
                session_id=session.id,
                user_id=user.id,
                mailbox=1000,
                ping_seconds=3600,
            )
            self.hub.join(connection)
            state = await session_states.state_by_id(session.id)
            assert isinstance(state, Principal)
            connection.send_hello(state, cursor=None, worker="0")
            greeted.set()
            await connection.run()

        self._tasks.append(asyncio.create_task(handler()))
        await greeted.wait()
        return page

    async def is_true(self, page: Page) -> bool:
        """Return whether the page and the cache agree with the database."""
        state = await session_states.state_by_id(page.session.id)
        assert isinstance(state, Principal)
        rights = list(state.roles), sorted(state.permissions)
        return page.believes[1:] == rights and state == await self.principals.state_by_token(
            page.token
        )

    async def stop(self) -> None:
        await self.feed.stop()
        for task in self._tasks:
            task.cancel()
        await asyncio.wait(self._tasks)


@asynccontextmanager
async def worker() -> AsyncIterator[Worker]:
    made = Worker()
    # The next sweep is in an hour, so the worker never checks the stream.
    made.feed.start(cast(ChangeStream, None))
    try:
        yield made
    finally:
        await made.stop()


@pytest.fixture
async def events(db: Database) -> AsyncIterator[Events]:
    events = Events()
    stream = ChangeStream([events], worker_id="0")
    await stream.start()
    yield events
    await stream.stop()


@pytest.mark.parametrize("seeds", [range(4), pytest.param(range(4, 24), marks=pytest.mark.long)])
async def test_events_in_any_order_leave_every_page_up_to_date(
    db: Database, events: Events, seeds: range
) -> None:
    for seed in seeds:
        await run_once(events, random.Random(seed), f"s{seed}")


async def run_once(events: Events, chance: random.Random, name: str) -> None:
    started = len(events.all)
    member, moderator = await role("member"), await role("moderator")
    helper = await Role.add(f"helper-{name}", "", [Permission.USERS_READ], by=SYSTEM)
    ada, bob, eve = [
        await register_account(
            f"{who}-{name}", f"{who}-{name}@x.org", "hash", roles=[member], by=SYSTEM
        )
        for who in ("ada", "bob", "eve")
    ]
    async with worker() as mine:
        alive = [await mine.open(ada), await mine.open(ada), await mine.open(bob)]
        over = [await mine.open(eve), await mine.open(bob)]
        steps: list[Callable[[], Awaitable[object]]] = [
            lambda: ada.grant(helper, by=SYSTEM),
            lambda: bob.grant(helper, by=SYSTEM),
            lambda: helper.edit(
                name=helper.name, description="", permissions=list(Permission), by=SYSTEM
            ),
            lambda: bob.grant(moderator, by=SYSTEM),
            lambda: helper.edit(
                name=helper.name,
                description="",
                permissions=[Permission.EVENTS_READ],
                by=SYSTEM,
            ),
            # A raw write does not change the version.
            lambda: Role.change({"_id": helper.id}, {"$push": {"permissions": "users.manage"}}),
            lambda: eve.grant(moderator, by=SYSTEM),
            lambda: eve.revoke(moderator, by=SYSTEM),
            lambda: over[1].session.end(Reason.ENDED_BY_USER, by=SYSTEM),
        ]
        untold: list[Change] = []
        for step in steps:
            await step()
            untold, started = untold + events.all[started:], len(events.all)
            for page in alive + over:
                await mine.principals.state_by_token(page.token)
            # Deliver some now, some later, some repeatedly, and in random order.
            chance.shuffle(untold)
            now = chance.randrange(len(untold) + 1)
            for change in untold[:now]:
                mine.tell(change)
                if chance.random() < 0.3:
                    await asyncio.sleep(0)
            untold = untold[now:] + chance.sample(untold[:now], now // 2)
        await until(lambda: has_come(events, over[1].session.id))
        untold, started = untold + events.all[started:], len(events.all)
        # Deliver the late events, and many of the others again.
        rest = untold + chance.choices(events.all, k=20)
        chance.shuffle(rest)
        for change in rest:
            mine.tell(change)
            if chance.random() < 0.3:
                await asyncio.sleep(0)

        # The worker sets a version for a raw change, and handles that event later.
        told = started

        async def all_true() -> bool:
            nonlocal told
            for change in events.all[told:]:
                mine.tell(change)
            told = len(events.all)
            return all([await mine.is_true(page) for page in alive])

        await until(all_true)
        for page in alive:
            assert page.socket.code is None, "a socket of an active session was closed"
            assert "session.ended" not in [m["type"] for m in page.socket.said]
            state = await session_states.state_by_id(page.session.id)
            assert isinstance(state, Principal)
            first = int(page.socket.said[0]["cursor"]) + 1
            assert page.notices == list(range(first, state.cursor + 1))
        for page in alive + over:
            assert page.versions == sorted(page.versions), "a version decreased"
        for page, reason in zip(over, ("role_revoked", "ended_by_user"), strict=True):
            await until(lambda page=page: is_closed(page))
            assert page.socket.code == 4401
            assert page.socket.said[-1]["reason"] == reason
            assert isinstance(await mine.principals.state_by_token(page.token), EndedSession)


async def is_closed(page: Page) -> bool:
    return page.socket.code is not None


async def has_come(events: Events, session_id: PydanticObjectId) -> bool:
    return any(c.id == session_id and c.updated_fields.get("ended_at") for c in events.all)
