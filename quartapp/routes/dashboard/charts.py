"""The counts of the last day and month in the reader's time zone, for charts and tables."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta

from quartapp.i18n import times
from quartapp.models.statistics.hourly_count import QUARTER, Counted, HourlyCount

HOURS, DAYS = 24, 30
HOUR = timedelta(hours=1)


@dataclass(frozen=True, slots=True)
class Series:
    """How often one thing has happened in each hour or day."""

    kind: Counted
    counts: Sequence[int]

    @property
    def total(self) -> int:
        return sum(self.counts)

    @property
    def peak(self) -> int:
        return max(self.counts)


@dataclass(frozen=True, slots=True)
class Period:
    """Hours or days, with a name for each, and short ones of the first and the last."""

    names: Sequence[str]
    first: str
    last: str
    series: Sequence[Series]


def month_start(now: datetime) -> datetime:
    """Return the beginning of the earliest of the last DAYS days, in UTC."""
    first = _days(now)[0]
    return datetime.combine(first, time(), times.current_zone()).astimezone(UTC)


def last_day(counts: Iterable[HourlyCount], now: datetime) -> Period:
    """Return the last HOURS hours in the current zone. The last of them is not over yet.

    Hours are counted by their true length, so when the clock is put back one name occurs twice.
    """
    zone = times.current_zone()
    local = now.astimezone(zone).replace(minute=0, second=0, microsecond=0)
    start = local.astimezone(UTC) - (HOURS - 1) * HOUR
    hours = [start + number * HOUR for number in range(HOURS)]
    recent = [each for each in counts if each.id > start - HOUR]
    return Period(
        [times.format_time(hour) for hour in hours],
        f"{hours[0].astimezone(zone):%H:%M}",
        f"{local:%H:%M}",
        _series(recent, HOURS, lambda at: int((at - start) // HOUR)),
    )


def last_month(counts: Iterable[HourlyCount], now: datetime) -> Period:
    """Return the last DAYS days in the current zone. The last of them is not over yet."""
    days, zone = _days(now), times.current_zone()
    names = [times.format_day(day) for day in days]
    return Period(
        *(names, names[0], names[-1]),
        _series(counts, DAYS, lambda at: (at.astimezone(zone).date() - days[0]).days),
    )


def _days(now: datetime) -> list[date]:
    today = now.astimezone(times.current_zone()).date()
    return [today - timedelta(days=number) for number in reversed(range(DAYS))]


def _series(
    counts: Iterable[HourlyCount], size: int, place: Callable[[datetime], int]
) -> list[Series]:
    """Return the sums of all kinds. `place` returns the number of the hour or day of a time; times
    whose number is not below `size` do not count."""
    sums = {str(kind): [0] * size for kind in Counted}
    for hour in counts:
        number = place(hour.id)
        if number == place(hour.id + HOUR - QUARTER):
            found = [(number, kind, count) for kind, count in hour.sums()]
        else:
            found = [(place(at), kind, count) for at, kind, count in hour.quarters()]
        for number, kind, count in found:
            if kind in sums and 0 <= number < size:
                sums[kind][number] += count
    return [Series(kind, sums[kind]) for kind in Counted]
