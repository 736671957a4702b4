"""Counts of sign-ins, failed attempts and new accounts."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from structlog.testing import capture_logs

from quartapp import clock
from quartapp.db.mongo import Database
from quartapp.jobs.hourly_counts import HourlyCountWriter
from quartapp.models.statistics import hourly_count
from quartapp.models.statistics.hourly_count import Counted, HourlyCount
from tests.integration.models.helpers import register

HOUR = datetime(2030, 3, 1, 14, tzinfo=UTC)


@pytest.fixture(autouse=True)
def _no_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    hourly_count._pending.clear()


def count_at(monkeypatch: pytest.MonkeyPatch, minutes: float, *kinds: Counted) -> None:
    monkeypatch.setattr(clock, "now", lambda: HOUR + timedelta(minutes=minutes))
    for kind in kinds:
        hourly_count.add(kind)


async def test_counts_are_summed_by_quarter_and_kind(
    db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    count_at(monkeypatch, 0, Counted.SIGN_INS)
    count_at(monkeypatch, 14.99, Counted.SIGN_INS, Counted.FAILURES)
    await hourly_count.write()
    count_at(monkeypatch, 15, Counted.SIGN_INS)
    count_at(monkeypatch, 1, Counted.SIGN_INS)
    count_at(monkeypatch, 60, Counted.ACCOUNTS)
    await hourly_count.write()
    await hourly_count.write()
    stored = await HourlyCount.since(HOUR + timedelta(minutes=30))
    assert [(clock.as_utc(each.id), each.counts) for each in stored] == [
        (HOUR, {"sign_ins": {"00": 3, "15": 1}, "failures": {"00": 1}}),
        (HOUR + timedelta(hours=1), {"accounts": {"00": 1}}),
    ]
    assert sorted(stored[0].quarters()) == [
        (HOUR, "failures", 1),
        (HOUR, "sign_ins", 3),
        (HOUR + timedelta(minutes=15), "sign_ins", 1),
    ]
    assert await HourlyCount.since(HOUR + timedelta(hours=2)) == []


async def test_several_workers_add_to_the_same_hour(
    db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in range(3):
        count_at(monkeypatch, 20, Counted.FAILURES)
        await hourly_count.write()
    (stored,) = await HourlyCount.since(HOUR)
    assert stored.counts == {"failures": {"15": 3}}


async def test_a_stopped_worker_writes_its_last_counts(db: Database) -> None:
    writer = HourlyCountWriter()
    await writer.start()
    hourly_count.add(Counted.SIGN_INS)
    await writer.stop()
    (stored,) = await HourlyCount.since(clock.now() - timedelta(hours=1))
    assert sum(stored.counts["sign_ins"].values()) == 1


async def test_counts_that_cannot_be_written_are_lost_and_logged(
    db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail() -> None:
        raise ConnectionError

    monkeypatch.setattr(hourly_count, "write", fail)
    with capture_logs() as logs:
        await HourlyCountWriter().stop()
    assert [(line["event"], line["error"]) for line in logs] == [
        ("counts_not_written", "ConnectionError")
    ]


async def test_a_new_account_is_counted_once(db: Database) -> None:
    await register("ada")
    await hourly_count.write()
    (stored,) = await HourlyCount.since(clock.now() - timedelta(hours=1))
    assert {kind: sum(each.values()) for kind, each in stored.counts.items()} == {"accounts": 1}
