"""A host is killed with its launcher and its workers, so that their documents stay behind."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass

import pytest

from tests.faults.hosts import Hosts, hosts
from tests.faults.oracle import Load
from tests.faults.replicas import Replicas, replicas
from tests.people import Person, Server, Stat, until, workers_of

NAMES = ("first", "second", "third")


@dataclass
class Scene:
    """Three servers of two workers each, on one database."""

    nodes: Replicas
    hosts: Hosts
    servers: dict[str, Server]
    root: Person

    async def member(self) -> Person:
        """Register a user at the first server, whose cookie is valid on all servers."""
        return await self.hosts.member(self.servers["first"])

    async def is_reported_complete(self, person: Person) -> bool:
        """Disable the account at the first server. Return whether all workers acknowledged."""
        answer = await self.root.post(f"/admin/users/{person.username}/disable")
        assert answer.status_code == 303
        async with self.nodes.database() as database:
            event = await database["events"].find_one({"verb": "user.disabled"}, sort=[("_id", -1)])
            assert event
            receipts = await database["receipts"].find_one({"_id": event["_id"]})
        return not (receipts and receipts["silent_worker"])

    async def documents(self) -> set[str]:
        """Return the ids of the workers that have a document."""
        async with self.nodes.database() as database:
            return set(await database["workers"].distinct("_id"))


@pytest.fixture
async def scene(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Scene]:
    folder = tmp_path_factory.mktemp("killed")
    async with replicas(folder / "nodes", count=1) as nodes, hosts(folder) as them:
        servers = {name: await them.serve(name, nodes.uri, 2) for name in NAMES}
        root = await them.administrator(servers["first"], nodes.uri)
        yield Scene(nodes, them, servers, root)


def kill_host(server: Server) -> None:
    """Kill all processes of the server at once, as when the machine loses its power."""
    launcher = server.process.pid
    workers = [process for process, _ in workers_of(launcher)]
    assert len(workers) == 2
    fork_server = Stat.of(workers[0]).parent
    # The launcher deletes the documents of workers that it sees exit, and workers without a
    # launcher delete their own.
    os.kill(launcher, signal.SIGSTOP)
    for process in (*workers, fork_server, launcher):
        os.kill(process, signal.SIGKILL)


@pytest.mark.timeout(180)
async def test_a_killed_host_delays_no_revocation_once_its_death_is_known(scene: Scene) -> None:
    assert await scene.is_reported_complete(await scene.member())
    ada = await scene.member()
    async with Load(ada, scene.servers) as load:
        await load.more(10, status=200)
        kill_host(scene.servers["third"])
        began = time.monotonic()
        complete = await scene.is_reported_complete(ada)
        load.revoked()
        print(f"revoked in {time.monotonic() - began:.2f} s, complete: {complete}", end=", ")
        load.servers = alive = {name: scene.servers[name] for name in NAMES[:2]}
        await load.more(10, status=401)
        # A killed server answers nothing, which the load records as refused connections.
        assert load.accepted_after_revocation() == []

    async def death_is_known() -> bool:
        return await scene.is_reported_complete(await scene.member())

    await until(death_is_known, within=60)
    print(f"known after {time.monotonic() - began:.1f} s")
    for _ in range(3):
        bob = await scene.member()
        async with Load(bob, alive) as load:
            await load.more(10, status=200)
            assert await scene.is_reported_complete(bob)
            load.revoked()
            await load.more(10, status=401)
            assert load.accepted_after_revocation() == []


async def test_a_killed_worker_of_another_host_delays_no_revocation(scene: Scene) -> None:
    """The launcher sees its child exit, and deletes the document of the worker."""
    before = await scene.documents()
    os.kill(scene.servers["third"].worker("0"), signal.SIGKILL)

    async def is_replaced() -> bool:
        now = await scene.documents()
        return len(now) == 6 and len(now & before) == 5

    await until(is_replaced, within=30)
    assert await scene.is_reported_complete(await scene.member())
