"""What pages say of the sessions and open tabs that an action has ended, and to whom."""

from __future__ import annotations

from datetime import timedelta

import pytest

from quartapp import clock
from quartapp.models import Event, Session
from quartapp.models.audit.event import Verb
from quartapp.models.audit.receipt import SETTLED_AFTER, Receipt
from quartapp.models.base.actor import Actor
from quartapp.policy import Permission
from tests.routes.conftest import Answer, Town, Visitor, role_named, the_user

ACTIONS = {
    "grants/member/revoke": ("and was signed out", "There were no active sessions."),
    "disable": ("and was signed out", "There were no active sessions."),
    "sessions/end": ("Sessions of ada ended: 1.", "ada had no active sessions."),
}


async def done(root: Visitor, action: str) -> Answer:
    """The page after the redirect."""
    answer = await root.post(f"/admin/users/ada/{action}")
    assert answer.status == 303
    return await root.get(answer.location)


@pytest.mark.parametrize("action", ACTIONS)
@pytest.mark.parametrize("session", ["active", "expired", "ended", "none"])
async def test_only_users_with_an_active_session_are_said_to_be_signed_out(
    town: Town, root: Visitor, action: str, session: str
) -> None:
    ada = await town.member("ada") if session != "none" else town.nobody()
    if session == "none":
        await town.account("ada", await role_named("member"))
    elif session == "expired":
        past = clock.now() - timedelta(minutes=1)
        mine = {"user.$id": (await the_user("ada")).id}
        await Session.change_all(mine, {"$set": {"expires_at": past}})
    elif session == "ended":
        await ada.post("/logout")
    page = await done(root, action)
    with_session, without = ACTIONS[action]
    assert (with_session in page.text) is (session == "active")
    assert (without in page.text) is (session != "active")


async def test_the_second_to_end_a_session_is_told_that_it_had_ended(town: Town) -> None:
    ada = await town.member("ada")
    other = ada.another_device()
    await other.sign_in()
    me = await other.me()
    assert me is not None
    for words in ("was signed out.", "had already ended."):
        answer = await ada.post(f"/account/sessions/{me['session']}/end")
        assert words in (await ada.get(answer.location)).text


async def an_event(by: Visitor, **receipt: int) -> Event:
    """One that has ended three tabs."""
    user = await the_user(by.username)
    event = await Event.record(Verb.SESSIONS_ENDED, by=Actor(user.id, by.username))
    row = Receipt(worker="0", tabs=3, slowest_ms=5, **receipt)
    await Event.keep_receipt(event.id, row)
    return event


async def test_a_receipt_is_for_its_actor_and_for_readers_of_the_audit_log(
    town: Town, ada: Visitor
) -> None:
    event = await an_event(ada, acked=3, missed=0)
    reader = await town.holder("reader", Permission.EVENTS_READ)
    stranger = await town.holder("stranger", *(set(Permission) - {Permission.EVENTS_READ}))
    for visitor, status in ((ada, 200), (reader, 200), (stranger, 404)):
        answer = await visitor.get(f"/receipts/{event.id}")
        assert answer.status == status
        assert ("3 tabs on 1 worker acknowledged" in answer.text) is (status == 200)
    for missing in ("x", "0" * 24):
        assert (await ada.get(f"/receipts/{missing}")).status == 404


async def test_a_receipt_is_replaced_and_refreshed_until_nothing_is_waited_for(
    ada: Visitor,
) -> None:
    event = await an_event(ada, acked=1, missed=0)

    async def shown() -> str:
        return (await ada.get(f"/receipts/{event.id}")).text

    pending = await shown()
    assert "1 tab on 1 worker acknowledged, slowest 5 ms; 2 not acknowledged yet." in pending
    assert f'data-receipt="/receipts/{event.id}" data-pending>' in pending
    assert f'<a href="/receipts/{event.id}">Refresh</a>' in pending
    last = Receipt(worker="0", tabs=3, acked=2, missed=1, slowest_ms=9)
    await Event.keep_receipt(event.id, last)
    final = await shown()
    assert "2 tabs on 1 worker acknowledged, slowest 9 ms; 1 not acknowledged in time" in final
    assert "data-pending" not in final
    assert "Refresh" not in final


async def test_tabs_of_a_worker_that_stopped_are_unknown(ada: Visitor) -> None:
    event = await an_event(ada, acked=1, missed=0)
    past = event.at - 2 * SETTLED_AFTER
    await Event.change({"_id": event.id}, {"$set": {"at": past, "counted_tabs": 4}})
    page = (await ada.get(f"/receipts/{event.id}")).text
    assert "; 3 unknown because a worker stopped, refused at their next request." in page
    assert "data-pending" not in page
