"""The list of activity, and reporting an event as not one's own (ASVS 6.3.5, 7.4)."""

import re

import limits
from beanie import PydanticObjectId

from quartapp.activities import (
    ACCOUNT_CREATED,
    ACTIVITY_DISOWNED,
    FACTOR_ADDED,
    POST_REMOVED,
    REAUTHENTICATED,
    RECOVERY_CODES_CREATED,
    ROLE_GRANTED,
    SIGNED_IN,
    Activity,
)
from quartapp.models import Event, Session
from quartapp.models.accounts import email_address
from quartapp.models.base.actor import Actor
from tests.integration.routes.conftest import (
    Visitor,
    Visitors,
    contents,
    documents,
    pages,
    role_named,
    user_named,
)
from tests.integration.routes.requests import add_passkey, record_suspicious_event
from tests.security_key import Authenticator

LISTED = "/account/timeline/not-me"


async def event_of(visitor: Visitor, activity: Activity) -> Event:
    """Return the newest event of this kind about the visitor."""
    user = await user_named(visitor.username)
    match = {"subject.$id": user.id, "verb": activity.audit}
    event = await Event.find(match, sort="-_id").first_or_none()
    assert event is not None
    return event


def entry(text: str, event: Event) -> str:
    """Return the HTML of an event's row."""
    found = re.search(rf'<li class="row" id="event-{event.id}".*?</li>', text, re.DOTALL)
    assert found, "the event is not listed"
    return found[0]


async def test_the_activity_shows_own_events_with_place_and_time(
    visitors: Visitors, root: Visitor, ada: Visitor
) -> None:
    bob = await visitors.member("bob")
    phone = ada.another_device(address="198.51.100.4")
    await phone.sign_in()
    desk = PydanticObjectId(await root.session_id())
    await Session.change({"_id": desk}, {"$set": {"device": "Netscape"}})
    boss = Actor((await user_named("root")).id, "root", "203.0.113.9", desk)
    await (await user_named("ada")).grant(await role_named("moderator"), by=boss)
    page = (await ada.get("/account/timeline")).text
    started = entry(page, await event_of(phone, SIGNED_IN))
    for word in ("Signed in", "198.51.100.4", ">signed in<", "/not-me"):
        assert word in started
    granted = entry(page, await event_of(ada, ROLE_GRANTED))
    assert "The role moderator was granted by root" in granted
    assert "/not-me" not in granted
    # The IP address and the device of an administrator are not shown.
    assert "203.0.113.9" not in page
    assert "Netscape" not in page
    assert str((await event_of(bob, SIGNED_IN)).id) not in page
    activities = (ROLE_GRANTED, SIGNED_IN, ACCOUNT_CREATED)
    places = [page.index(f"event-{(await event_of(ada, each)).id}") for each in activities]
    assert places == sorted(places), "newest first"


async def test_the_sign_in_of_this_session_cannot_be_reported(
    ada: Visitor,
) -> None:
    event = await event_of(ada, SIGNED_IN)
    assert event.session is not None
    row = entry((await ada.get("/account/timeline")).text, event)
    assert "this session" in row
    assert "/not-me" not in row
    answer = await ada.post(f"/account/timeline/{event.id}/not-me")
    assert answer.status == 422
    assert await ada.me()
    # Other events of this session can be reported: the cookie may have been copied.
    user = await user_named("ada")
    by = Actor(user.id, "ada", "192.0.2.7", event.session)
    made = await Event.record(RECOVERY_CODES_CREATED, by=by, subject=user.id)
    assert (await ada.post(f"/account/timeline/{made.id}/not-me")).status == 303


async def test_reporting_an_event_ends_other_sessions_and_lists_next_steps(
    visitors: Visitors, ada: Visitor
) -> None:
    stranger, third = ada.another_device(), ada.another_device()
    await stranger.sign_in()
    event = await event_of(ada, SIGNED_IN)
    await third.sign_in()
    answer = await ada.post(f"/account/timeline/{event.id}/not-me")
    assert (answer.status, answer.location) == (303, LISTED)
    assert await stranger.me() is None
    assert await third.me() is None
    assert await ada.me()
    page = await ada.get(LISTED)
    assert "/account/email" in page.links
    assert "/account/factors" not in page.links, "there are no factors"
    assert "done" not in page.text
    (to_password,) = [link for link in page.links if "/account/password" in link]
    form = await ada.get(to_password)
    assert f'action="{to_password}"' in form.text
    assert LISTED in form.links
    new = "an entirely different phrase"
    fields = {"current_password": ada.password, "password": new, "confirm": new}
    assert (await ada.post(to_password, **fields)).location == LISTED
    assert ">done<" in (await ada.get(LISTED)).text
    said = await event_of(ada, ACTIVITY_DISOWNED)
    assert said.details == {"event": event.id, "of": "session.started", "count": 2}
    row = entry((await ada.get("/account/timeline")).text, event)
    assert "not you" in row
    assert "/not-me" not in row
    (message,) = await visitors.emails(ada.email, "not you")
    assert "Signed in, " in message
    assert LISTED in message


async def test_reporting_lists_new_passkeys_and_addresses_to_check(
    visitors: Visitors, ada: Visitor
) -> None:
    await add_passkey(ada, Authenticator())
    added = await event_of(ada, FACTOR_ADDED)
    assert "/not-me" in entry((await ada.get("/account/timeline")).text, added)
    event = await record_suspicious_event(ada)
    by = Actor((await user_named("ada")).id, "ada", "192.0.2.9")
    limit = limits.parse("5 per hour")
    await email_address.request_change(
        await user_named("ada"), "eve@example.org", limit=limit, by=by
    )
    (message,) = await visitors.emails("eve@example.org")
    link = re.search(r"/verify/(\S+)", message)
    assert link
    await email_address.confirm_by_link(await user_named("ada"), link[1], by=by)
    assert (await ada.post(f"/account/timeline/{event}/not-me")).location == LISTED
    page = await ada.get(LISTED)
    assert "eve@example.org" in page.text
    assert "ada@example.org" in page.text
    assert {"/account/factors", "/account/factors/passkeys", "/account/email"} <= set(page.links)
    assert await visitors.emails("eve@example.org", "not you")
    (message,) = await visitors.emails("ada@example.org", "not you")
    assert LISTED in message


async def test_the_email_about_a_new_browser_links_to_the_activity(
    visitors: Visitors, ada: Visitor
) -> None:
    await ada.another_device().sign_in()
    (message,) = await visitors.emails(ada.email, "new browser")
    assert re.search(r"^http\S+/account/timeline$", message, re.MULTILINE)


async def test_events_of_other_users_and_administrators_cannot_be_reported(
    visitors: Visitors, root: Visitor, ada: Visitor
) -> None:
    await visitors.member("bob")
    user = await user_named("ada")
    await user.grant(await role_named("moderator"), by=Actor((await user_named("root")).id, "root"))
    bob = Visitor(visitors.app, "bob")
    anothers = await record_suspicious_event(bob)
    granted = await event_of(ada, ROLE_GRANTED)
    made = await event_of(ada, ACCOUNT_CREATED)
    before = await contents()
    for event_id in (anothers, granted.id, made.id, PydanticObjectId()):
        for visitor in (ada, root):
            answer = await visitor.post(f"/account/timeline/{event_id}/not-me")
            assert answer.status == 404
    assert await contents() == before


async def test_the_activity_is_paginated_completely(ada: Visitor) -> None:
    user = await user_named("ada")
    by = Actor(user.id, "ada", "192.0.2.7")
    for _ in range(65):
        await Event.record(REAUTHENTICATED, by=by, subject=user.id)
    # Events that do not concern security are not listed.
    await Event.record(POST_REMOVED, by=by, subject=user.id, title="x")
    told = await documents("events", **{"subject.$id": user.id, "verb": {"$ne": "post.removed"}})
    found = [
        each
        for page in await pages(ada, "/account/timeline")
        for each in re.findall(r'id="event-(\w+)"', page.text)
    ]
    assert found == [str(row["_id"]) for row in reversed(told)]
