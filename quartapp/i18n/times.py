"""Dates and times in the language and the time zone of the reader.

Babel takes 30 to 50 µs to format a time, and a list has a hundred of them. So the patterns and the
names of the months are read from it once for each language, and filled in here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, date, datetime, timedelta, tzinfo
from functools import cache
from typing import NamedTuple

from babel import Locale
from babel.dates import format_timedelta, get_month_names, parse_pattern
from babel.units import format_unit

from quartapp.i18n import pseudo
from quartapp.i18n.locales import DEFAULT, PSEUDO, current_locale
from quartapp.i18n.texts import gettext as _

JUST_NOW = timedelta(seconds=45)
# A time that is further away is shown as a date.
RECENT = timedelta(days=7)
_UNITS = (("days", 86400), ("hours", 3600), ("minutes", 60))
# "3 Mar 2026, 14:05", and not "Mar 3, 2026, 2:05 PM".
_CONVENTIONS = {DEFAULT: "en_GB", PSEUDO: "en_GB"}

_zone: ContextVar[tzinfo] = ContextVar("zone", default=UTC)
# Return the time zone of the current task.
current_zone = _zone.get


def set_zone(zone: tzinfo | None) -> None:
    """Set the time zone for the rest of the current task, and of the tasks that it starts later.
    None means UTC."""
    _zone.set(zone or UTC)


@contextmanager
def use_zone(zone: tzinfo | None) -> Iterator[None]:
    """Set the time zone for the length of the block. None means UTC."""
    token = _zone.set(zone or UTC)
    try:
        yield
    finally:
        _zone.reset(token)


def zone_name() -> str:
    """Return the name of the current time zone, such as "Europe/Berlin", or "UTC"."""
    return getattr(current_zone(), "key", "UTC")


def format_time(at: datetime) -> str:
    """Return the date and time in the current zone, such as "3 Mar 2026, 14:05".

    In UTC, the name of the zone follows. In any other zone the page says once which one it is.
    """
    zone = current_zone()
    text = _patterns(current_locale()).time % _fields(at.astimezone(zone))
    return f"{text} UTC" if zone is UTC else text


def format_time_and_zone(at: datetime) -> str:
    """Return the date and time in the current zone with the name of the zone, such as "3 Mar 2026,
    14:05 (Europe/Berlin)", for emails."""
    text = format_time(at)
    return text if current_zone() is UTC else f"{text} ({zone_name().replace('_', ' ')})"


def format_exact(at: datetime) -> str:
    """Return the date and time in UTC with seconds, such as "3 Mar 2026, 14:05:09 UTC"."""
    return f"{_patterns(current_locale()).exact % _fields(at.astimezone(UTC))} UTC"


def format_date_of(at: datetime) -> str:
    """Return the date on which the time is in the current zone, such as "3 Mar 2026"."""
    return format_day(at.astimezone(current_zone()))


def format_day(day: date) -> str:
    """Return a date, such as "3 Mar 2026"."""
    return _patterns(current_locale()).day % _fields(day)


def format_relative(at: datetime, now: datetime) -> str | None:
    """Return how far a time is away, such as "2 hours ago" or "in 5 minutes", in the largest unit
    that fits and rounded down, but at least one minute; "just now" below 45 seconds, and None if it
    is a week or more."""
    away = abs(now - at)
    if away < JUST_NOW:
        return _("just now")
    if away >= RECENT:
        return None
    seconds = away.total_seconds()
    unit, size = next((each for each in _UNITS if seconds >= each[1]), _UNITS[-1])
    count = max(1, int(seconds // size))
    return _relative(current_locale(), unit, count if at > now else -count)


def format_duration(seconds: int) -> str:
    """Return an exact number of seconds in the largest unit of which it is a multiple, such as "90
    seconds" or "5 minutes"."""
    return _duration(current_locale(), seconds)


@cache
def _duration(locale: str, seconds: int) -> str:
    unit, size = next((each for each in _UNITS if seconds % each[1] == 0), ("seconds", 1))
    text = format_unit(seconds // size, f"duration-{unit[:-1]}", locale=_babel(locale))
    return pseudo.translate(text) if locale == PSEUDO else text


@cache
def _relative(locale: str, unit: str, count: int) -> str:
    """Return the words for so many units from now, or ago if the count is negative."""
    delta, conventions = timedelta(**{unit: count}), _babel(locale)
    text = format_timedelta(delta, threshold=1, add_direction=True, locale=conventions)
    return pseudo.translate(text) if locale == PSEUDO else text


class _Patterns(NamedTuple):
    """The formats of one language, for the operator % and the fields below."""

    day: str
    time: str
    exact: str


class _Fields(dict[str, object]):
    """The parts of a date by the letters of Unicode's date patterns. The name of the month is
    looked up when a pattern needs it."""

    def __missing__(self, letters: str) -> str:
        return _months(current_locale(), letters)[self["M"]]


def _fields(at: date) -> Mapping[str, object]:
    """Return the parts of a date, or of a date and time."""
    fields = _Fields(d=at.day, dd=f"{at.day:02}", M=at.month, MM=f"{at.month:02}", y=at.year)
    if isinstance(at, datetime):
        fields.update(H=at.hour, HH=f"{at.hour:02}", mm=f"{at.minute:02}", ss=f"{at.second:02}")
    return fields


@cache
def _patterns(locale: str) -> _Patterns:
    """Return the formats of a language, read from Babel."""
    conventions = _babel(locale)
    skeletons, joined = conventions.datetime_skeletons, conventions.datetime_formats["medium"]
    day = skeletons["yMMMd"].format
    time, exact = (
        str(joined).format(parse_pattern(skeletons[name]).format, day) for name in ("Hm", "Hms")
    )
    return _Patterns(day, time, exact)


@cache
def _months(locale: str, letters: str) -> Mapping[object, str]:
    """Return the names of the months by their numbers, as long as the letters of a pattern say."""
    width = "abbreviated" if len(letters) == 3 else "wide"
    context = "stand-alone" if letters[0] == "L" else "format"
    return dict(get_month_names(width, context, _babel(locale)))


def _babel(locale: str) -> Locale:
    return Locale.parse(_CONVENTIONS.get(locale, locale.replace("-", "_")))
