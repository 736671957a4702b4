"""Receipts: how many sessions and open tabs an action has ended."""

from __future__ import annotations

from datetime import timedelta

import pytest

from quartapp import clock
from quartapp.activities import SESSIONS_ENDED
from quartapp.models import Event, EventReceipts, Session
from quartapp.models.audit.receipt import SETTLED_AFTER, Receipt
from quartapp.models.base.actor import Actor
from quartapp.policy import Permission
from tests.integration.routes.conftest import Answer, Visitor, Visitors, role_named, user_named

ACTIONS = {
    "grants/member/revoke": (
        "ada no longer has the role member. ada was signed out.",
        "There were no active sessions.",
    ),
    "disable": (
        "The account of ada is disabled. ada was signed out.",
        "There were no active sessions.",
    ),
    "sessions/end": ("Sessions of ada ended: 1.", "ada had no active sessions."),
}


async def done(root: Visitor, action: str) -> Answer:
    """Post the action and return the page after the redirect."""
    answer = await root.post(f"/admin/users/ada/{action}")
    assert answer.status == 303
    return await root.get(answer.location)


@pytest.mark.parametrize("action", ACTIONS)
@pytest.mark.parametrize("session", ["active", "expired", "ended", "none"])
async def test_the_message_mentions_signing_out_only_with_active_sessions(
    visitors: Visitors, root: Visitor, action: str, session: str
) -> None:
    ada = await visitors.member("ada") if session != "none" else visitors.anonymous()
    if session == "none":
        await visitors.account("ada", await role_named("member"))
    elif session == "expired":
        past = clock.now() - timedelta(minutes=1)
        mine = {"user.$id": (await user_named("ada")).id}
        await Session.change_all(mine, {"$set": {"expires_at": past}})
    elif session == "ended":
        await ada.post("/logout")
    page = await done(root, action)
    with_session, without = ACTIONS[action]
    assert (with_session in page.text) is (session == "active")
    assert (without in page.text) is (session != "active")


async def test_ending_an_ended_session_says_so(visitors: Visitors) -> None:
    ada = await visitors.member("ada")
    other = ada.another_device()
    await other.sign_in()
    me = await other.me()
    assert me is not None
    for words in ("was signed out.", "had already ended."):
        answer = await ada.post(f"/account/sessions/{me['session']}/end")
        assert words in (await ada.get(answer.location)).text


async def record_event(by: Visitor, **receipt: int) -> Event:
    """Record an event that has ended three tabs."""
    user = await user_named(by.username)
    event = await Event.record(SESSIONS_ENDED, by=Actor(user.id, by.username))
    row = Receipt(worker="0", tabs=3, slowest_ms=5, **receipt)
    await EventReceipts.keep(event.id, row)
    return event


async def test_a_receipt_is_readable_by_its_actor_and_by_auditors(
    visitors: Visitors, ada: Visitor
) -> None:
    event = await record_event(ada, acked=3, missed=0)
    reader = await visitors.with_permissions("reader", Permission.EVENTS_READ)
    stranger = await visitors.with_permissions(
        "stranger", *(set(Permission) - {Permission.EVENTS_READ})
    )
    for visitor, status in ((ada, 200), (reader, 200), (stranger, 404)):
        answer = await visitor.get(f"/receipts/{event.id}")
        assert answer.status == status
        assert ("3 tabs on 1 worker acknowledged" in answer.text) is (status == 200)
    for missing in ("x", "0" * 24):
        assert (await ada.get(f"/receipts/{missing}")).status == 404


async def test_a_receipt_is_refreshed_until_it_is_complete(
    ada: Visitor,
) -> None:
    event = await record_event(ada, acked=1, missed=0)

    async def shown() -> str:
        return (await ada.get(f"/receipts/{event.id}")).text

    pending = await shown()
    assert "1 tab on 1 worker acknowledged, slowest 5 ms; 2 not acknowledged yet." in pending
    assert f'data-source="/receipts/{event.id}" data-topics="receipts.{event.id}"' in pending
    assert f'<a href="/receipts/{event.id}">Refresh</a>' in pending
    last = Receipt(worker="0", tabs=3, acked=2, missed=1, slowest_ms=9)
    await EventReceipts.keep(event.id, last)
    final = await shown()
    assert "2 tabs on 1 worker acknowledged, slowest 9 ms; 1 not acknowledged in time" in final
    assert 'data-topics="receipts.' not in final
    assert "Refresh" not in final


async def test_tabs_of_a_stopped_worker_are_reported_as_unknown(ada: Visitor) -> None:
    event = await record_event(ada, acked=1, missed=0)
    past = event.at - 2 * SETTLED_AFTER
    await EventReceipts.store_barrier_result(event.id, tabs=4, silent=False)
    await Event.get_motor_collection().update_one({"_id": event.id}, {"$set": {"at": past}})
    page = (await ada.get(f"/receipts/{event.id}")).text
    assert "; 3 unknown because a worker stopped, refused at their next request." in page
    assert 'data-topics="receipts.' not in page
