"""A user's own sessions, and changing the password (ASVS 7.4, 6.2)."""

import asyncio
from datetime import timedelta

import pytest

from quartapp import clock
from quartapp.models import Session
from quartapp.runtime import runtime_of
from tests.conftest import PASSWORD
from tests.integration.routes.conftest import Answer, Visitor, Visitors, documents

NEW = "an entirely different phrase"


async def change(visitor: Visitor, new: str = NEW, **fields: str) -> Answer:
    sent = {"current_password": PASSWORD, "password": new, "confirm": new}
    return await visitor.post("/account/password", **{**sent, **fields})


@pytest.fixture
async def phone(ada: Visitor) -> Visitor:
    phone = ada.another_device()
    await phone.sign_in()
    return phone


async def test_background_requests_do_not_extend_the_session(ada: Visitor) -> None:
    running = runtime_of(ada.app)
    past = clock.now() - timedelta(minutes=20)
    await Session.change_all({}, {"$set": {"seen_at": past}})
    await running.barrier.wait()
    for headers, prolongs in (({"X-Background": "1"}, False), ({}, True)):
        answer = await ada.get("/account/timeline", headers=headers)
        assert answer.status == 200
        await running.last_seen.stop()
        (session,) = await documents("sessions")
        assert (session["seen_at"] > past) is prolongs


async def test_the_list_shows_each_own_session_and_no_secret(
    visitors: Visitors, ada: Visitor, phone: Visitor
) -> None:
    stranger = await visitors.member("bob")
    page = await ada.get("/account/sessions")
    assert await ada.session_id() in page.text
    assert await phone.session_id() in page.text
    assert await stranger.session_id() not in page.text
    for session in await documents("sessions"):
        assert session["digest"] not in page.text
        assert session["credential"] not in page.text


async def test_ending_one_session_keeps_the_others(ada: Visitor, phone: Visitor) -> None:
    tablet = ada.another_device()
    await tablet.sign_in()
    answer = await ada.post(f"/account/sessions/{await phone.session_id()}/end")
    assert (answer.status, answer.location) == (303, "/account/sessions")
    assert await phone.me() is None
    assert await tablet.me() is not None
    assert await ada.me() is not None


async def test_ending_the_current_session_signs_out(ada: Visitor) -> None:
    thief = ada.copy()
    answer = await ada.post(f"/account/sessions/{await ada.session_id()}/end")
    assert (answer.status, answer.location, ada.token) == (303, "/", "")
    assert await thief.me() is None


async def test_ending_all_other_sessions_keeps_the_current_one(
    visitors: Visitors, ada: Visitor, phone: Visitor
) -> None:
    stranger = await visitors.member("bob")
    assert (await ada.post("/account/sessions/end-others")).status == 303
    assert await phone.me() is None
    assert await ada.me() is not None
    assert await stranger.me() is not None


async def test_a_session_of_another_user_is_answered_as_unknown(
    visitors: Visitors, ada: Visitor
) -> None:
    stranger = await visitors.member("bob")
    pages = []
    for session in (await stranger.session_id(), "5eed5eed5eed5eed5eed5eed", "no-id"):
        answer = await ada.post(f"/account/sessions/{session}/end")
        pages.append((answer.status, answer.anonymized.replace(session, "")))
    assert pages[0][0] == 404
    assert pages[1:] == pages[:1] * 2
    assert await stranger.me() is not None


async def test_a_password_change_ends_other_sessions_and_renews_the_token(
    ada: Visitor, phone: Visitor
) -> None:
    before, thief = ada.token, ada.copy()
    answer = await change(ada)
    assert (answer.status, answer.location) == (303, "/account")
    assert await ada.me() is not None
    assert ada.token != before
    assert await thief.me() is None
    assert await phone.me() is None
    page = await phone.get("/login")
    assert "Your password was changed" in page.text
    assert (await ada.another_device().sign_in()).status == 422
    assert (await ada.another_device().sign_in(password=NEW)).status == 303


@pytest.mark.parametrize(
    ("field", "fields"),
    [
        ("current_password", {"current_password": "not this one at all"}),
        ("current_password", {"current_password": ""}),
        ("password", {"password": "password1", "confirm": "password1"}),
        ("password", {"password": "ada@example.org", "confirm": "ada@example.org"}),
        ("confirm", {"confirm": f"{NEW}!"}),
    ],
)
async def test_a_refused_password_change_changes_nothing(
    ada: Visitor, phone: Visitor, field: str, fields: dict[str, str]
) -> None:
    answer = await change(ada, **fields)
    assert answer.status == 422
    assert answer.error(field)
    for name in ("current_password", "password", "confirm"):
        assert answer.fields[name] == ""
    assert await phone.me() is not None
    assert (await ada.another_device().sign_in()).status == 303


async def test_concurrent_password_changes_in_two_tabs_succeed_once(ada: Visitor) -> None:
    tabs = [ada, ada.copy()]
    phrases = [f"{NEW} number {number}" for number in range(2)]
    answers = await asyncio.gather(*map(change, tabs, phrases))
    done = [answer.status == 303 for answer in answers]
    assert sorted(done) == [False, True]
    # The slower one is refused by the write, or for its old cookie.
    assert answers[done.index(False)].status in (302, 403, 422)
    winner = done.index(True)
    assert await tabs[winner].me() is not None
    assert (await ada.another_device().sign_in(password=phrases[winner])).status == 303
    assert (await ada.another_device().sign_in(password=phrases[1 - winner])).status == 422
