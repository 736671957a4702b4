"""The dashboard: its parts by permission, its numbers, and the charts in the reader's time zone."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from quartapp import clock
from quartapp.i18n.locales import use_locale
from quartapp.i18n.numbers import format_capped, format_number, format_seconds
from quartapp.i18n.times import use_zone
from quartapp.models import Mail, Session, User, Worker
from quartapp.models.base.actor import SYSTEM
from quartapp.models.email import outbox
from quartapp.models.sessions import session_list
from quartapp.models.statistics import hourly_count
from quartapp.models.statistics.hourly_count import HourlyCount
from quartapp.policy import Permission
from quartapp.routes.dashboard import charts
from quartapp.runtime import runtime_of
from tests.integration.routes.conftest import Answer, Visitor, Visitors, role_named, user_named

NOW = datetime(2030, 3, 2, 10, 40, tzinfo=UTC)
PARTS = {"now", "day", "month", "latest", "mail", "workers"}


def parts(answer: Answer) -> set[str]:
    """Return the ids of the live parts of the page that are not empty."""
    main = answer.text.partition("<main")[2]
    found = re.findall(r'id="([\w-]+)" data-topics[^>]*>(?!\s*</)', main)
    return PARTS.intersection(found)


def stats(answer: Answer) -> dict[str, list[str]]:
    """Return the values of each number at the top of the page, by its name."""
    text = answer.text.partition('id="now"')[2].partition("</dl>")[0]
    found: dict[str, list[str]] = {}
    for each in text.split("<dt>")[1:]:
        name = re.sub(r"<svg.*?</svg>", "", each.partition("</dt>")[0]).strip()
        found[name] = re.findall(r"<dd[^>]*>\s*(.*?)\s*</dd>", each)
    return found


def totals(answer: Answer) -> dict[str, tuple[str, ...]]:
    """Return the totals of the charts of the day and the month, by their names."""
    found: dict[str, tuple[str, ...]] = {}
    for name, total in re.findall(r"<figcaption>([^<]+) <strong>([^<]+)<", answer.text):
        found[name] = (*found.get(name, ()), total)
    return found


def counted(at: datetime, **counts: dict[str, int]) -> HourlyCount:
    return HourlyCount(_id=at, at=at, counts=counts)  # type: ignore[call-arg]


@pytest.mark.parametrize(
    ("permission", "expected"),
    [
        (Permission.USERS_READ, {"day", "month"}),
        (Permission.SESSIONS_MANAGE, {"now", "workers"}),
        (Permission.USERS_MANAGE, {"now", "workers", "mail"}),
        (Permission.EVENTS_READ, {"latest"}),
    ],
)
async def test_each_part_has_its_own_permission(
    visitors: Visitors, permission: Permission, expected: set[str]
) -> None:
    eve = await visitors.with_permissions("eve", permission)
    answer = await eve.get("/admin")
    assert (answer.status, parts(answer)) == (200, expected)
    assert ("Signed-in users" in stats(answer)) == (permission is Permission.SESSIONS_MANAGE)


async def test_other_permissions_do_not_open_the_dashboard(visitors: Visitors) -> None:
    others = [Permission.POSTS_MODERATE, Permission.ROLES_MANAGE, Permission.POSTS_WRITE]
    eve = await visitors.with_permissions("eve", *others)
    answer = await eve.get("/admin")
    assert answer.status == 403
    assert "users.read" in answer.text


async def test_an_empty_dashboard_says_that_nothing_happened(root: Visitor) -> None:
    await HourlyCount.get_motor_collection().delete_many({})
    hourly_count._pending.clear()
    answer = await root.get("/admin")
    assert parts(answer) == PARTS
    assert set(totals(answer).values()) == {("0", "0")}
    assert "<rect" not in answer.text
    assert "No role has been granted or revoked yet." in answer.text
    assert "All emails were sent" in answer.text


async def test_sign_ins_failures_and_new_accounts_appear_in_the_charts(
    visitors: Visitors, root: Visitor
) -> None:
    await hourly_count.write()
    await HourlyCount.get_motor_collection().delete_many({})
    new = visitors.anonymous()
    assert (await new.register("newcomer")).status == 303
    for _ in range(2):
        assert (await visitors.anonymous().sign_in("newcomer", "wrong")).status == 422
    assert (await Visitor(visitors.app, "newcomer").sign_in()).status == 303
    await hourly_count.write()
    answer = await root.get("/admin")
    # The registration signs in, too.
    assert totals(answer) == {
        "Sign-ins": ("2", "2"),
        "Failed attempts": ("2", "2"),
        "New accounts": ("1", "1"),
    }
    # One for each chart, and more if the hour has changed during the test.
    assert answer.text.count("<rect") >= 6
    for title in re.findall(r"<desc[^>]*>([^<]+)<", answer.text):
        assert re.match(r"[12] in all\. Most: [12], ", title), title


@pytest.fixture
def _reader() -> Iterator[None]:
    with use_zone(ZoneInfo("Asia/Kolkata")), use_locale("en"):
        yield


@pytest.mark.usefixtures("db", "_reader")
async def test_charts_sum_hours_and_days_of_the_readers_zone() -> None:
    # Midnight in this zone is at 18:30 UTC; now it is 16:10.
    rows = [
        counted(datetime(2030, 1, 31, 18, tzinfo=UTC), sign_ins={"15": 64, "30": 32}),
        counted(datetime(2030, 3, 1, 10, tzinfo=UTC), sign_ins={"15": 16, "30": 8}),
        counted(datetime(2030, 3, 1, 18, tzinfo=UTC), sign_ins={"15": 4, "30": 2}),
        counted(datetime(2030, 3, 2, 10, tzinfo=UTC), sign_ins={"15": 1}, unknown={"00": 5}),
    ]
    assert charts.month_start(NOW) == datetime(2030, 1, 31, 18, 30, tzinfo=UTC)
    day, month = charts.last_day(rows, NOW), charts.last_month(rows, NOW)
    hours = dict(zip(day.names, day.series[0].counts, strict=True))
    assert {name: count for name, count in hours.items() if count} == {
        "1 Mar 2030, 23:00": 4,
        "2 Mar 2030, 00:00": 2,
        "2 Mar 2030, 15:00": 1,
    }
    assert (day.first, day.last, len(day.names)) == ("17:00", "16:00", 24)
    days = dict(zip(month.names, month.series[0].counts, strict=True))
    assert {name: count for name, count in days.items() if count} == {
        "1 Feb 2030": 32,
        "1 Mar 2030": 28,
        "2 Mar 2030": 3,
    }
    assert (month.first, month.last, len(month.names)) == ("1 Feb 2030", "2 Mar 2030", 30)
    assert [series.total for series in month.series] == [63, 0, 0]


@pytest.mark.usefixtures("db")
async def test_days_with_a_change_of_the_clock_are_counted_once() -> None:
    start, after = datetime(2030, 10, 26, 22, tzinfo=UTC), datetime(2030, 10, 28, 11, tzinfo=UTC)
    rows = [counted(start + timedelta(hours=n), failures={"00": 1, "45": 1}) for n in range(37)]
    with use_zone(ZoneInfo("Europe/Berlin")):
        month = charts.last_month(rows, after)
        day = charts.last_day(rows, datetime(2030, 10, 27, 12, tzinfo=UTC))
    # The day on which the clock is put back has 25 hours.
    assert month.series[1].counts[-2:] == [50, 24]
    assert len(day.names) == 24
    assert day.series[1].total == 30


async def test_counts_stop_at_their_limit(
    visitors: Visitors, root: Visitor, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert stats(await root.get("/admin"))["Signed-in users"][0] == "1"
    monkeypatch.setattr(session_list, "COUNTED", 2)
    monkeypatch.setattr(outbox, "COUNTED", 2)
    for number in range(3):
        await visitors.member(f"user-{number}")
        await waiting_mail(tries=2, trouble="451 try later")
        await waiting_mail(tries=12, trouble="550 no such user", gave_up_at=clock.now())
    assert stats(await root.get("/admin"))["Signed-in users"][0] == "2+"
    assert stats(await root.get("/admin"))["Emails waiting"] == [
        "2+",
        "2+ failing, 2+ given up this week",
    ]


async def test_users_count_once_and_ended_sessions_not_at_all(
    visitors: Visitors, root: Visitor
) -> None:
    ada = await visitors.member("ada")
    await ada.another_device().sign_in()
    bob = await visitors.member("bob")
    await Session.get_motor_collection().update_many(
        {"user.$id": (await user_named("ada")).id},
        {"$set": {"online_until": clock.now() + timedelta(minutes=1)}},
    )
    assert stats(await root.get("/admin"))["Signed-in users"] == ["3", "1 with an open page"]
    await bob.post("/logout")
    assert stats(await root.get("/admin"))["Signed-in users"] == ["2", "1 with an open page"]


async def waiting_mail(**fields: Any) -> None:
    now = clock.now()
    mail = {"letter": "password.reset", "to": "ada@example.org", "created_at": now}
    await Mail(**{**mail, "due_at": now + timedelta(hours=1), **fields}).insert()


async def test_failing_emails_are_shown_with_their_error(visitors: Visitors, root: Visitor) -> None:
    await waiting_mail()
    await waiting_mail(tries=3, trouble="451 <try> later")
    await waiting_mail(
        tries=12, trouble="550 unknown", gave_up_at=clock.now(), letter="future.kind"
    )
    answer = await root.get("/admin")
    assert stats(answer)["Emails waiting"] == ["2", "1 failing, 1 given up this week"]
    shown = answer.text.partition('id="mail"')[2]
    assert shown.index("451 &lt;try&gt; later") < shown.index("550 unknown")
    assert "Set a new password" in shown
    assert "future.kind" in shown
    eve = await visitors.with_permissions("eve", Permission.SESSIONS_MANAGE)
    answer = await eve.get("/admin")
    assert stats(answer)["Emails waiting"][0] == "2"
    assert "ada@example.org" not in answer.text


async def test_workers_are_shown_with_their_tabs_and_lag(root: Visitor) -> None:
    others: list[dict[str, Any]] = [
        {"_id": "new", "name": "new", "beat": 1, "sockets": 1500, "lag": 2.5},
        {"_id": "old", "name": "old", "beat": 1},
        {"_id": "silent", "name": "silent", "beat": 1, "sockets": 7, "lag": 9.0},
    ]
    for row in others:
        row["at"] = clock.now() - timedelta(seconds=20 if row["_id"] == "silent" else 0)
    workers = Worker.get_motor_collection()
    await workers.insert_many(others)
    try:
        answer = await root.get("/admin")
    finally:
        await workers.delete_many({"_id": {"$in": [row["_id"] for row in others]}})
    assert stats(answer)["Open tabs"][0] == "1,500+"
    assert stats(answer)["Change stream"][0] == "2.5 s"
    assert re.search(r'silent <span class="tag tag-off">silent</span>', answer.text)
    assert re.search(r">old</th>\s*<td[^>]*>\u2013<", answer.text)


async def test_a_worker_reports_its_sockets_and_lag(root: Visitor) -> None:
    lease = runtime_of(root.app).lease
    assert lease.lag is not None
    (state,) = [each for each in await Worker.running() if each.name == "0"]
    assert state.sockets == 0
    assert state.lag is None or 0 < state.lag < 60
    assert -5 < state.age < 60


async def test_the_latest_grants_and_revocations_are_shown(
    visitors: Visitors, root: Visitor
) -> None:
    user = await visitors.account("ada", await role_named("member"))
    moderator = await role_named("moderator")
    await user.grant(moderator, by=SYSTEM)
    found = await User.get(user.id)
    assert found is not None
    await found.revoke(moderator, by=SYSTEM)
    shown = (await root.get("/admin")).text.partition('id="latest"')[2].partition("</section>")[0]
    assert shown.count('<li class="row" id="event-') == 2
    assert shown.index("role.revoked") < shown.index("role.granted")
    assert "/undo" in shown


def test_numbers_are_written_in_the_language() -> None:
    with use_locale("de"):
        assert format_number(1204) == "1.204"
        assert format_seconds(2.54) == "2,5 s"
    with use_locale("en"):
        assert (format_number(999), format_number(1204)) == ("999", "1,204")
        assert (format_capped(1000, True), format_capped(3, False)) == ("1,000+", "3")
        assert [format_seconds(s) for s in (0.0004, 0.034, 0.9996, 12)] == [
            "0 ms",
            "34 ms",
            "1 s",
            "12 s",
        ]
