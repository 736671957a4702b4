"""The audit log: sentences, filters, pages and export."""

from __future__ import annotations

import csv
import html
import io
import json
import re
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import urlencode

import pytest
from beanie import PydanticObjectId
from quart import Quart

from quartapp import clock
from quartapp.activities import (
    AUDIT_EXPORTED,
    POST_REMOVED,
    ROLE_DELETED,
    ROLE_EDITED,
    ROLE_END_SKIPPED,
    ROLE_GRANTED,
    ROLE_GRANTED_UNTIL,
    ROLE_REVOKED,
    SIGNED_IN,
    USER_INVITED,
)
from quartapp.forms.audit import parse_moment
from quartapp.i18n import timezones
from quartapp.models import Event, Role, User
from quartapp.models.accounts.administrators import LAST_ADMINISTRATOR
from quartapp.models.accounts.preferences import Preferences
from quartapp.models.accounts.profile import change_preferences
from quartapp.models.audit import export as exports
from quartapp.models.audit import search
from quartapp.models.base.actor import SYSTEM, Actor
from quartapp.policy import Permission
from quartapp.routes.audit import admin as log_routes
from quartapp.runtime import runtime_of
from tests.integration.routes.conftest import (
    Answer,
    Visitor,
    Visitors,
    documents,
    pages,
    role_named,
    user_named,
)
from tests.people import until

LOG = "/admin/events"
ROW = re.compile(r'<p class="log-text">(.*?)</p>', re.DOTALL)


def sentences(answer: Answer) -> list[str]:
    """Return the sentences of the entries on the page, without markup."""
    texts = [re.sub(r"<[^>]+>", "", row) for row in ROW.findall(answer.text)]
    return [html.unescape(text).strip() for text in texts]


async def actor(username: str, ip: str = "192.0.2.1") -> Actor:
    return Actor((await user_named(username)).id, username, ip)


async def record(by: Actor, *subjects: PydanticObjectId | None, **details: Any) -> None:
    for subject in subjects:
        await Event.record(ROLE_GRANTED, by=by, subject=subject, **{"role": "editor", **details})


@pytest.fixture
async def people(visitors: Visitors, root: Visitor) -> tuple[User, User]:
    """Return two users, of whom the log has nothing but what the test records."""
    ada, bob = await visitors.account("ada"), await visitors.account("bob")
    await Event.get_motor_collection().delete_many({})
    return ada, bob


async def found(root: Visitor, **query: str) -> list[str]:
    answer = await root.get(f"{LOG}?{urlencode(query)}")
    assert answer.status == 200, answer.text
    return sentences(answer)


# ---- sentences


async def test_an_entry_is_a_sentence_with_links(people: tuple[User, User], root: Visitor) -> None:
    _, bob = people
    await Role.add("editor", "", [], by=SYSTEM)
    await record(await actor("ada"), bob.id)
    answer = await root.get(LOG)
    assert "ada granted the role editor to bob" in sentences(answer)
    for link in ("/admin/users/ada", "/admin/users/bob", "/admin/roles/editor"):
        assert link in answer.links
    assert f"{LOG}?ip=192.0.2.1" in answer.links


async def test_sentences_fit_who_did_it(people: tuple[User, User], root: Visitor) -> None:
    ada, bob = people
    by = await actor("ada")
    await record(by, ada.id)
    await Event.record(SIGNED_IN, by=by, subject=ada.id, device="Firefox")
    await Event.record(USER_INVITED, by=SYSTEM, email="eve@example.org", role=None)
    await ada.disable(by=SYSTEM)
    title = '<b>"Engines" & 100 % more</b>'
    await Event.record(POST_REMOVED, by=by, subject=bob.id, title=title)
    assert await found(root) == [
        f"ada removed the post “{title}” of bob",
        "An operator disabled the account of ada",
        "An operator invited eve@example.org",
        "ada signed in",
        "ada granted the role editor to themselves",
    ]


async def test_deleted_users_and_unknown_activities_are_readable(
    people: tuple[User, User], root: Visitor
) -> None:
    _, bob = people
    gone = PydanticObjectId()
    await record(Actor(gone, "eve"), bob.id)
    event = Event.of(SIGNED_IN, by=await actor("ada"), subject=bob.id)
    event.verb, event.details = "ticket.half_closed", {"number": 7}
    await event.insert()
    await Event.record(USER_INVITED, by=await actor("ada"))
    answer = await root.get(LOG)
    assert sentences(answer) == [
        "ada invited [erased]",
        "ada: ticket half closed, bob",
        "deleted user granted the role editor to bob",
    ]
    assert f"{LOG}?person={gone}" in answer.links
    assert "<dt>Number</dt><dd>7</dd>" in answer.text
    assert await found(root, person=str(gone)) == ["deleted user granted the role editor to bob"]
    answer = await root.get(f"{LOG}?kind=ticket.half_closed")
    assert '<option selected value="ticket.half_closed">' in answer.text
    assert len(sentences(answer)) == 1


async def test_details_of_this_and_of_earlier_versions_are_readable(
    people: tuple[User, User], root: Visitor
) -> None:
    by, bob = await actor("ada"), people[1].id
    at = datetime(2026, 3, 3, 14, 5, tzinfo=UTC)
    for end in (at, "2026-03-03 14:05 UTC"):
        await Event.record(ROLE_GRANTED_UNTIL, by=by, subject=bob, role="crew", until=end)
    stored: tuple[dict[str, Any], ...] = (
        {"holders": 1000, "more": True},
        {"holders": 7},
        {"holders": "1,000+"},
    )
    for details in stored:
        await Event.record(ROLE_DELETED, by=by, role="crew", **details)
    for why in (LAST_ADMINISTRATOR, "the last administrator"):
        await Event.record(ROLE_END_SKIPPED, by=SYSTEM, subject=bob, role="admin", why=why)
    answer = await root.get(LOG)
    last = "The role admin of bob did not expire, because no other administrator would be left"
    assert sentences(answer) == [
        *(last, last),
        *["ada deleted the role crew"] * 3,
        "ada granted the role crew to bob until 2026-03-03 14:05 UTC",
        "ada granted the role crew to bob until 3 Mar 2026, 14:05 UTC",
    ]
    assert re.findall(r"<dt>Users</dt><dd>(.*?)</dd>", answer.text) == ["1,000+", "7", "1,000+"]
    why = re.findall(r"<dt>Reason</dt><dd>(.*?)</dd>", answer.text)
    assert why == ["No other administrator would be left"] * 2


async def test_pages_that_the_reader_may_not_open_are_no_links(
    people: tuple[User, User], visitors: Visitors
) -> None:
    await Role.add("editor", "", [], by=SYSTEM)
    await record(await actor("ada"), people[1].id)
    reader = await visitors.with_permissions("reader", Permission.EVENTS_READ)
    answer = await reader.get(LOG)
    assert "/users/ada" in answer.links
    assert not {"/admin/users/ada", "/admin/roles/editor"} & set(answer.links)


# ---- filters


@pytest.fixture
async def log(people: tuple[User, User]) -> tuple[User, User]:
    """Record entries that differ in what the filters look at."""
    ada, bob = people
    by_ada, elsewhere = await actor("ada"), await actor("ada", "2001:db8::1")
    by_bob = await actor("bob", "192.0.2.2")
    await record(by_ada, bob.id, role="one")
    await record(elsewhere, bob.id, role="two")
    await record(by_bob, ada.id, role="three", device="Firefox on Linux")
    await record(by_bob, bob.id, role="four", roles=["Viewer", "Writer"])
    await Event.record(ROLE_REVOKED, by=by_bob, subject=bob.id, role="five")
    return ada, bob


@pytest.mark.parametrize(
    ("query", "roles"),
    [
        ({}, "five four three two one"),
        ({"person": "ADA"}, "three two one"),
        ({"kind": "role.revoked"}, "five"),
        ({"ip": "192.0.2.2"}, "five four three"),
        ({"ip": "2001:DB8:0::1"}, "two"),
        ({"q": "firefox ON"}, "three"),
        ({"q": "writer"}, "four"),
        ({"q": ".*"}, ""),
        ({"q": "$device"}, ""),
        ({"person": "bob", "kind": "role.granted"}, "four three two one"),
        ({"person": "ada", "ip": "192.0.2.1"}, "one"),
        ({"kind": "role.revoked", "ip": "192.0.2.2"}, "five"),
        ({"kind": "role.granted", "ip": "192.0.2.2", "q": "t"}, "four three"),
        ({"person": "ada", "kind": "role.granted", "ip": "192.0.2.2", "q": "linux"}, "three"),
        ({"since": "2020-01-01", "until": "2099-01-01T00:00:00+02:00"}, "five four three two one"),
        ({"since": "2098-01-01"}, ""),
        ({"until": "2020-01-01", "person": "ada"}, ""),
    ],
)
async def test_filters_select_entries_alone_and_together(
    log: tuple[User, User], root: Visitor, query: dict[str, str], roles: str
) -> None:
    texts = await found(root, **query)
    shown = [re.search(r"the role (\w+)", text) for text in texts]
    assert [each[1] for each in shown if each] == roles.split()


async def test_an_event_about_many_users_is_found_by_person(
    people: tuple[User, User], root: Visitor
) -> None:
    event = await Event.record(ROLE_EDITED, by=SYSTEM, role="editor")
    await User.change({"_id": people[0].id}, {"$set": {"common_events": [event.id]}})
    assert await found(root, person="ada") == ["An operator changed the role editor"]
    assert await found(root, person="bob") == []


async def test_times_are_in_the_zone_of_the_reader(
    people: tuple[User, User], root: Visitor
) -> None:
    await record(await actor("ada"), people[1].id)
    now = clock.now()
    local = now.astimezone(timezones.find("Pacific/Kiritimati"))
    minute = local.strftime("%Y-%m-%dT%H:%M")
    earlier = (local - timedelta(minutes=5)).strftime("%Y-%m-%dT%H:%M")
    assert await found(root, since=minute) == [], "the zone is UTC"
    user = await user_named("root")
    await change_preferences(user.id, Preferences(timezone="Pacific/Kiritimati"), by=SYSTEM)

    async def is_applied() -> bool:
        return "Pacific/Kiritimati" in (await root.get(LOG)).text

    await until(is_applied)
    assert any("editor" in text for text in await found(root, since=earlier, until=minute))
    assert await found(root, until=earlier) == []
    page = (await root.get(f"{LOG}?since={now:%Y-%m-%dT%H:%M}Z")).text
    assert f'value="{minute}"' in page
    assert "Pacific/Kiritimati" in page


def test_until_includes_the_unit_that_is_given() -> None:
    zone = timezones.find("Europe/Berlin")
    assert zone is not None
    for text, first, end in (
        # The clocks go forward on this day, so it has 23 hours.
        ("2026-03-29", "2026-03-28T23:00Z", "2026-03-29T22:00Z"),
        ("2026-03-01T14:05", "2026-03-01T13:05Z", "2026-03-01T13:06Z"),
        ("2026-03-01T14:05:09", "2026-03-01T13:05:09Z", "2026-03-01T13:05:10Z"),
        ("2026-03-01T14:05Z", "2026-03-01T14:05Z", "2026-03-01T14:06Z"),
        ("2026-03-01 14:05+02:00", "2026-03-01T12:05Z", "2026-03-01T12:06Z"),
    ):
        assert parse_moment(text, zone) == datetime.fromisoformat(first), text
        assert parse_moment(text, zone, end=True) == datetime.fromisoformat(end), text
    for text in ("", "x", "2026-13-01", "0001-01-01", "9999-12-31T23:59:59-12:00", "2026-03-01T"):
        with pytest.raises(ValueError):  # noqa: PT011
            parse_moment(text, UTC)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("person", "nobody"),
        ("person", "a\0b"),
        ("ip", "192.0.2"),
        ("since", "yesterday"),
        ("until", "2026-02-30"),
        ("until", "9999-12-31T23:59:59-12:00"),
        ("q", "x" * 101),
        ("kind", "x" * 300),
    ],
)
async def test_an_error_stays_beside_its_field_and_the_others_keep_their_values(
    log: tuple[User, User], root: Visitor, name: str, text: str
) -> None:
    query = {"person": "ada", "ip": "192.0.2.1", "since": "2026-03-01T14:05", name: text}
    answer = await root.get(f"{LOG}?{urlencode(query)}")
    assert answer.status == 422
    assert answer.error(name)
    assert not sentences(answer)
    for field in {"person", "ip", "since"} - {name}:
        assert answer.fields[field] == query[field]
    if name in answer.fields and "\0" not in text:
        assert answer.fields[name] == text


async def test_all_errors_of_the_filter_are_shown_at_once(root: Visitor) -> None:
    answer = await root.get(f"{LOG}?person=nobody&ip=x&since=x")
    assert all(map(answer.error, ("person", "ip", "since")))


# ---- pages


async def test_pages_lead_to_older_and_newer_entries_and_keep_the_filter(
    people: tuple[User, User], root: Visitor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log_routes, "PAGE", 2)
    _, bob = people
    for number in range(5):
        await record(await actor("ada"), bob.id, role=f"r{number}")
        await record(await actor("bob"), bob.id, role="other")
    seen: list[list[str]] = []
    shown = await pages(root, f"{LOG}?person=ada&q=r")
    for answer in shown:
        seen.append([re.sub(r".*role (r\d).*", r"\1", text) for text in sentences(answer)])
    assert seen == [["r4", "r3"], ["r2", "r1"], ["r0"]]
    back = shown[-1].link("prev")
    answer = await root.get(back)
    assert "person=ada" in back
    assert [text[-9:] for text in sentences(answer)] == ["r2 to bob", "r1 to bob"]


async def test_a_bounded_search_says_so_and_goes_on(
    people: tuple[User, User], root: Visitor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(search, "EXAMINED", 3)
    monkeypatch.setattr(log_routes, "EXAMINED", 3)
    await record(await actor("ada"), people[1].id, role="needle")
    await record(await actor("ada"), *[people[1].id] * 4)
    answer = await root.get(f"{LOG}?q=needle")
    assert sentences(answer) == []
    assert "Searched 3 entries. There may be more." in answer.text
    assert 'rel="next">Search further' in answer.text
    answer = await root.get(answer.link("next"))
    assert sentences(answer) == ["ada granted the role needle to bob"]
    assert "Searched" not in answer.text


async def test_empty_states_say_why(people: tuple[User, User], root: Visitor) -> None:
    assert "The audit log is empty." in (await root.get(LOG)).text
    answer = await root.get(f"{LOG}?kind=role.granted")
    assert "No entries match this filter." in answer.text
    assert LOG in answer.links, "clears the filter"
    assert "Export" not in answer.text


# ---- export


async def exported(visitor: Visitor, file_format: str = "jsonl", **query: str) -> Answer:
    return await visitor.get(f"{LOG}/export?{urlencode({'format': file_format, **query})}")


def lines(answer: Answer) -> list[dict[str, Any]]:
    return [json.loads(line) for line in answer.text.splitlines()]


async def test_json_lines_have_the_entries_of_the_filter(
    log: tuple[User, User], root: Visitor
) -> None:
    ada, bob = log
    answer = await exported(root, person="ada", q="firefox")
    assert answer.status == 200
    assert answer.headers["Content-Type"] == "application/jsonl"
    assert re.fullmatch(
        r'attachment; filename="audit-\w+Z\.jsonl"', answer.headers["Content-Disposition"]
    )
    (line,) = lines(answer)
    assert line.pop("at").endswith("Z")
    assert PydanticObjectId.is_valid(line.pop("id"))
    assert line == {
        "kind": "role.granted",
        "text": "bob granted the role three to ada",
        "actor": "bob",
        "actor_id": str(bob.id),
        "subject": "ada",
        "subject_id": str(ada.id),
        "session": None,
        "ip": "192.0.2.2",
        "details": {"role": "three", "device": "Firefox on Linux"},
    }


async def test_csv_has_no_formulas_and_keeps_commas_and_lines(
    people: tuple[User, User], root: Visitor
) -> None:
    gone = PydanticObjectId()
    event = Event.of(POST_REMOVED, by=Actor(gone, ip="192.0.2.1"), subject=gone, title='a,"b"\nc')
    event.verb = "=cmd|' /C calc'!A0"
    await event.insert()
    answer = await exported(root, "csv")
    head, own, row = csv.reader(io.StringIO(answer.text))
    shown = dict(zip(head, row, strict=True))
    assert shown["kind"] == "'=cmd|' /C calc'!A0"
    assert shown["actor"] == "deleted user"
    assert shown["actor_id"] == str(gone)
    assert json.loads(shown["details"]) == {"title": 'a,"b"\nc'}
    assert own[head.index("kind")] == AUDIT_EXPORTED.audit
    for text in ("=1", "+1", "-1", "@a", "\tx", "\rx"):
        assert exports._cell(text) == f"'{text}"
    assert exports._cell("a=1") == "a=1"


async def test_an_export_is_recorded_before_it_begins(
    log: tuple[User, User], root: Visitor, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = lines(await exported(root, kind="audit.exported", ip="127.0.0.1"))
    assert [line["text"] for line in first] == ["root exported entries of the audit log"]
    (event,) = await documents("events", verb=AUDIT_EXPORTED.audit)
    assert event["details"] == {
        "format": "jsonl",
        "kind": "audit.exported",
        "filtered_by": ["ip"],
    }

    async def fail(*_: Any, **__: Any) -> None:
        raise ConnectionError

    monkeypatch.setattr(log_routes, "record_export", fail)
    answer = await exported(root)
    assert answer.status == 500
    assert "granted" not in answer.text
    assert (await root.ask("HEAD", f"{LOG}/export?format=csv")).status == 200
    assert len(await documents("events", verb=AUDIT_EXPORTED.audit)) == 1


async def test_an_export_is_bounded_and_can_be_continued(
    log: tuple[User, User], root: Visitor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log_routes, "EXPORT_ROWS", 2)
    everything = await found(root, kind="role.granted")
    shown, query = [], {"kind": "role.granted"}
    while True:
        *entries, last = lines(await exported(root, **query))
        if "cut" not in last:
            shown += [entry["text"] for entry in (*entries, last)]
            break
        assert last["cut"] == "Cut off after 2 entries."
        shown += [entry["text"] for entry in entries]
        query["after"] = last["after"]
    assert shown == everything
    rows = list(csv.reader(io.StringIO((await exported(root, "csv")).text)))
    assert rows[-1][0] == "# Cut off after 2 entries."


async def test_an_export_ends_after_some_time(log: tuple[User, User]) -> None:
    export = exports.export(search.EventFilter(), exports.Format.JSONL, seconds=0)
    last = [piece async for piece in export][-1]
    assert "took too long" in json.loads(last)["cut"]


async def test_losing_the_permission_stops_a_running_export(
    app: Quart, visitors: Visitors, people: tuple[User, User], monkeypatch: pytest.MonkeyPatch
) -> None:
    reader = await visitors.with_permissions("reader", Permission.EVENTS_READ)
    await record(await actor("ada"), *[people[1].id] * 6)
    monkeypatch.setattr(search, "BATCH", 2)
    read, count = search._read, 0

    async def revoke_meanwhile(*args: Any, **options: Any) -> Any:
        nonlocal count
        if (count := count + 1) == 3:
            user = await user_named("reader")
            await user.revoke(await role_named("role-of-reader"), by=SYSTEM)
            await runtime_of(app).barrier.wait()
        return await read(*args, **options)

    monkeypatch.setattr(search, "_read", revoke_meanwhile)
    *entries, last = lines(await exported(reader, kind="role.granted"))
    assert len(entries) == 4
    assert last["cut"] == "Cut off, because you may no longer read the audit log."


async def test_an_export_asks_for_a_recent_authentication(
    log: tuple[User, User], root: Visitor
) -> None:
    await root.expire_authentication()
    answer = await exported(root, person="ada")
    assert (answer.status, answer.location) == (
        303,
        "/confirm?next=%2Fadmin%2Fevents%3Fperson%3Dada",
    )
    assert "select the export again" in (await root.get(answer.location)).text
    assert not await documents("events", verb=AUDIT_EXPORTED.audit)


async def test_an_export_with_an_invalid_filter_or_format_is_refused(
    log: tuple[User, User], root: Visitor
) -> None:
    answer = await exported(root, person="nobody")
    assert (answer.status, bool(answer.error("person"))) == (422, True)
    assert (await exported(root, "xml")).status == 404
    other_site = {"Sec-Fetch-Site": "cross-site"}
    answer = await root.get(f"{LOG}/export?person=ada", headers=other_site)
    assert (answer.status, answer.location) == (303, f"{LOG}?person=ada")
    assert not await documents("events", verb=AUDIT_EXPORTED.audit)
