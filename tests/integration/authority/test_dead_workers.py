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
from quartapp.authority import membership as membership_module
from quartapp.authority.barrier import Barrier, PollingBarrier
from quartapp.authority.change_stream import Change
from quartapp.authority.lease import Lease
from quartapp.authority.membership import Membership
from quartapp.db import mongo
from quartapp.db.mongo import Database
from quartapp.models import Acknowledgement, BarrierMark, Worker
from quartapp.models.cluster import worker as worker_module
from quartapp.models.cluster.barrier_mark import TabsOf
from quartapp.models.cluster.worker import STALE_SECONDS, MarkMissing
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


async def test_dead_workers_do_not_hide_running_ones_on_the_dashboard(
    db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker_module, "SHOWN", 3)
    for number in range(5):
        await dead(db, f"dead {number}", STALE_SECONDS + 5)
    for name in ("b", "a"):
        await Worker.record_heartbeat(name, name, 1)
    assert [each.name for each in await Worker.running()] == ["a", "b"]


async def test_a_heartbeat_is_stale_long_after_its_lease_has_ended(db: Database) -> None:
    """A worker's lease begins before its heartbeat is written, so it ends first, by any clock that
    is off by less than the rest."""
    assert STALE_SECONDS >= 30 * leases.LEASE_SECONDS
    assert membership_module.REMOVE_SECONDS >= 10 * leases.LEASE_SECONDS
    await Worker.record_heartbeat("paused", "0", 1)
    (stored,) = await db["workers"].find({}).to_list(None)
    assert stored["primary"] == mongo.primary_term()
    assert 0 <= (await Worker.everyone())["paused"].age < leases.LEASE_SECONDS


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
    barrier = runtime_of(app).barrier
    await Worker.record_heartbeat("killed", "1", 1)
    began = clock.monotonic()
    passing = asyncio.create_task(barrier.wait())
    await until(lambda: misses_only(barrier, "killed"))
    await Worker.leave("killed")
    assert (await passing).complete
    assert clock.monotonic() - began < leases.LEASE_SECONDS


async def misses_only(barrier: Barrier, worker_id: str) -> bool:
    """Whether a barrier waits, and for this worker alone."""
    return any(
        each.lease_ends.keys() - each.tabs.keys() == {worker_id}
        for each in barrier._pending.values()
    )


async def test_a_barrier_waits_for_a_worker_that_started_before_its_mark(app: Quart) -> None:
    barrier = runtime_of(app).barrier
    await Worker.record_heartbeat("new", "1", 1)
    passing = asyncio.create_task(barrier.wait())
    await until(lambda: misses_only(barrier, "new"))
    (mark_id,) = barrier._pending
    await Acknowledgement.write([Acknowledgement(mark=mark_id, worker="new", tabs=3)])
    result = await passing
    assert result.complete
    assert result.tabs == 3


async def test_a_cancelled_count_of_tabs_is_forgotten(app: Quart) -> None:
    barrier = runtime_of(app).barrier
    await Worker.record_heartbeat("silent", "1", 1)
    counting = asyncio.create_task(barrier.count_open_tabs(TabsOf()))
    await until(lambda: misses_only(barrier, "silent"))
    counting.cancel()
    await asyncio.wait([counting])
    assert not barrier._pending


async def test_a_count_of_tabs_is_a_lower_bound_if_the_mark_is_missing(
    app: Quart, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def missing(mark_id: object) -> dict[str, float]:
        raise MarkMissing

    await Worker.record_heartbeat("silent", "1", 1)
    monkeypatch.setattr(runtime_of(app).membership, "lease_ends", missing)
    barrier = runtime_of(app).barrier
    assert (await barrier.count_open_tabs(TabsOf())).more
    assert not barrier._pending


async def test_a_barrier_is_over_when_all_workers_on_the_stream_have_acknowledged(
    app: Quart, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The query for the workers is not answered at all."""
    barrier, membership = runtime_of(app).barrier, runtime_of(app).membership

    async def no_answer(mark_id: object) -> dict[str, float]:
        await asyncio.Event().wait()
        return {}

    async def is_listed() -> bool:
        return membership.listed is not None

    await until(is_listed)
    monkeypatch.setattr(membership, "lease_ends", no_answer)
    assert (await barrier.wait()).complete
    await Worker.record_heartbeat("new", "1", 1)
    passing = asyncio.create_task(barrier.wait())

    async def has_own_acknowledgement() -> bool:
        return any(pending.tabs for pending in barrier._pending.values())

    await until(has_own_acknowledgement)
    assert not passing.done()
    ((_, pending),) = barrier._pending.items()
    pending.add("new", 3)
    result = await passing
    assert (result.complete, result.tabs) == (True, 3)


async def test_workers_are_listed_again_after_an_interruption_of_the_stream(app: Quart) -> None:
    membership = runtime_of(app).membership
    await Worker.record_heartbeat("missed", "1", 1)
    membership.on_missed_changes()
    assert membership.listed is None

    async def is_listed() -> bool:
        return membership.listed == {runtime_of(app).lease.worker_id, "missed"}

    await until(is_listed)
    await Worker.leave("missed")

    async def is_gone() -> bool:
        return membership.listed == {runtime_of(app).lease.worker_id}

    await until(is_gone)


async def test_the_stream_has_the_last_word_on_a_worker_while_the_list_is_read(
    app: Quart, monkeypatch: pytest.MonkeyPatch
) -> None:
    membership = Membership()

    async def while_reading() -> set[str]:
        for operation, worker_id in (("delete", "old"), ("insert", "new"), ("insert", "again")):
            membership.on_change(Change(operation, "workers", worker_id, {}, {}))
        return {"old", "silent", "again"}

    monkeypatch.setattr(Worker, "ids", while_reading)
    await membership._list()
    assert membership.listed == {"silent", "again", "new"}

    async def interrupted() -> set[str]:
        membership.on_missed_changes()
        return {"older than the new stream"}

    membership.on_disconnect()
    monkeypatch.setattr(Worker, "ids", interrupted)
    await membership._list()
    assert membership.listed is None


async def test_a_beat_that_stays_the_same_for_a_lease_is_that_of_a_dead_worker(
    app: Quart, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The time is measured by the clock of the worker that waits, whatever the database says."""
    barrier, membership = runtime_of(app).barrier, runtime_of(app).membership
    monkeypatch.setattr(membership_module, "READ_SECONDS", 0.05)
    await membership.stop()
    membership._start_task(membership._keep_reading(), "membership")
    await Worker.record_heartbeat("killed", "1", 1)

    async def is_known_to_be_dead() -> bool:
        seen = membership._seen.get("killed")
        return seen is not None and seen.lease_ends <= clock.monotonic()

    await until(is_known_to_be_dead)
    began = clock.monotonic()
    assert (await barrier.wait()).complete
    assert clock.monotonic() - began < leases.LEASE_SECONDS
    # It was only paused, so it counts again from its next heartbeat on.
    await Worker.record_heartbeat("killed", "1", 2)
    passing = asyncio.create_task(barrier.wait())
    await until(lambda: misses_only(barrier, "killed"))
    await Worker.leave("killed")
    assert (await passing).complete


async def test_a_dead_workers_document_is_deleted_unless_it_beats_again(
    app: Quart, monkeypatch: pytest.MonkeyPatch
) -> None:
    membership = runtime_of(app).membership
    monkeypatch.setattr(membership_module, "READ_SECONDS", 0.05)
    monkeypatch.setattr(membership_module, "REMOVE_SECONDS", 1.5)
    await membership.stop()
    # As a primary of another term left it, whose clock says nothing.
    database: Any = Worker.get_motor_collection().database
    await dead(database, "killed", STALE_SECONDS + 5, primary="0" * 24)
    membership._start_task(membership._keep_reading(), "membership")

    async def is_deleted() -> bool:
        return "killed" not in await Worker.everyone()

    await until(is_deleted)
    await Worker.record_heartbeat("paused", "1", 2)
    await Worker.remove_silent("paused", last_beat=1)
    assert "paused" in await Worker.everyone()
    assert runtime_of(app).lease.worker_id in await Worker.everyone()


async def test_a_member_without_the_mark_cannot_say_which_workers_there_are(
    db: Database,
) -> None:
    """After an election, a member might not have every heartbeat from before the mark."""
    await Worker.record_heartbeat("here", "0", 1)
    mark = BarrierMark(at=clock.now())
    with pytest.raises(MarkMissing):
        await Worker.everyone(after=mark.id)
    await mark.insert()
    assert set(await Worker.everyone(after=mark.id)) == {"here"}


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
