"""Hosts whose clocks differ by ten minutes agree on which sessions are valid."""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import permutations
from typing import Any

import pytest

from tests.conftest import PASSWORD
from tests.faults import machines
from tests.faults.hosts import Hosts, hosts
from tests.faults.oracle import Load
from tests.faults.replicas import Replicas, replicas
from tests.people import Person, Server, until

# Shorter than the difference of the clocks, so that a use of a local clock is noticed at once.
IDLE_SECONDS = 60
LIFETIME_SECONDS = 120
SHORT_LIVES = {
    "SESSION_IDLE_SECONDS": str(IDLE_SECONDS),
    "SESSION_LIFETIME_SECONDS": str(LIFETIME_SECONDS),
    "LIVE_SWEEP_SECONDS": "1",
}
NAMES = ("ahead", "behind")
BOTH_WAYS = list(permutations(NAMES))


@dataclass
class Scene:
    nodes: Replicas
    hosts: Hosts
    servers: dict[str, Server]
    root: Person

    async def member(self, at: str) -> Person:
        return await self.hosts.member(self.servers[at])

    async def moved(self, person: Person, to: str) -> Person:
        return await self.hosts.moved(person, self.servers[to])


@pytest.fixture(scope="module")
async def scene(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Scene]:
    folder = tmp_path_factory.mktemp("clocks")
    async with replicas(folder / "nodes", count=1) as nodes, hosts(folder) as them:
        servers = {
            name: await them.serve(
                name, nodes.uri, before_start=machines.clock(minutes=minutes), **SHORT_LIVES
            )
            for name, minutes in zip(NAMES, (5, -5), strict=True)
        }
        # The administrator signs in at a host with the right clock and long sessions.
        right = await them.serve("right", nodes.uri)
        root = await them.administrator(right, nodes.uri)
        yield Scene(nodes, them, servers, root)


async def test_the_clocks_of_the_hosts_differ(scene: Scene) -> None:
    """Otherwise the other tests of this module would prove nothing."""
    clocks = {}
    for name, server in scene.servers.items():
        clocks[name] = await wall_clock(await scene.hosts.visitor(server, "nobody"))
    assert clocks["ahead"] - clocks["behind"] > timedelta(minutes=9)


async def wall_clock(visitor: Person) -> datetime:
    """Return the wall clock of the server, from the header `Date` of an answer."""
    answer = await visitor.get("/login")
    return datetime.strptime(answer.headers["Date"], "%a, %d %b %Y %H:%M:%S %Z")


async def test_a_stepping_clock_neither_ends_nor_extends_a_session(scene: Scene) -> None:
    """The clock steps by an hour, forward once and back twice. Sessions last two minutes."""
    server = await scene.hosts.serve(
        "stepping", scene.nodes.uri, before_start=machines.stepping, **SHORT_LIVES
    )
    person = await scene.hosts.member(server)
    admin = await scene.hosts.moved(scene.root, server)
    async with person.tab() as tab:
        for number in (signal.SIGUSR1, signal.SIGUSR2, signal.SIGUSR2):
            stepped = await wall_clock(person) + machines.STEPS[number]
            os.kill(server.worker("0"), number)
            assert abs(await wall_clock(person) - stepped) < timedelta(minutes=1)
            await wait_for_expiry_checks(server)
            assert await tab.is_open()
            assert await person.is_signed_in()
            device = person.another_device()
            async with device:
                await device.sign_in()
                async with scene.nodes.database() as database:
                    session = await newest_session(database, person)
                    now = await time_of(database)
                assert abs(session["created_at"] - now) < timedelta(seconds=10)
                ends = now + timedelta(seconds=LIFETIME_SECONDS)
                assert abs(session["expires_at"] - ends) < timedelta(seconds=10)
        answer = await admin.post(f"/admin/users/{person.username}/disable")
        assert answer.status_code == 303
        assert await person.is_refused()
        assert await tab.closed() == 4401


@pytest.mark.parametrize(("here", "there"), BOTH_WAYS)
async def test_a_session_from_one_host_is_accepted_by_the_other(
    scene: Scene, here: str, there: str
) -> None:
    person = await scene.member(here)
    elsewhere = await scene.moved(person, there)
    assert await person.is_signed_in()
    assert await elsewhere.is_signed_in()
    async with elsewhere.tab() as tab, person.tab() as other:
        for server in scene.servers.values():
            await wait_for_expiry_checks(server)
        assert await tab.is_open()
        assert await other.is_open()


@pytest.mark.parametrize(("here", "there"), BOTH_WAYS)
async def test_a_form_from_one_host_is_accepted_by_the_other(
    scene: Scene, here: str, there: str
) -> None:
    visitor = await scene.hosts.visitor(scene.servers[here], f"visitor-{next(scene.hosts.numbers)}")
    token = await visitor.csrf_token("/register")
    elsewhere = await scene.moved(visitor, there)
    fields = {"username": visitor.username, "email": visitor.email}
    answer = await elsewhere.client.post(
        "/register",
        data=fields | {"password": PASSWORD, "confirm": PASSWORD, "csrf_token": token},
        headers={"Origin": elsewhere.url},
    )
    assert answer.status_code == 303, answer.text
    assert (await elsewhere.post("/logout")).status_code == 303


@pytest.mark.parametrize("here", NAMES)
async def test_session_times_come_from_the_database_clock(scene: Scene, here: str) -> None:
    """The stored times are those by which every host judges the session."""
    person = await scene.member(here)
    async with scene.nodes.database() as database:
        session = await newest_session(database, person)
        now = await time_of(database)
    margin = timedelta(seconds=10)
    assert abs(session["created_at"] - now) < margin
    assert abs(session["seen_at"] - now) < margin
    assert abs(session["expires_at"] - now - timedelta(seconds=LIFETIME_SECONDS)) < margin


@pytest.mark.parametrize("here", NAMES)
async def test_a_session_expires_on_all_hosts(scene: Scene, here: str) -> None:
    person = await scene.member(here)
    people = [await scene.moved(person, name) for name in NAMES]
    async with people[0].tab() as first, people[1].tab() as second:
        async with scene.nodes.database() as database:
            session = await newest_session(database, person)
            soon = {"$set": {"expires_at": {"$add": ["$$NOW", 1500]}}}
            await database["sessions"].update_one({"_id": session["_id"]}, [soon])
        for each in people:
            await until(each.is_refused)
        for tab in (first, second):
            assert await tab.closed() == 4401
            assert tab.messages[-1]["reason"] == "expired"


@pytest.mark.parametrize(("here", "there"), BOTH_WAYS)
async def test_the_time_of_last_use_comes_from_the_database_clock(
    scene: Scene, here: str, there: str
) -> None:
    """Otherwise the idle time would be wrong on the other hosts."""
    person = await scene.member(here)
    elsewhere = await scene.moved(person, there)
    async with scene.nodes.database() as database:
        session = await newest_session(database, person)
        # Older than a minute: within a minute, further uses are not written.
        before = {"seen_at": {"$subtract": ["$$NOW", 90_000]}, "idle_seconds": 3600}
        later = {"expires_at": {"$add": ["$$NOW", 3_600_000]}}
        await database["sessions"].update_one({"_id": session["_id"]}, [{"$set": before | later}])
        began = await time_of(database)

        async def is_written() -> bool:
            await elsewhere.status("/account")
            return (await newest_session(database, person))["uses"] > session["uses"]

        await until(is_written, within=10)
        seen = (await newest_session(database, person))["seen_at"]
        margin = timedelta(seconds=3)
        assert began - margin < seen < await time_of(database) + margin


@pytest.mark.long
@pytest.mark.timeout(150)
@pytest.mark.parametrize(("here", "there"), BOTH_WAYS)
async def test_a_session_lasts_for_its_idle_time_on_all_hosts(
    scene: Scene, here: str, there: str
) -> None:
    """It expires after a minute without a written use. Uses within the minute are not written."""
    person = await scene.member(here)
    elsewhere = await scene.moved(person, there)
    async with scene.nodes.database() as database:
        born = (await newest_session(database, person))["seen_at"]

        async def is_nearly_idle() -> bool:
            for each in (person, elsewhere):
                assert await each.status("/api/me") == 200
            return await time_of(database) - born >= timedelta(seconds=IDLE_SECONDS - 5)

        await until(is_nearly_idle, within=IDLE_SECONDS)
        for each in (person, elsewhere):
            await until(each.is_refused, within=10)
        assert await time_of(database) - born >= timedelta(seconds=IDLE_SECONDS)


@pytest.mark.parametrize(("here", "there"), BOTH_WAYS)
async def test_disabling_an_account_on_one_host_is_enforced_on_all(
    scene: Scene, here: str, there: str
) -> None:
    person = await scene.member(here)
    admin = await scene.moved(scene.root, there)
    async with Load(person, scene.servers) as load, person.tab() as tab:
        await load.more(10, status=200)
        answer = await admin.post(f"/admin/users/{person.username}/disable")
        assert answer.status_code == 303
        load.revoked()
        await load.more(20, status=401)
        assert load.accepted_after_revocation() == []
        assert set(load.statuses()) == {200, 401}
        assert await tab.closed() == 4401


async def wait_for_expiry_checks(server: Server) -> None:
    """Wait until the server has checked twice which sessions have expired."""
    checks = "quartapp_judgements_total"
    before = await server.metric(checks)

    async def has_checked_twice() -> bool:
        return await server.metric(checks) >= before + 2

    await until(has_checked_twice, within=10)


async def newest_session(database: Any, person: Person) -> dict[str, Any]:
    user = await database["users"].find_one({"username": person.username})
    return await database["sessions"].find_one({"user.$id": user["_id"]}, sort=[("_id", -1)])


async def time_of(database: Any) -> datetime:
    """Return the time of the database."""
    rows = database.aggregate([{"$documents": [{}]}, {"$project": {"now": "$$NOW"}}])
    return (await rows.to_list(1))[0]["now"]
