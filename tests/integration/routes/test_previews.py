"""The previews of revocations, the end of one session, and why a user has a permission."""

import pytest

from quartapp import clock
from quartapp.models import Role, User
from quartapp.models.base.actor import SYSTEM
from quartapp.policy import Permission
from tests.integration.routes.conftest import (
    ORIGIN,
    Visitor,
    Visitors,
    contents,
    documents,
    role_named,
    user_named,
)


async def test_the_preview_of_a_revocation_counts_sessions_and_open_tabs(
    visitors: Visitors, root: Visitor, ada: Visitor
) -> None:
    await ada.another_device().sign_in_without_form(await user_named("ada"))
    # The email about the new device would change the outbox.
    await visitors.wait_for_outbox()
    async with ada.client.websocket("/ws", headers={"Origin": ORIGIN}) as socket:
        assert (await socket.receive_json())["type"] == "hello"
        before = await contents()
        pages = {
            address: (await root.get(address)).text
            for address in (
                "/admin/users/ada/grants/member/revoke",
                "/admin/users/ada/disable",
                "/admin/users/ada/sessions/end",
                f"/admin/sessions/{await ada.session_id()}/end",
            )
        }
        assert await contents() == before
    for address, text in pages.items():
        number = "1 active session" if "/admin/sessions/" in address else "2 active sessions"
        assert f"{number} will end, with 1 open tab." in text, address
        assert f'action="{address}" method="post"' in text
    assert "ada loses: posts.write" in pages["/admin/users/ada/grants/member/revoke"]


async def test_the_preview_of_deleting_a_role_counts_its_users(
    visitors: Visitors, root: Visitor
) -> None:
    crew = await Role.add("crew", "", [Permission.POSTS_WRITE], by=SYSTEM)
    await visitors.signed_in("bob", crew)
    await visitors.account("zoe", crew)
    page = await root.get("/admin/roles/crew/delete")
    assert "Users who have the role: 2." in page.text
    assert "1 active session will end, with 0 open tabs." in page.text
    assert "cannot be deleted" in (await root.get("/admin/roles/admin/delete")).text


@pytest.mark.parametrize("act", ["grants/admin/revoke", "disable"])
async def test_the_preview_says_whether_an_administrator_remains(
    visitors: Visitors, root: Visitor, act: str
) -> None:
    alone = await root.get(f"/admin/users/root/{act}")
    assert "last active administrator" in alone.text
    assert "danger-solid" not in alone.text
    await visitors.admin("other")
    page = await root.get(f"/admin/users/root/{act}")
    assert "An active administrator remains." in page.text
    assert "This is your own account." in page.text


async def test_an_action_that_would_be_refused_has_no_button(visitors: Visitors) -> None:
    half = await visitors.with_permissions(
        "half", Permission.USERS_MANAGE, Permission.SESSIONS_MANAGE
    )
    auditor = await visitors.with_permissions("auditor", Permission.EVENTS_READ)
    for address in (
        "/admin/users/auditor/disable",
        f"/admin/sessions/{await auditor.session_id()}/end",
    ):
        page = await half.get(address)
        assert page.status == 200
        assert "events.read" in page.text
        assert "danger-solid" not in page.text
    answer = await half.post(f"/admin/sessions/{await auditor.session_id()}/end")
    assert answer.status == 403
    assert await auditor.me() is not None


async def test_an_administrator_ends_one_session(root: Visitor, ada: Visitor) -> None:
    phone = ada.another_device()
    await phone.sign_in()
    session = await phone.session_id()
    answer = await root.post(f"/admin/sessions/{session}/end")
    assert (answer.status, answer.location) == (303, "/admin/sessions")
    assert await phone.me() is None
    assert await ada.me() is not None
    assert "root ended your session." in (await phone.get("/login")).text
    assert (await root.post(f"/admin/sessions/{session}/end")).status == 303
    assert "had already ended" in (await root.get("/admin/sessions")).text
    (event,) = await documents("events", verb="session.ended")
    assert event["actor"].id == (await user_named("root")).id
    assert "Nothing to change." in (await root.get(f"/admin/sessions/{session}/end")).text
    assert (await root.post("/admin/sessions/507f1f77bcf86cd799439011/end")).status == 404


async def test_the_page_of_a_user_says_why_they_have_a_permission(
    root: Visitor, ada: Visitor
) -> None:
    await root.post("/admin/users/ada/grants", role="moderator")
    await Role.change({"name": "moderator"}, {"$set": {"requires_factor": True}})
    text = (await root.get("/admin/users/ada/roles")).text
    assert "Through the role moderator. Granted by root on" in text
    assert "Through the role member." in text
    assert "The audit log has no grant." in text
    assert "withheld until a second factor is set up" in text
    assert text.count("Lost without this role.") == 1
    assert (await role_named("moderator")).requires_factor


async def test_the_page_of_a_user_names_who_granted_a_role_for_a_time(
    root: Visitor, ada: Visitor
) -> None:
    await root.post("/admin/users/ada/grants", role="moderator", until="2h")
    text = (await root.get("/admin/users/ada/roles")).text
    assert "Through the role moderator. Granted by root on" in text


async def test_the_preview_of_removing_second_factors_says_what_is_lost(
    visitors: Visitors, root: Visitor
) -> None:
    safe = await Role.add("safe", "", [Permission.USERS_READ], by=SYSTEM, requires_factor=True)
    await visitors.account("bob", safe)
    address = "/admin/users/bob/factors/reset"
    assert "Nothing to change." in (await root.get(address)).text
    await visitors.wait_for_outbox()
    await User.change(
        {"username": "bob"}, {"$set": {"totp": {"sealed": "x", "added_at": clock.now()}}}
    )
    before = await contents()
    text = (await root.get(address)).text
    assert await contents() == before
    assert "with all recovery codes: authenticator app." in text
    assert "0 active sessions will end, with 0 open tabs." in text
    assert "Until a new second factor is set up, bob loses: users.read" in text
    assert f'action="{address}" method="post"' in text
    assert f'href="{address}"' in (await root.get("/admin/users/bob")).text


async def test_the_preview_of_an_undone_grant_says_what_the_revocation_does(
    root: Visitor, ada: Visitor
) -> None:
    await root.post("/admin/users/ada/grants", role="moderator")
    (event,) = await documents("events", verb="role.granted")
    address = f"/admin/events/{event['_id']}/undo"
    for page, origin in {
        "/admin/events": "",
        "/admin": "?from=dashboard",
        "/admin/users/ada/activity": "?from=user",
    }.items():
        assert f'href="{address}{origin}"' in (await root.get(page)).text
    preview = await root.get(f"{address}?from=user")
    assert "ada loses: posts.moderate, users.read" in preview.text
    assert "1 active session will end" in preview.text
    answer = await root.post(address, **{"from": preview.fields["from"]})
    assert (answer.status, answer.location) == (303, "/admin/users/ada/activity")
    again = await root.get(address)
    assert "it was changed again" in again.text
    assert "danger-solid" not in again.text


async def test_withdrawing_an_invitation_has_a_preview(root: Visitor) -> None:
    await root.post("/admin/invitations", email="new@example.org")
    (invitation,) = await documents("invitations")
    address = f"/admin/invitations/{invitation['_id']}/withdraw"
    assert f'href="{address}"' in (await root.get("/admin/invitations")).text
    page = (await root.get(address)).text
    assert "The link in the email to new@example.org no longer works." in page
    assert (await root.post(address)).location == "/admin/invitations"
    assert "Nothing to change." in (await root.get(address)).text
    assert (await root.get("/admin/invitations/507f1f77bcf86cd799439011/withdraw")).status == 404


async def test_deleting_an_account_shows_its_sessions_before(
    visitors: Visitors, root: Visitor, ada: Visitor
) -> None:
    page = await root.get("/admin/users/ada/delete")
    assert "1 active session will end, with 0 open tabs." in page.text
    assert 'name="username"' in page.text
    alone = await root.get("/admin/users/root/delete")
    assert "last active administrator" in alone.text
    assert 'name="username"' not in alone.text
    await root.post("/admin/users/ada/disable")
    assert 'name="username"' in (await root.get("/admin/users/ada/delete")).text


@pytest.mark.parametrize("path", ["users/auditor/disable", "users/auditor/factors/reset"])
async def test_a_refused_action_is_answered_with_its_preview(visitors: Visitors, path: str) -> None:
    """The administrator may not read the page of the user."""
    half = await visitors.with_permissions("half", Permission.USERS_MANAGE)
    await visitors.with_permissions("auditor", Permission.EVENTS_READ)
    answer = await half.post(f"/admin/{path}")
    assert answer.status == 403
    assert "You lack permissions for this: events.read." in answer.text
    assert "danger-solid" not in answer.text
