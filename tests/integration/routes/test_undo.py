"""Undoing entries of the audit log."""

import asyncio
from datetime import timedelta

import pytest
from beanie import PydanticObjectId

from quartapp.models import Event, Role
from quartapp.models.audit import undo as undo_module
from quartapp.models.base.actor import SYSTEM
from quartapp.policy import Permission
from tests.integration.routes.conftest import (
    Answer,
    Visitor,
    Visitors,
    role_named,
    roles_of,
    user_named,
)


async def latest(verb: str) -> PydanticObjectId:
    return (await Event.page(verbs=[verb], limit=1))[0].id


async def undone(visitor: Visitor, verb: str) -> Answer:
    """Undo the latest event of this kind, and return the page that follows."""
    answer = await visitor.post(f"/admin/events/{await latest(verb)}/undo")
    return await visitor.get(answer.location) if answer.status == 303 else answer


async def test_a_grant_and_a_revocation_are_undone(visitors: Visitors, root: Visitor) -> None:
    bob = await visitors.signed_in("bob", await role_named("member"))
    await root.post("/admin/users/bob/grants", role="moderator")
    assert '/undo"' in (await root.get("/admin/events")).text
    assert "The action was undone." in (await undone(root, "role.granted")).text
    assert await roles_of("bob") == {"member"}
    assert await bob.me() is None

    assert "The action was undone." in (await undone(root, "role.revoked")).text
    assert await roles_of("bob") == {"member", "moderator"}


async def test_disabling_and_enabling_an_account_are_undone(
    visitors: Visitors, root: Visitor
) -> None:
    await visitors.account("bob")
    await root.post("/admin/users/bob/disable")
    await undone(root, "user.disabled")
    assert not (await user_named("bob")).disabled
    await undone(root, "user.enabled")
    assert (await user_named("bob")).disabled


async def test_a_scheduled_deletion_is_undone(visitors: Visitors, root: Visitor) -> None:
    await visitors.account("bob")
    await root.post("/admin/users/bob/delete", username="bob", posts="keep")
    assert (await user_named("bob")).closed_at is not None
    await undone(root, "user.leaving")
    assert (await user_named("bob")).closed_at is None


async def test_an_edit_of_a_role_is_undone_and_keeps_the_rest(root: Visitor) -> None:
    await Role.add("editor", "Words.", [Permission.POSTS_WRITE], by=SYSTEM)
    await root.post(
        "/admin/roles/editor", name="editor", description="New.", permissions=["users.read"]
    )
    await undone(root, "role.edited")
    editor = await role_named("editor")
    assert (editor.permissions, editor.description) == (["posts.write"], "New.")


async def test_an_edit_that_was_followed_by_another_is_not_undone(root: Visitor) -> None:
    await Role.add("editor", "", [Permission.POSTS_WRITE], by=SYSTEM)
    await root.post("/admin/roles/editor", name="editor", permissions=["users.read"])
    first = await latest("role.edited")
    await root.post("/admin/roles/editor", name="editor", permissions=["events.read"])
    answer = await root.post(f"/admin/events/{first}/undo")
    assert answer.status == 422
    assert "was changed in the meantime" in answer.text
    assert (await role_named("editor")).permissions == ["events.read"]


async def test_what_was_changed_again_is_not_undone(visitors: Visitors, root: Visitor) -> None:
    await visitors.account("bob")
    await root.post("/admin/users/bob/grants", role="moderator")
    first = await latest("role.granted")
    await root.post("/admin/users/bob/grants/moderator/revoke")
    await root.post("/admin/users/bob/grants", role="moderator")
    answer = await root.post(f"/admin/events/{first}/undo")
    assert answer.status == 422
    assert "it was changed again" in answer.text
    assert await roles_of("bob") == {"moderator"}


async def test_an_event_about_another_role_does_not_prevent_it(
    visitors: Visitors, root: Visitor
) -> None:
    await Role.add("editor", "", [], by=SYSTEM)
    await visitors.account("bob")
    await root.post("/admin/users/bob/grants", role="moderator")
    first = await latest("role.granted")
    await root.post("/admin/users/bob/grants", role="editor")
    assert (await root.post(f"/admin/events/{first}/undo")).status == 303
    assert await roles_of("bob") == {"editor"}


async def test_two_undos_at_once_undo_it_once(visitors: Visitors, root: Visitor) -> None:
    await visitors.account("bob")
    await root.post("/admin/users/bob/disable")
    address = f"/admin/events/{await latest('user.disabled')}/undo"
    answers = await asyncio.gather(root.post(address), root.post(address))
    assert sorted(answer.status for answer in answers) == [303, 422]
    assert len(await Event.page(verbs=["user.enabled"])) == 1


async def test_after_ten_minutes_nothing_is_undone(
    visitors: Visitors, root: Visitor, monkeypatch: pytest.MonkeyPatch
) -> None:
    await visitors.account("bob")
    await root.post("/admin/users/bob/disable")
    monkeypatch.setattr(undo_module, "UNDONE_WITHIN", timedelta())
    assert '/undo"' not in (await root.get("/admin/events")).text
    answer = await undone(root, "user.disabled")
    assert (answer.status, (await user_named("bob")).disabled) == (422, True)
    assert "only in the first ten minutes" in answer.text


async def test_undoing_needs_the_permission_of_the_opposite(
    visitors: Visitors, root: Visitor
) -> None:
    reader = await visitors.with_permissions("reader", Permission.EVENTS_READ)
    await visitors.account("bob")
    await root.post("/admin/users/bob/disable")
    assert '/undo"' not in (await reader.get("/admin/events")).text
    answer = await undone(reader, "user.disabled")
    assert answer.status == 403
    assert "users.manage" in answer.text
    assert (await user_named("bob")).disabled


async def test_nobody_undoes_beyond_their_own_permissions(
    visitors: Visitors, root: Visitor
) -> None:
    boss = await visitors.with_permissions("boss", Permission.EVENTS_READ, Permission.USERS_MANAGE)
    await visitors.account("bob", await role_named("admin"))
    await root.post("/admin/users/bob/grants/admin/revoke")
    answer = await undone(boss, "role.revoked")
    assert answer.status == 403
    assert await roles_of("bob") == set()


async def test_events_without_an_opposite_offer_no_undo(visitors: Visitors, root: Visitor) -> None:
    await visitors.signed_in("bob")
    await root.post("/admin/users/bob/sessions/end")
    assert '/undo"' not in (await root.get("/admin/events")).text
    assert (await undone(root, "sessions.ended")).status == 422
    missing = await root.post(f"/admin/events/{PydanticObjectId()}/undo")
    assert missing.status == 404
