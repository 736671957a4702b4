"""Where one is signed in, ending it there, and changing the password (P1, ASVS 7.4, 6.2)."""

import asyncio
from datetime import timedelta

import pytest

from quartapp import clock
from quartapp.models import Session
from quartapp.runtime import runtime_of
from tests.conftest import PASSWORD
from tests.routes.conftest import Answer, Town, Visitor, documents

NEW = "an entirely different phrase"


async def session_of(visitor: Visitor) -> str:
    me = await visitor.me()
    assert me is not None
    return me["session"]


async def change(visitor: Visitor, new: str = NEW, **fields: str) -> Answer:
    sent = {"current_password": PASSWORD, "password": new, "confirm": new}
    return await visitor.post("/account/password", **{**sent, **fields})


@pytest.fixture
async def phone(ada: Visitor) -> Visitor:
    phone = ada.another_device()
    await phone.sign_in()
    return phone


async def test_what_an_open_page_fetches_does_not_prolong_the_session(ada: Visitor) -> None:
    running = runtime_of(ada.app)
    past = clock.now() - timedelta(minutes=20)
    await Session.change_all({}, {"$set": {"seen_at": past}})
    await running.barrier.passed()
    for headers, prolongs in (({"X-Background": "1"}, False), ({}, True)):
        answer = await ada.get("/account/timeline", headers=headers)
        assert answer.status == 200
        await running.last_seen.stop()
        (session,) = await documents("sessions")
        assert (session["seen_at"] > past) is prolongs


async def test_the_list_has_each_device_of_ones_own_and_no_secret(
    town: Town, ada: Visitor, phone: Visitor
) -> None:
    stranger = await town.member("bob")
    page = await ada.get("/account/sessions")
    assert await session_of(ada) in page.text
    assert await session_of(phone) in page.text
    assert await session_of(stranger) not in page.text
    for session in await documents("sessions"):
        assert session["digest"] not in page.text
        assert session["credential"] not in page.text


async def test_one_session_is_ended_and_no_other(ada: Visitor, phone: Visitor) -> None:
    tablet = ada.another_device()
    await tablet.sign_in()
    answer = await ada.post(f"/account/sessions/{await session_of(phone)}/end")
    assert (answer.status, answer.location) == (303, "/account/sessions")
    assert await phone.me() is None
    assert await tablet.me() is not None
    assert await ada.me() is not None


async def test_ending_this_very_session_signs_out(ada: Visitor) -> None:
    thief = ada.twin()
    answer = await ada.post(f"/account/sessions/{await session_of(ada)}/end")
    assert (answer.status, answer.location, ada.token) == (303, "/", "")
    assert await thief.me() is None


async def test_all_others_are_ended_and_this_one_stays(
    town: Town, ada: Visitor, phone: Visitor
) -> None:
    stranger = await town.member("bob")
    assert (await ada.post("/account/sessions/end-others")).status == 303
    assert await phone.me() is None
    assert await ada.me() is not None
    assert await stranger.me() is not None


async def test_anothers_session_is_answered_as_one_that_is_not(town: Town, ada: Visitor) -> None:
    stranger = await town.member("bob")
    pages = []
    for session in (await session_of(stranger), "5eed5eed5eed5eed5eed5eed", "no-id"):
        answer = await ada.post(f"/account/sessions/{session}/end")
        pages.append((answer.status, answer.anonymized.replace(session, "")))
    assert pages[0][0] == 404
    assert pages[1:] == pages[:1] * 2
    assert await stranger.me() is not None


async def test_a_new_password_ends_the_others_and_this_one_goes_on_under_a_new_token(
    ada: Visitor, phone: Visitor
) -> None:
    before, thief = ada.token, ada.twin()
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
async def test_a_refused_change_changes_nothing_and_shows_no_password(
    ada: Visitor, phone: Visitor, field: str, fields: dict[str, str]
) -> None:
    answer = await change(ada, **fields)
    assert answer.status == 422
    assert answer.error(field)
    for name in ("current_password", "password", "confirm"):
        assert answer.fields[name] == ""
    assert await phone.me() is not None
    assert (await ada.another_device().sign_in()).status == 303


async def test_of_two_tabs_that_change_it_at_once_one_does(ada: Visitor) -> None:
    tabs = [ada, ada.twin()]
    phrases = [f"{NEW} number {number}" for number in range(2)]
    answers = await asyncio.gather(*map(change, tabs, phrases))
    done = [answer.status == 303 for answer in answers]
    assert sorted(done) == [False, True]
    # Overtaken before the write, or turned away with the old cookie.
    assert answers[done.index(False)].status in (302, 403, 422)
    winner = done.index(True)
    assert await tabs[winner].me() is not None
    assert (await ada.another_device().sign_in(password=phrases[winner])).status == 303
    assert (await ada.another_device().sign_in(password=phrases[1 - winner])).status == 422
