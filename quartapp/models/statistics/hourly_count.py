"""Counts of sign-ins, failed attempts and new accounts, for the dashboard.

`add` counts in the memory of the process, so that no request and no transaction waits for a shared
counter; `write` adds these counts to the stored ones. Workers call it every few seconds, and
commands at their end. A process that is killed loses what it has not written yet.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Self

from beanie import Document
from pydantic import Field
from pymongo import IndexModel

from quartapp import clock

# A month of any time zone, and some days more.
KEPT = timedelta(days=33)
QUARTER = timedelta(minutes=15)


class Counted(StrEnum):
    """What is counted. The values are stored.

    FAILURES are wrong passwords, codes and passkeys, also where a signed-in user re-enters them.
    ACCOUNTS include those whose address is not verified yet.
    """

    SIGN_INS = "sign_ins"
    FAILURES = "failures"
    ACCOUNTS = "accounts"


_pending: Counter[tuple[datetime, Counted]] = Counter()


class HourlyCount(Document):
    """What has happened in one hour, which begins at `id`. Deleted after KEPT.

    `counts` has, for each kind, the counts of the quarters of the hour by their first minutes, such
    as "45": time zones differ by multiples of 15 minutes, so hours and days of each can be summed.
    """

    id: datetime = Field(alias="_id")  # type: ignore[assignment]
    at: datetime
    counts: dict[str, dict[str, int]] = {}

    class Settings:
        name = "hourly_counts"
        indexes = [
            IndexModel([("at", 1)], name="kept", expireAfterSeconds=int(KEPT.total_seconds()))
        ]

    @classmethod
    async def since(cls, start: datetime) -> list[Self]:
        """Return the stored counts from the hour of `start` on, at most of KEPT, the oldest first.
        Hours in which nothing has happened are missing.

        They are not validated, which would take longer than reading them.
        """
        hours = int(KEPT / timedelta(hours=1))
        found = cls.get_motor_collection().find({"_id": {"$gte": _hour(start)}})
        rows = await found.sort("_id", 1).limit(hours).to_list(hours)
        return [cls.model_construct(id=row.pop("_id"), **row) for row in rows]

    def sums(self) -> Iterator[tuple[str, int]]:
        """Yield each kind with its count in this hour."""
        for kind, counts in self.counts.items():
            yield kind, sum(counts.values())

    def quarters(self) -> Iterator[tuple[datetime, str, int]]:
        """Yield the beginning of each quarter of the hour, the kind and the count."""
        for kind, counts in self.counts.items():
            for minute, count in counts.items():
                yield clock.as_utc(self.id) + timedelta(minutes=int(minute)), kind, count


def add(kind: Counted) -> None:
    """Count one for the present quarter of an hour, in the memory of this process. Returns at once;
    `write` stores it later."""
    now = clock.now()
    _pending[now - (now - _hour(now)) % QUARTER, kind] += 1


async def write() -> None:
    """Add the counts in memory to the stored ones, in one write for each hour, mostly one.

    Raises database errors; the counts are lost then.
    """
    counted = dict(_pending)
    _pending.clear()
    hours: defaultdict[datetime, dict[str, int]] = defaultdict(dict)
    for (quarter, kind), count in counted.items():
        hours[_hour(quarter)][f"counts.{kind}.{quarter:%M}"] = count
    for hour, counts in hours.items():
        update = {"$inc": counts, "$setOnInsert": {"at": hour}}
        await HourlyCount.get_motor_collection().update_one({"_id": hour}, update, upsert=True)


def _hour(at: datetime) -> datetime:
    return at.replace(minute=0, second=0, microsecond=0)
