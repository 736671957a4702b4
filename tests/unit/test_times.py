"""Times in the language and the zone of the reader."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from babel.dates import format_skeleton

from quartapp import clock
from quartapp.i18n import LOCALES, PSEUDO, times, use_locale
from quartapp.models.accounts import user_list

AT = datetime(2026, 3, 3, 4, 5, 9, tzinfo=UTC)
NEW_YORK = ZoneInfo("America/New_York")


@pytest.fixture(params=LOCALES)
def locale(request: pytest.FixtureRequest) -> Iterator[str]:
    with use_locale(request.param):
        yield request.param


@pytest.mark.parametrize(
    "text", ["2026-03-03T04:05:09", "2026-03-03T04:05:09Z", "2026-03-02T23:05:09-05:00"]
)
def test_a_written_time_does_not_depend_on_the_zone_of_the_server(
    monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    with monkeypatch.context() as patched:
        patched.setenv("TZ", "Asia/Tokyo")
        time.tzset()
        assert clock.from_iso(text) == AT
        place = user_list.Place.parse(f"{text}_{'0' * 24}", user_list.Order.SEEN)
        assert place.seen_at == AT
    time.tzset()


@pytest.mark.parametrize("text", ["", "now", "0001-01-01T00:00:00+23:59"])
def test_a_text_that_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="isoformat" if "T" not in text else text[:10]):
        clock.from_iso(text)


def test_a_time_is_written_in_the_zone_of_the_reader() -> None:
    assert times.format_time(AT) == "3 Mar 2026, 04:05 UTC"
    with times.use_zone(NEW_YORK):
        assert times.format_time(AT) == "2 Mar 2026, 23:05"
        assert times.format_date_of(AT) == "2 Mar 2026"
        assert times.zone_name() == "America/New_York"
    assert times.zone_name() == "UTC"


def test_an_email_names_the_zone_of_its_times() -> None:
    assert times.format_time_and_zone(AT) == "3 Mar 2026, 04:05 UTC"
    with times.use_zone(NEW_YORK):
        assert times.format_time_and_zone(AT) == "2 Mar 2026, 23:05 (America/New York)"


def test_an_exact_time_is_in_utc_in_every_zone() -> None:
    with times.use_zone(NEW_YORK):
        assert times.format_exact(AT) == "3 Mar 2026, 04:05:09 UTC"


def test_a_clock_change_is_taken_into_account() -> None:
    with times.use_zone(ZoneInfo("Europe/Berlin")):
        before, after = (
            datetime(2026, 3, 29, 0, 59, tzinfo=UTC),
            datetime(2026, 3, 29, 1, tzinfo=UTC),
        )
        assert times.format_time(before).endswith("01:59")
        assert times.format_time(after).endswith("03:00")


@pytest.mark.parametrize("month", range(1, 13))
def test_dates_are_those_of_babel(locale: str, month: int) -> None:
    day, conventions = date(2026, month, 9), {"en": "en_GB"}.get(locale, locale)
    assert times.format_day(day) == format_skeleton("yMMMd", day, locale=conventions)


def test_dates_are_written_as_in_german() -> None:
    with use_locale("de"), times.use_zone(NEW_YORK):
        assert times.format_time(AT) == "2. März 2026, 23:05"
        assert times.format_relative(AT - timedelta(hours=2), AT) == "vor 2 Stunden"


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        *[(0, "just now"), (44.9, "just now"), (-44.9, "just now"), (45, "1 minute ago")],
        *[(119, "1 minute ago"), (120, "2 minutes ago"), (3599, "59 minutes ago")],
        *[(3600, "1 hour ago"), (86_399, "23 hours ago"), (86_400, "1 day ago")],
        *[(7 * 86_400 - 1, "6 days ago"), (7 * 86_400, None), (-7 * 86_400, None)],
        *[(-60, "in 1 minute"), (-7200, "in 2 hours"), (-3 * 86_400, "in 3 days")],
    ],
)
def test_a_recent_time_is_relative(seconds: float, words: str | None) -> None:
    assert times.format_relative(AT - timedelta(seconds=seconds), AT) == words


def test_the_pseudo_locale_has_times() -> None:
    with use_locale(PSEUDO):
        assert times.format_day(AT) == "3 Mar 2026"
        assert "ĥöûŕš" in str(times.format_relative(AT - timedelta(hours=2), AT))


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(60, "1 minute"), (90, "90 seconds"), (5400, "90 minutes"), (7200, "2 hours")],
)
def test_a_duration_is_written_in_the_largest_unit_that_is_exact(seconds: int, text: str) -> None:
    assert times.format_duration(seconds) == text
