"""What one is told of one's own account, and saying that it was somebody else (ASVS 6.3.5, 7.4)."""

import re

import limits
from beanie import PydanticObjectId

from quartapp.models import Event, Session
from quartapp.models.accounts import email_address
from quartapp.models.audit.event import Verb
from quartapp.models.base.actor import Actor
from tests.routes.conftest import Town, Visitor, contents, documents, pages, role_named, the_user
from tests.routes.scenes import add_passkey, something_strange
from tests.security_key import Authenticator

LISTED = "/account/timeline/not-me"


async def event_of(visitor: Visitor, verb: Verb) -> Event:
    """The newest of that kind."""
    user = await the_user(visitor.username)
    match = {"subject.$id": user.id, "verb": verb}
    event = await Event.find(match, sort="-_id").first_or_none()
    assert event is not None
    return event


def entry(text: str, event: Event) -> str:
    """The row of an event, from the page."""
    found = re.search(rf'<li class="row" id="event-{event.id}".*?</li>', text, re.DOTALL)
    assert found, "it is not there"
    return found[0]


async def test_it_tells_what_where_and_when_and_of_nobody_else(
    town: Town, root: Visitor, ada: Visitor
) -> None:
    bob = await town.member("bob")
    phone = ada.another_device(address="198.51.100.4")
    await phone.sign_in()
    desk = PydanticObjectId((await root.me() or {})["session"])
    await Session.change({"_id": desk}, {"$set": {"device": "Netscape"}})
    boss = Actor((await the_user("root")).id, "root", "203.0.113.9", desk)
    await (await the_user("ada")).grant(await role_named("moderator"), by=boss)
    page = (await ada.get("/account/timeline")).text
    started = entry(page, await event_of(phone, Verb.SESSION_STARTED))
    for word in ("Signed in", "198.51.100.4", ">signed in<", "/not-me"):
        assert word in started
    granted = entry(page, await event_of(ada, Verb.ROLE_GRANTED))
    assert "The role moderator was given by root" in granted
    assert "/not-me" not in granted
    # Where an administrator sits, and before what, is nobody else's affair.
    assert "203.0.113.9" not in page
    assert "Netscape" not in page
    assert str((await event_of(bob, Verb.SESSION_STARTED)).id) not in page
    verbs = (Verb.ROLE_GRANTED, Verb.SESSION_STARTED, Verb.USER_REGISTERED)
    places = [page.index(f"event-{(await event_of(ada, verb)).id}") for verb in verbs]
    assert places == sorted(places), "the newest first"


async def test_the_sign_in_of_this_very_session_is_marked_and_cannot_be_denied(
    ada: Visitor,
) -> None:
    event = await event_of(ada, Verb.SESSION_STARTED)
    assert event.session is not None
    row = entry((await ada.get("/account/timeline")).text, event)
    assert "this session" in row
    assert "/not-me" not in row
    answer = await ada.post(f"/account/timeline/{event.id}/not-me")
    assert answer.status == 422
    assert await ada.me()
    # But somebody may have been at the keyboard, or have a copy of the cookie.
    user = await the_user("ada")
    by = Actor(user.id, "ada", "192.0.2.7", event.session)
    made = await Event.record(Verb.RECOVERY_CODES_MADE, by=by, subject=user.id)
    assert (await ada.post(f"/account/timeline/{made.id}/not-me")).status == 303


async def test_who_says_that_it_was_not_them_is_alone_and_led_to_what_remains_to_be_done(
    town: Town, ada: Visitor
) -> None:
    stranger, third = ada.another_device(), ada.another_device()
    await stranger.sign_in()
    event = await event_of(ada, Verb.SESSION_STARTED)
    await third.sign_in()
    answer = await ada.post(f"/account/timeline/{event.id}/not-me")
    assert (answer.status, answer.location) == (303, LISTED)
    assert await stranger.me() is None
    assert await third.me() is None
    assert await ada.me()
    page = await ada.get(LISTED)
    assert "/account/email" in page.links
    assert "/account/factors" not in page.links, "there are none"
    assert "done" not in page.text
    (to_password,) = [link for link in page.links if "/account/password" in link]
    form = await ada.get(to_password)
    assert f'action="{to_password}"' in form.text
    assert LISTED in form.links
    new = "an entirely different phrase"
    fields = {"current_password": ada.password, "password": new, "confirm": new}
    assert (await ada.post(to_password, **fields)).location == LISTED
    assert ">done<" in (await ada.get(LISTED)).text
    said = await event_of(ada, Verb.ACTIVITY_DISOWNED)
    assert said.details == {"event": event.id, "of": "session.started", "count": 2}
    row = entry((await ada.get("/account/timeline")).text, event)
    assert "not you" in row
    assert "/not-me" not in row
    (letter,) = await town.letters(ada.email, "not you")
    assert "Signed in, " in letter
    assert LISTED in letter


async def test_a_stranger_s_passkey_and_address_are_on_the_list_and_the_old_address_is_told(
    town: Town, ada: Visitor
) -> None:
    await add_passkey(ada, Authenticator())
    added = await event_of(ada, Verb.FACTOR_ADDED)
    assert "/not-me" in entry((await ada.get("/account/timeline")).text, added)
    event = await something_strange(ada)
    by = Actor((await the_user("ada")).id, "ada", "192.0.2.9")
    limit = limits.parse("5 per hour")
    await email_address.ask_for(await the_user("ada"), "eve@example.org", limit=limit, by=by)
    (letter,) = await town.letters("eve@example.org")
    link = re.search(r"/verify/(\S+)", letter)
    assert link
    await email_address.confirm_by_link(await the_user("ada"), link[1], by=by)
    assert (await ada.post(f"/account/timeline/{event}/not-me")).location == LISTED
    page = await ada.get(LISTED)
    assert "eve@example.org" in page.text
    assert "ada@example.org" in page.text
    assert {"/account/factors", "/account/factors/passkeys", "/account/email"} <= set(page.links)
    assert await town.letters("eve@example.org", "not you")
    (letter,) = await town.letters("ada@example.org", "not you")
    assert LISTED in letter


async def test_the_letter_of_a_new_browser_leads_to_the_timeline(town: Town, ada: Visitor) -> None:
    await ada.another_device().sign_in()
    (letter,) = await town.letters(ada.email, "new browser")
    assert re.search(r"^http\S+/account/timeline$", letter, re.MULTILINE)


async def test_of_anothers_event_or_an_administrators_nothing_can_be_said(
    town: Town, root: Visitor, ada: Visitor
) -> None:
    await town.member("bob")
    user = await the_user("ada")
    await user.grant(await role_named("moderator"), by=Actor((await the_user("root")).id, "root"))
    bob = Visitor(town.app, "bob")
    anothers = await something_strange(bob)
    granted = await event_of(ada, Verb.ROLE_GRANTED)
    made = await event_of(ada, Verb.USER_REGISTERED)
    before = await contents()
    for event_id in (anothers, granted.id, made.id, PydanticObjectId()):
        for visitor in (ada, root):
            answer = await visitor.post(f"/account/timeline/{event_id}/not-me")
            assert answer.status == 404
    assert await contents() == before


async def test_the_page_goes_on_with_nothing_twice_and_nothing_left_out(ada: Visitor) -> None:
    user = await the_user("ada")
    by = Actor(user.id, "ada", "192.0.2.7")
    for _ in range(65):
        await Event.record(Verb.SESSION_CONFIRMED, by=by, subject=user.id)
    # What is no matter of safety is not there.
    await Event.record(Verb.POST_REMOVED, by=by, subject=user.id, title="x")
    told = await documents("events", **{"subject.$id": user.id, "verb": {"$ne": "post.removed"}})
    found = [
        each
        for page in await pages(ada, "/account/timeline")
        for each in re.findall(r'id="event-(\w+)"', page.text)
    ]
    assert found == [str(row["_id"]) for row in reversed(told)]
