"""Nodes of the database are killed and frozen, and no acknowledged change is lost."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from enum import Enum
from itertools import count

import httpx
import pytest

from tests.conftest import PASSWORD
from tests.faults.hosts import Scene, hosts, scene_of
from tests.faults.oracle import Load
from tests.faults.replicas import Node
from tests.people import Person, Server, until

RECOVERED_SECONDS = 15
CONFIRMED_SECONDS = 20


class Stop(Enum):
    FREEZE = "freeze"
    KILL = "kill"


@pytest.fixture(scope="module")
async def scene(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Scene]:
    async with scene_of(tmp_path_factory.mktemp("set")) as scene:
        yield scene


async def disable(root: Person, person: Person) -> int:
    return await answered(root, f"/admin/users/{person.username}/disable")


async def answered(person: Person, path: str) -> int:
    """Return the status of a POST, or 0 if there was no answer."""
    try:
        return (await person.post(path)).status_code
    except (httpx.TransportError, AssertionError):
        # `post` fails with AssertionError if the page with the CSRF token has no form.
        return 0


@dataclass
class Writer:
    """Registers accounts and disables them, and records which of that was acknowledged."""

    scene: Scene
    name: str
    registered: set[str] = field(default_factory=set)
    disabled: set[str] = field(default_factory=set)
    answers: Counter[int] = field(default_factory=Counter)

    async def write(self) -> None:
        for number in count():
            name = f"{self.name}-{number}"
            async with Person(self.scene.server.url, name, PASSWORD) as person:
                person.client.timeout = 60
                await self._write(person)

    async def _write(self, person: Person) -> None:
        try:
            answer = await person.post(
                "/register",
                page="/register",
                username=person.username,
                email=person.email,
                password=PASSWORD,
                confirm=PASSWORD,
            )
        except (httpx.TransportError, AssertionError):
            return
        self.answers[answer.status_code] += 1
        if answer.status_code == 303:
            self.registered.add(person.username)
            status = await disable(self.scene.root, person)
            self.answers[status] += 1
            if status == 303:
                self.disabled.add(person.username)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("rounds", [1, pytest.param(8, marks=pytest.mark.long)])
async def test_acknowledged_changes_survive_the_loss_of_the_primary(
    scene: Scene, rounds: int
) -> None:
    writers = [Writer(scene, f"w{next(scene.hosts.numbers)}") for _ in range(2)]
    tasks = [asyncio.create_task(writer.write()) for writer in writers]
    try:
        for _ in range(rounds):
            await kill_the_primary(scene, writers)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
    registered = set().union(*(writer.registered for writer in writers))
    disabled = set().union(*(writer.disabled for writer in writers))
    assert len(disabled) > 5 * rounds
    answers = sum((writer.answers for writer in writers), Counter())
    print(f"{len(registered)} registered, {len(disabled)} disabled, answers {dict(answers)}")
    assert set(answers) <= {303, 503}, answers
    async with scene.nodes.database() as database:
        kept = {user["username"] async for user in database["users"].find()}
        ids = {
            user["_id"]: user["username"]
            async for user in database["users"].find({"disabled_at": {"$ne": None}})
        }
        audited = Counter(
            [
                event["subject"].id
                async for event in database["events"].find({"verb": "user.disabled"})
            ]
        )
        signed_in = await database["sessions"].distinct("user.$id", {"ended_at": None})
    assert registered <= kept
    assert disabled <= set(ids.values())
    # The driver may send a command again, but each account is disabled and recorded once.
    assert audited == Counter(dict.fromkeys(ids, 1))
    assert not ids.keys() & set(signed_in)


async def kill_the_primary(scene: Scene, writers: list[Writer]) -> None:
    done = sum(len(writer.disabled) for writer in writers)

    async def under_way() -> bool:
        return sum(len(writer.disabled) for writer in writers) > done + 5

    victim = await scene.member()
    async with Load(victim, {"server": scene.server}) as load:
        await until(under_way, within=30)
        await load.more(5)
        primary = await scene.nodes.primary()
        killed = time.monotonic()
        await primary.kill()
        revoking = asyncio.create_task(until_confirmed(scene.root, victim, load))
        await until(lambda: is_served(scene.root), within=RECOVERED_SECONDS)
        print(f"reads again after {time.monotonic() - killed:.1f} s", end=", ")
        await revoking
        print(f"revoked after {time.monotonic() - killed:.1f} s", end=", ")
        await load.more(20, status=401)
        assert load.accepted_after_revocation() == []
        statuses = load.statuses()
        print(f"answers {dict(statuses)}, longest {load.longest():.1f} s")
        assert set(statuses) <= {200, 401, 503}
        assert load.longest() < RECOVERED_SECONDS
        await primary.start()
        await scene.nodes.wait_until_healthy()


async def until_confirmed(root: Person, person: Person, load: Load) -> None:
    """Disable the account, and try again until this is acknowledged."""

    async def confirmed() -> bool:
        return await disable(root, person) == 303

    await until(confirmed, within=2 * RECOVERED_SECONDS)
    load.revoked()


async def is_served(person: Person) -> bool:
    return await person.status("/api/me") == 200


@pytest.mark.timeout(240)
@pytest.mark.parametrize("rounds", [1, pytest.param(5, marks=pytest.mark.long)])
async def test_a_primary_frozen_during_a_revocation_admits_no_revoked_user(
    scene: Scene, rounds: int
) -> None:
    """One host knows only the primary that freezes, and asks it again when it continues."""
    for _ in range(rounds):
        old = await scene.nodes.primary()
        async with hosts(scene.hosts.folder / f"round{next(scene.hosts.numbers)}") as them:
            # The address of this host's database names that node alone.
            isolated = await them.serve("isolated", old.uri)
            await freeze_and_revoke(scene, isolated, old)
        await scene.nodes.wait_until_healthy()


async def freeze_and_revoke(scene: Scene, isolated: Server, old: Node) -> None:
    victim = await scene.member()
    load = Load(victim, {"server": scene.server, "isolated": isolated}, askers=3)
    async with load:
        await load.more(10, status=200)
        with old.frozen():
            frozen = time.monotonic()
            await until_confirmed(scene.root, victim, load)
            print(f"revoked {time.monotonic() - frozen:.1f} s after the freeze", end=", ")
            asking = load.burst("isolated", 20)
            _, waiting = await asyncio.wait(asking, timeout=0.3)
            assert waiting, "no request waits for the frozen node"
        thawed = time.monotonic()
        await asyncio.wait(asking)
        await load.more(20)
        print(f"asked for {time.monotonic() - thawed:.1f} s after the thaw", end=", ")
    print(f"answers {dict(load.statuses())}, longest {load.longest():.1f} s")
    assert load.accepted_after_revocation() == []
    assert set(load.statuses()) <= {200, 401, 503}


@pytest.mark.timeout(240)
@pytest.mark.parametrize("stop", [Stop.FREEZE, pytest.param(Stop.KILL, marks=pytest.mark.long)])
async def test_without_a_majority_no_change_is_acknowledged(scene: Scene, stop: Stop) -> None:
    ada, bob = await scene.member(), await scene.member()
    primary = await scene.nodes.primary()
    others = [node for node in scene.nodes.nodes if node is not primary]
    disabling = await form(scene.root, f"/admin/users/{ada.username}/disable")
    signing_out = await form(bob, "/logout")
    # Without a majority each answer takes seconds, so there are as many askers as answers.
    async with Load(ada, {"server": scene.server}, askers=6) as load:
        await load.more(6, status=200)
        async with without(others, stop):
            began = time.monotonic()
            disabled, signed_out = await asyncio.gather(disabling(), signing_out())
            took = time.monotonic() - began
            print(f"not confirmed after {took:.1f} s", end=", ")
            for answer in (disabled, signed_out):
                assert answer.status_code == 503
                assert "No change could be confirmed" in answer.text
                # The user is still signed in, and must be able to try again.
                assert "set-cookie" not in answer.headers
            assert took < CONFIRMED_SECONDS
            # The database cannot be asked, and the cache must not be used without a lease.
            await load.more(3, status=503)
            since = time.monotonic()
            await load.more(6)
            assert set(load.statuses(since=since)) == {503}
        restored = time.monotonic()
        await until_confirmed(scene.root, ada, load)
        print(f"confirmed {time.monotonic() - restored:.1f} s after the return", end=", ")
        await load.more(10, status=401)
        assert load.accepted_after_revocation() == []
    print(f"answers {dict(load.statuses())}, longest {load.longest():.1f} s")
    assert (await bob.post("/logout")).status_code in (303, 302)
    assert await bob.is_refused()
    await scene.nodes.wait_until_healthy()


@asynccontextmanager
async def without(nodes: list[Node], stop: Stop) -> AsyncIterator[None]:
    for node in nodes:
        if stop is Stop.FREEZE:
            node.freeze()
        else:
            await node.kill()
    try:
        yield
    finally:
        for node in nodes:
            if stop is Stop.FREEZE:
                node.thaw()
            else:
                await node.start()


async def form(person: Person, path: str) -> Callable[[], Awaitable[httpx.Response]]:
    """Fetch the token of a form, and return a function that sends the form in one request."""
    token = await person.csrf_token("/")
    headers = {"Origin": person.url, "Cookie": person.cookies()}

    def send() -> Awaitable[httpx.Response]:
        return person.client.post(path, data={"csrf_token": token}, headers=headers)

    return send
