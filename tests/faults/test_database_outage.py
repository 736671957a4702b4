"""Without the database no session is accepted, and afterwards no change has been lost."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager

import pytest
from pymongo.errors import AutoReconnect

from quartapp import clock
from quartapp.authority import lease
from quartapp.db import embedded
from tests.conftest import serving
from tests.faults.oracle import Load
from tests.people import Person, Server, http_client, until


@pytest.fixture(scope="module")
async def server(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Server]:
    async with serving(
        tmp_path_factory.mktemp("away"), LIVE_SWEEP_SECONDS="3600", LIVE_PING_SECONDS="25"
    ) as server:
        yield server


def mongod(server: Server) -> int:
    process = embedded.DataFolder(server.data).mongod_pid()
    assert process
    return process


@contextmanager
def start_prevented(server: Server) -> Iterator[None]:
    """Hold the lock that the launcher needs to start the database again."""
    with embedded._open_file(embedded.DataFolder(server.data).start_lock) as lock:
        assert embedded._try_lock(lock, embedded.fcntl.LOCK_EX)
        yield


async def answer(server: Server, path: str) -> int:
    async with http_client(server.url) as client:
        return (await client.get(path)).status_code


async def is_ready(server: Server) -> bool:
    """Return whether eight connections, which reach both workers, find them ready."""
    answers = await asyncio.gather(*(answer(server, "/readyz") for _ in range(8)))
    return set(answers) == {200}


async def assert_503_without_a_lease(server: Server, person: Person) -> Load:
    """Check requests that begin when all leases have run out, and return all requests.

    For as long as its lease holds, a worker may trust its cache.
    """
    over = time.monotonic() + lease.LEASE_SECONDS
    # Each answer may take seconds, so there are as many askers as answers.
    async with Load(person, {"here": server}, askers=8) as load:
        await load.more(8, since=over)
    assert set(load.statuses(since=over)) == {503}
    return load


async def disable_when_possible(server: Server, person: Person) -> None:
    """Disable the account in the database as soon as it takes writes again."""
    async with server.database() as database:

        async def written() -> bool:
            try:
                await database["users"].update_one(
                    {"username": person.username}, {"$set": {"disabled_at": clock.now()}}
                )
            except AutoReconnect:
                return False
            return True

        await until(written, within=20)


async def test_a_killed_database_means_503_and_no_change_is_lost(
    server: Server, ada: Person, bob: Person
) -> None:
    async with ada.tabs() as tabs, bob.tabs() as bobs:
        with start_prevented(server):
            os.kill(mongod(server), signal.SIGKILL)
            await assert_503_without_a_lease(server, ada)
            pages = await asyncio.gather(
                *(ada.status(path) for path in ("/api/me", "/", "/account", "/admin/users") * 3)
            )
            assert set(pages) == {503}
            assert await answer(server, "/readyz") == 503
            assert await answer(server, "/livez") == 200
        await disable_when_possible(server, ada)
        assert await ada.status("/api/me") in (401, 503)
        for tab in tabs:
            assert await tab.closed(within=20) == 4401
            assert tab.messages[-1]["reason"] == "account_disabled"
        await until(lambda: is_ready(server), within=20)
        assert set(await asyncio.gather(*(ada.status("/api/me") for _ in range(8)))) == {401}
        for tab in bobs:
            assert await tab.is_open()
        assert await bob.is_signed_in()


async def test_a_frozen_database_means_503_within_a_bounded_time(
    server: Server, ada: Person
) -> None:
    process = mongod(server)
    async with ada.tabs() as tabs:
        os.kill(process, signal.SIGSTOP)
        try:
            load = await assert_503_without_a_lease(server, ada)
            assert load.longest() < 15
            assert await answer(server, "/readyz") == 503
        finally:
            os.kill(process, signal.SIGCONT)
        await until(lambda: is_ready(server), within=20)
        await disable_when_possible(server, ada)
        await until(ada.is_refused)
        for tab in tabs:
            assert await tab.closed(within=20) == 4401


async def test_an_answer_read_before_a_freeze_admits_no_revoked_user(
    server: Server, ada: Person
) -> None:
    """Requests wait for a frozen database, and the account is disabled when it continues."""
    process = mongod(server)
    os.kill(process, signal.SIGSTOP)
    try:
        waiting = [asyncio.create_task(ada.status("/api/me")) for _ in range(4)]
        taking = asyncio.create_task(disable_when_possible(server, ada))
        # Workers accept connections in their order, so by these answers they have the requests.
        alive = await asyncio.gather(*(answer(server, "/livez") for _ in range(8)))
        assert set(alive) == {200}
    finally:
        os.kill(process, signal.SIGCONT)
    await taking
    await until(ada.is_refused)
    after = await asyncio.gather(*(ada.status("/api/me") for _ in range(8)))
    assert set(after) == {401}
    assert set(await asyncio.gather(*waiting)) <= {200, 401, 503}
