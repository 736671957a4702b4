"""Killed workers leave heartbeats behind, for which no barrier waits long."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import pytest
from quart import Quart

from quartapp import clock, create_app, models
from quartapp.authority import lease as leases
from quartapp.authority.barrier import Barrier, PollingBarrier
from quartapp.authority.lease import Lease
from quartapp.db import mongo
from quartapp.db.mongo import Database
from quartapp.models import Worker
from quartapp.models.cluster.worker import STALE_SECONDS
from quartapp.runtime import runtime_of
from quartapp.settings import Settings
from tests.people import until


async def dead(db: Database, worker_id: str, seconds: float, **more: Any) -> None:
    """Insert a worker whose last heartbeat is this old by the clock of the database."""
    (now,) = await db.aggregate([{"$documents": [{"at": "$$NOW"}]}]).to_list(None)
    at = now["at"] - timedelta(seconds=seconds)
    beat = {"_id": worker_id, "name": "9", "beat": 7, "at": at, **more}
    await db["workers"].insert_one(beat)


async def test_a_heartbeat_that_is_stale_by_one_clock_is_ignored(db: Database) -> None:
    term = mongo.primary_term()
    assert term
    await dead(db, "stale", STALE_SECONDS + 5, primary=term)
    await dead(db, "of an older version", STALE_SECONDS + 5)
    await dead(db, "another primary's clock", STALE_SECONDS + 5, primary="0" * 24)
    await dead(db, "silent", STALE_SECONDS - 5, primary=term)
    await dead(db, "by a clock that went back", -3600, primary=term)
    assert set(await Worker.everyone()) == {
        "another primary's clock",
        "silent",
        "by a clock that went back",
    }


async def test_a_heartbeat_is_stale_long_after_its_lease_has_ended(db: Database) -> None:
    """A worker's lease begins before its heartbeat is written, so it ends first, by any clock that
    is off by less than the rest."""
    assert STALE_SECONDS >= 30 * leases.LEASE_SECONDS
    await Worker.record_heartbeat("paused", "0", 1)
    (stored,) = await db["workers"].find({}).to_list(None)
    assert stored["primary"] == mongo.primary_term()
    assert 0 <= (await Worker.everyone())["paused"] < leases.LEASE_SECONDS


async def test_a_command_does_not_wait_for_a_worker_that_died_long_ago(db: Database) -> None:
    await dead(db, "stale", STALE_SECONDS + 5)
    began = clock.monotonic()
    assert (await PollingBarrier().wait()).complete
    assert clock.monotonic() - began < leases.LEASE_SECONDS
    await dead(db, "silent", 5)
    began = clock.monotonic()
    assert not (await PollingBarrier().wait()).complete
    assert clock.monotonic() - began >= leases.LEASE_SECONDS


async def test_a_barrier_does_not_wait_for_a_worker_that_was_removed(app: Quart) -> None:
    barrier: Barrier = runtime_of(app).barrier
    lease: Lease = runtime_of(app).lease
    await Worker.record_heartbeat("killed", "1", 1)

    async def is_known() -> bool:
        return "killed" in (lease.live_workers() or ())

    await until(is_known)
    began = clock.monotonic()
    passing = asyncio.create_task(barrier.wait())

    async def misses_only_the_dead_worker() -> bool:
        return any(each.passed_here for each in barrier._pending.values())

    await until(misses_only_the_dead_worker)
    await Worker.leave("killed")
    assert (await passing).complete
    assert clock.monotonic() - began < leases.LEASE_SECONDS


@pytest.fixture
async def after_a_crash(settings: Settings) -> AsyncIterator[Quart]:
    """An application that has started while the heartbeat of a dead worker is stored."""
    async with mongo.connected(settings, models.DOCUMENTS) as db:
        await models.prepare()
        await dead(db, "killed", 5)
    app = create_app(settings)
    async with app.test_app():
        yield app


async def test_the_first_barrier_after_a_crash_is_complete(after_a_crash: Quart) -> None:
    began = clock.monotonic()
    assert (await runtime_of(after_a_crash).barrier.wait()).complete
    assert clock.monotonic() - began < leases.LEASE_SECONDS


async def test_a_worker_stopped_during_a_heartbeat_leaves_none_behind(
    db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The driver completes a write although the task that awaits it is cancelled."""
    say, leave = Worker.record_heartbeat, Worker.leave
    writing, may_write = asyncio.Event(), asyncio.Event()
    writes: list[asyncio.Task[None]] = []
    done: list[str] = []

    async def say_late(*beat: Any) -> None:
        writing.set()
        await may_write.wait()
        await say(*beat)
        done.append("written")

    async def say_in_the_driver(*beat: Any) -> None:
        writes.append(asyncio.create_task(say_late(*beat)))
        await asyncio.shield(writes[-1])

    async def leave_noted(worker_id: str) -> None:
        done.append("left")
        await leave(worker_id)

    monkeypatch.setattr(Worker, "record_heartbeat", say_in_the_driver)
    monkeypatch.setattr(Worker, "leave", leave_noted)
    lease = Lease("0")
    beating = lease._start_task(lease._send_heartbeats(), "heartbeat")
    await writing.wait()
    stopping = asyncio.create_task(lease.stop())
    await asyncio.wait([beating])
    may_write.set()
    await asyncio.gather(stopping, *writes)
    assert done == ["written", "left"]
    assert await db["workers"].count_documents({}) == 0
