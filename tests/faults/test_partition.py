"""A host without a connection to the database accepts no session, and catches up afterwards."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import pytest

from quartapp import clock
from quartapp.authority import lease
from quartapp.ws import dispatcher
from tests.conftest import long
from tests.faults import machines
from tests.faults.hosts import Hosts, hosts
from tests.faults.oracle import Load
from tests.faults.replicas import DatabaseProxy, Mode, Replicas, connected, replicas, to_node
from tests.people import Person, Server, Tab, until

# The longest time that a request may wait for the database.
LONGEST_ANSWER_SECONDS = 12
# What a busy machine may add to the length of a lease.
MARGIN_SECONDS = 2


@dataclass
class Scene:
    """A database, a server with a direct connection to it, and one behind a proxy."""

    nodes: Replicas
    hosts: Hosts
    near: Server
    far: Server
    proxy: DatabaseProxy
    root: Person

    @property
    def both(self) -> dict[str, Server]:
        return {"near": self.near, "far": self.far}

    async def member(self) -> Person:
        """Register a user, whose cookie is valid on both servers."""
        return await self.hosts.member(self.near)


@pytest.fixture(scope="module")
async def scene(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Scene]:
    folder = tmp_path_factory.mktemp("cut")
    # The oplog is short, and is truncated at each checkpoint, of which there is one per second.
    async with (
        replicas(folder / "nodes", "--oplogSize", "8", "--syncdelay", "1", count=1) as nodes,
        to_node(nodes.nodes[0]) as proxy,
        hosts(folder) as them,
    ):
        near = await them.serve("near", nodes.uri)
        far = await them.serve("far", proxy.uri)
        root = await them.administrator(near, nodes.uri)
        yield Scene(nodes, them, near, far, proxy, root)


async def close_code(tab: Tab, *, within: float) -> int | None:
    """Wait until the server closes the socket, and return the close code."""
    async with asyncio.timeout(within):
        await tab.socket.wait_closed()
    return tab.socket.close_code


async def end_reason(tab: Tab) -> str:
    return (await tab.received("session.ended"))[-1]["reason"]


async def wait_for_status(person: Person, status: int, path: str = "/api/me") -> None:
    async def does() -> bool:
        return await person.status(path) == status

    await until(does, within=20)


async def test_workers_of_another_host_acknowledge_in_the_database(scene: Scene) -> None:
    ada = await scene.member()
    await scene.root.post(f"/admin/users/{ada.username}/disable")
    assert "did not respond" not in (await scene.root.get("/admin/users")).text
    async with connected(scene.nodes.uri) as database:
        workers = {worker["_id"] async for worker in database["workers"].find()}
        mark = await database["barriers"].find_one({"event": {"$ne": None}}, sort=[("_id", -1)])
        assert mark
        acks = await database["acknowledgements"].find({"mark": mark["_id"]}).to_list(None)
    assert {ack["worker"] for ack in acks} == workers - {mark["asker"]}
    assert len(workers) == 2


@pytest.mark.timeout(240)
@pytest.mark.parametrize("mode", ["freeze", long("drop")])
@pytest.mark.parametrize("rounds", [1, pytest.param(5, marks=pytest.mark.long)])
async def test_an_isolated_host_admits_no_user_revoked_on_another_host(
    scene: Scene, mode: Mode, rounds: int
) -> None:
    bob = await scene.member()
    bob_far = await scene.hosts.moved(bob, scene.far)
    for _ in range(rounds):
        ada = await scene.member()
        ada_far = await scene.hosts.moved(ada, scene.far)
        async with (
            ada_far.tab() as tab,
            bob_far.tab() as bobs,
            Load(ada, scene.both, askers=3) as load,
        ):
            await load.more(10, status=200)
            with scene.proxy.cut(mode):
                began = time.monotonic()
                answer = await scene.root.post(f"/admin/users/{ada.username}/disable")
                assert answer.status_code == 303
                load.revoked()
                took = time.monotonic() - began
                print(f"{mode}: revoked in {took:.2f} s", end=", ")
                assert took < lease.LEASE_SECONDS + MARGIN_SECONDS
                # These requests wait for the database at the isolated server.
                asking = load.burst("far", 10)
                await asyncio.wait(asking)
                assert load.accepted_after_revocation() == []
                assert await bob_far.status("/api/me") == 503
                assert await bob_far.status("/livez") == 200
                assert await bob_far.status("/readyz") == 503
                print(f"cut for {time.monotonic() - began:.1f} s", end=", ")
            reconnected = time.monotonic()
            assert await close_code(tab, within=20) == 4401
            assert await end_reason(tab) == "account_disabled"
            print(
                f"socket closed {time.monotonic() - reconnected:.2f} s after the reconnect",
                end=", ",
            )
            await wait_for_status(ada_far, 401)
            await wait_for_status(bob_far, 200)
            assert await bobs.is_open()
            print(f"served {time.monotonic() - reconnected:.2f} s after it", end=", ")
            assert load.accepted_after_revocation() == []
        far = load.statuses(at="far")
        print(f"answers {dict(far)}, longest {load.longest():.1f} s")
        assert set(far) <= {200, 401, 503}
        assert load.longest() < LONGEST_ANSWER_SECONDS


@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    ("mode", "patience"),
    [
        ("freeze", 4),
        pytest.param("freeze", None, marks=pytest.mark.long),
        pytest.param("drop", None, marks=pytest.mark.long),
    ],
)
async def test_an_isolated_host_closes_its_sockets_with_1013(
    scene: Scene, mode: Mode, patience: float | None
) -> None:
    """The long form waits for the real time of half a minute, the short one for 4 s."""
    seconds = patience or dispatcher.DATABASE_AWAY_SECONDS
    before_start = machines.close_sockets_after(patience) if patience else None
    ada = await scene.member()
    async with (
        to_node(scene.nodes.nodes[0]) as proxy,
        hosts(scene.hosts.folder / f"cut{next(scene.hosts.numbers)}") as them,
    ):
        far = await them.serve("far", proxy.uri, before_start=before_start, LIVE_SWEEP_SECONDS="2")
        ada_far = await them.moved(ada, far)
        async with ada.tab() as near, ada_far.tab() as tab:
            with proxy.cut(mode):
                began = time.monotonic()
                assert await close_code(tab, within=seconds + 30) == 1013
                took = time.monotonic() - began
                print(f"{mode}: 1013 after {took:.1f} s")
                assert seconds - 2 * MARGIN_SECONDS < took < seconds + LONGEST_ANSWER_SECONDS
                assert await ada_far.status("/api/me") == 503
            assert await near.is_open()
            await wait_for_status(ada_far, 200)
            async with ada_far.tab() as again:
                assert await again.is_open()


@pytest.mark.timeout(120)
@pytest.mark.parametrize("mode", ["freeze", long("drop")])
async def test_a_revocation_missing_from_the_oplog_is_enforced_on_reconnect(
    scene: Scene, mode: Mode
) -> None:
    """The change is no longer in the oplog when the host reconnects, and no check is due."""
    losses = "quartapp_change_stream_losses_total"
    ada, bob = await scene.member(), await scene.member()
    ada_far = await scene.hosts.moved(ada, scene.far)
    bob_far = await scene.hosts.moved(bob, scene.far)
    lost, counted = histories_lost(scene.far), await scene.far.metric(losses)
    async with (
        ada_far.tab() as tab,
        bob_far.tab() as bobs,
        scene.nodes.database() as database,
        Load(ada, scene.both) as load,
    ):
        await load.more(10, status=200)
        with scene.proxy.cut(mode):
            answer = await scene.root.post(f"/admin/users/{ada.username}/disable")
            assert answer.status_code == 303
            load.revoked()
            await lose_history(database)
        reconnected = time.monotonic()
        assert await close_code(tab, within=20) == 4401
        assert await end_reason(tab) == "account_disabled"
        print(f"{mode}: closed {time.monotonic() - reconnected:.2f} s after the reconnect")
        await wait_for_status(ada_far, 401)
        await wait_for_status(bob_far, 200)
        assert await bobs.is_open()
        assert load.accepted_after_revocation() == []
        assert histories_lost(scene.far) > lost, scene.far.stderr()[-2000:]
        assert await scene.far.metric(losses) > counted
        # The host has opened a new stream: the next change is noticed too.
        await wait_for_status(bob_far, 200, path="/readyz")
        await database["users"].update_one(
            {"username": bob.username}, {"$set": {"disabled_at": clock.now()}}
        )
        assert await close_code(bobs, within=5) == 4401


def histories_lost(server: Server) -> int:
    """Return how often the server could not resume its stream, by its cursor or by its token."""
    log = server.stderr()
    return log.count("Resume of change stream was not possible") + log.count(
        "CollectionScan died due to failure to restore tailable cursor"
    )


async def lose_history(database: Any) -> None:
    """Write until the oplog contains no entry from before the call."""
    log = database.client["local"]["oplog.rs"]
    newest = await log.find_one(sort=[("$natural", -1)])

    async def is_lost() -> bool:
        await database["filler"].insert_many([{"text": "x" * 500_000} for _ in range(8)])
        oldest = await log.find_one(sort=[("$natural", 1)])
        return oldest["ts"] > newest["ts"]

    await until(is_lost, within=30)
    await database["filler"].delete_many({})


async def kill_all_sessions(admin: Any) -> None:
    await admin.command("killAllSessions", [])


async def step_down(admin: Any) -> None:
    await admin.command("replSetStepDown", 1, force=True)


async def disabled(root: Person, person: Person) -> bool:
    if await root.status("/api/me") != 200:
        return False
    return (await root.post(f"/admin/users/{person.username}/disable")).status_code == 303


@pytest.mark.timeout(120)
@pytest.mark.parametrize("breakage", [kill_all_sessions, step_down])
async def test_a_revocation_while_the_database_drops_cursors_is_enforced(
    scene: Scene, breakage: Callable[[Any], Awaitable[None]]
) -> None:
    ada, bob = await scene.member(), await scene.member()
    async with Load(ada, scene.both) as load, bob.tab() as bobs, ada.tab() as tab:
        await load.more(10, status=200)
        async with scene.nodes.database() as database:
            await breakage(database.client.admin)
        await until(lambda: disabled(scene.root, ada), within=20)
        load.revoked()
        assert await close_code(tab, within=15) == 4401
        await load.more(10)
        assert load.accepted_after_revocation() == []
        assert set(load.statuses()) <= {200, 401, 503}
        assert await bobs.is_open()
