"""A rejected form shows the errors of its validators and those of the models in one answer, and
keeps what was typed."""

import pytest

from quartapp.models import Invitation, Role, RoleRequest, User
from quartapp.models.base.actor import SYSTEM
from quartapp.policy import Permission
from tests.integration.routes.conftest import StartApp, Visitors, role_named

INVALID, TAKEN = "after the @-sign", "is taken"
LONG = "x" * 300
WEAK = "qwertyuiop"


async def test_a_wrong_current_password_does_not_hide_a_weak_new_one(visitors: Visitors) -> None:
    ada = await visitors.member("ada")
    sent = {"current_password": "something else", "password": WEAK, "confirm": "another"}
    answer = await ada.post("/account/password", **sent)
    assert answer.status == 422
    assert answer.error("current_password") == "Incorrect password."
    assert "too easy" in answer.error("password")
    assert "do not match" in answer.error("confirm")
    assert WEAK not in answer.text


@pytest.mark.parametrize("missing", ["current_password", "password"])
async def test_a_missing_password_does_not_hide_the_verdict_on_the_other(
    visitors: Visitors, missing: str
) -> None:
    ada = await visitors.member("ada")
    sent = {"current_password": "something else", "password": WEAK, "confirm": WEAK, missing: ""}
    answer = await ada.post("/account/password", **sent)
    assert answer.status == 422
    errors = answer.error("current_password"), answer.error("password")
    if missing == "current_password":
        assert errors[0] == "Enter your current password."
        assert "too easy" in errors[1]
    else:
        assert errors == ("Incorrect password.", "Enter a password.")


async def test_registering_shows_a_taken_name_beside_an_invalid_address(
    start_app: StartApp,
) -> None:
    visitors = await start_app(require_verified_email=True)
    await visitors.account("ada")
    sent = {"username": "ADA", "email": "zoe@", "password": WEAK, "confirm": WEAK}
    answer = await visitors.anonymous().post("/register", **sent)
    assert answer.status == 422
    assert TAKEN in answer.error("username")
    assert INVALID in answer.error("email")
    assert "too easy" in answer.error("password")
    assert (answer.fields["username"], answer.fields["email"]) == ("ADA", "zoe@")


async def test_creating_a_user_shows_all_errors(visitors: Visitors) -> None:
    manager = await visitors.with_permissions("max", Permission.USERS_MANAGE)
    await visitors.account("ada")
    answer = await manager.post("/admin/users/new", username="ada", email="zoe@", role="admin")
    assert answer.status == 422
    assert TAKEN in answer.error("username")
    assert INVALID in answer.error("email")
    assert "You cannot grant the role admin" in answer.error("role")
    assert (answer.fields["username"], answer.fields["email"]) == ("ada", "zoe@")
    sent = {"username": "ada", "email": "ada@example.org", "role": "member"}
    answer = await manager.post("/admin/users/new", **sent)
    assert answer.status == 422
    assert TAKEN in answer.error("username")
    assert TAKEN in answer.error("email")
    assert await User.count() == 2


async def test_inviting_shows_all_errors(visitors: Visitors) -> None:
    manager = await visitors.with_permissions("max", Permission.USERS_MANAGE)
    await visitors.account("ada")
    answer = await manager.post("/admin/invitations", email="zoe@", role="admin")
    assert answer.status == 422
    assert INVALID in answer.error("email")
    assert "You cannot grant the role admin" in answer.error("role")
    assert answer.fields["email"] == "zoe@"
    answer = await manager.post("/admin/invitations", email="ada@example.org", role="admin")
    assert answer.status == 422
    assert TAKEN in answer.error("email")
    assert "You cannot grant the role admin" in answer.error("role")
    assert await Invitation.count() == 0


async def test_inviting_past_the_maximum_says_so_beside_other_errors(start_app: StartApp) -> None:
    visitors = await start_app(invitations_per_user=1)
    admin = await visitors.admin()
    sent = {"email": "zoe@example.org", "role": "member"}
    assert (await admin.post("/admin/invitations", **sent)).status == 303
    answer = await admin.post("/admin/invitations", **sent)
    assert answer.status == 422
    assert "already invited" in answer.error("email")
    assert "which is the maximum" in answer.text
    answer = await admin.post("/admin/invitations", email="zoe@", role="no such role")
    assert "which is the maximum" in answer.text
    assert "does not exist" in answer.error("role")


async def test_creating_a_role_shows_all_errors(visitors: Visitors) -> None:
    manager = await visitors.with_permissions("max", Permission.ROLES_MANAGE)
    sent = {"name": "Moderator", "description": LONG, "permissions": ["users.manage"]}
    answer = await manager.post("/admin/roles/new", **sent)
    assert answer.status == 422
    assert "already exists" in answer.error("name")
    assert answer.error("description")
    assert "You cannot add users.manage" in answer.error("permissions")
    assert answer.fields["name"] == "Moderator"
    assert answer.fields["description"] == LONG
    answer = await manager.post("/admin/roles/new", name="a b", permissions="users.manage")
    assert answer.status == 422
    assert answer.error("name")
    assert "You cannot add users.manage" in answer.error("permissions")


async def test_editing_a_role_shows_all_errors(visitors: Visitors) -> None:
    manager = await visitors.with_permissions("max", Permission.ROLES_MANAGE)
    role = await Role.add("editor", "", [], by=SYSTEM)
    await role.edit(name="editor", description="New", permissions=[], by=SYSTEM)
    sent = {"name": "moderator", "description": LONG, "permissions": ["users.manage"]}
    answer = await manager.post("/admin/roles/editor", **sent, version=0)
    assert answer.status == 422
    assert "already exists" in answer.error("name")
    assert answer.error("description")
    assert "You cannot add users.manage" in answer.error("permissions")
    assert "was changed in the meantime" in answer.text
    assert (answer.fields["name"], answer.fields["version"]) == ("moderator", "1")


async def test_editing_a_built_in_role_shows_all_errors(visitors: Visitors) -> None:
    admin = await visitors.admin()
    sent = {"name": "people", "description": LONG, "permissions": ["users.manage"]}
    answer = await admin.post("/admin/roles/member", **sent)
    assert answer.status == 422
    assert "cannot be renamed" in answer.error("name")
    assert answer.error("description")
    assert "given to every new account" in answer.error("permissions")


async def test_granting_shows_an_invalid_end_beside_a_role_that_is_refused(
    visitors: Visitors,
) -> None:
    manager = await visitors.with_permissions("max", Permission.USERS_MANAGE, Permission.USERS_READ)
    await visitors.account("ada")
    sent = {"role": "admin", "until": "whenever"}
    answer = await manager.post("/admin/users/ada/grants", **sent)
    assert answer.status == 422
    assert "You cannot grant the role admin" in answer.error("role")
    assert answer.error("until")
    assert answer.fields["until"] == "whenever"


async def test_asking_for_a_role_shows_all_errors(visitors: Visitors) -> None:
    ada = await visitors.member("ada")
    answer = await ada.post("/account/roles", role="admin", reason="")
    assert answer.status == 422
    assert "cannot be requested" in answer.error("role")
    assert answer.error("reason") == "Enter a reason."


async def test_deleting_the_last_administrator_shows_all_errors(visitors: Visitors) -> None:
    admin = await visitors.admin()
    answer = await admin.post("/account/delete", username="roots", posts="keep")
    assert answer.status == 422
    assert "last active administrator" in answer.text
    assert "exactly as shown" in answer.error("username")
    assert answer.fields["username"] == "roots"


async def test_an_account_that_cannot_be_deleted_is_not_hidden_by_a_wrong_username(
    visitors: Visitors,
) -> None:
    admin = await visitors.admin()
    answer = await admin.post("/admin/users/root/delete", username="roots", posts="keep")
    assert answer.status == 422
    assert "Make another user an administrator first." in answer.text
    assert "needs your attention" not in answer.text
    manager = await visitors.with_permissions("max", Permission.USERS_MANAGE)
    answer = await manager.post("/admin/users/root/delete", username="roots", posts="keep")
    assert answer.status == 422
    assert "You cannot manage root" in answer.text


async def test_an_expiry_of_the_last_administrator_shows_all_errors(visitors: Visitors) -> None:
    admin = await visitors.admin()
    answer = await admin.post("/admin/users/root/last-day", date="2001-01-01")
    assert answer.status == 422
    assert "up to ten years ahead" in answer.error("date")
    assert "last active administrator" in answer.error("date")


async def test_actions_on_several_users_show_all_errors(visitors: Visitors) -> None:
    admin = await visitors.admin()
    answer = await admin.post("/admin/users/bulk", users=["root", "nobody"], action="grant")
    assert answer.status == 422
    assert "These users do not exist: nobody." in answer.text
    assert "Select a role." in answer.text


async def test_adding_a_passkey_shows_the_maximum_beside_an_invalid_name(
    start_app: StartApp,
) -> None:
    visitors = await start_app(passkeys_per_user=0)
    ada = await visitors.member("ada")
    answer = await ada.post("/account/factors/passkeys", name="")
    assert answer.status == 422
    assert answer.error("name") == "Enter a name."
    assert "at most 0 passkeys" in answer.text


async def test_granting_a_request_shows_an_invalid_end_beside_a_refusal(
    visitors: Visitors,
) -> None:
    admin, user = await visitors.admin(), await visitors.account("ada")
    role = await role_named("moderator")
    await Role.change({"_id": role.id}, {"$set": {"requestable": True}})
    asked = await RoleRequest.ask(user, role, "Please", by=SYSTEM)
    unverified = {"email_verified_at": None, "must_verify": True}
    await User.change({"_id": user.id}, {"$set": unverified})
    answer = await admin.post(f"/admin/requests/{asked.id}/grant", until="whenever")
    assert answer.status == 422
    assert "is not verified" in answer.text
    assert 'value="whenever"' in answer.text
    assert "duration" in answer.text


async def test_an_invalid_form_does_not_hide_that_a_request_was_decided(visitors: Visitors) -> None:
    admin, user = await visitors.admin(), await visitors.account("ada")
    role = await role_named("moderator")
    await Role.change({"_id": role.id}, {"$set": {"requestable": True}})
    asked = await RoleRequest.ask(user, role, "Please", by=SYSTEM)
    await asked.decline(by=SYSTEM)
    for path, sent in {"grant": {"until": "whenever"}, "decline": {"reason": LONG * 2}}.items():
        answer = await admin.post(f"/admin/requests/{asked.id}/{path}", **sent)
        assert answer.status == 422
        assert "was already declined by an operator" in answer.text


async def test_an_invalid_end_does_not_hide_that_a_user_cannot_be_managed(
    visitors: Visitors,
) -> None:
    manager = await visitors.with_permissions("max", Permission.USERS_MANAGE, Permission.USERS_READ)
    await visitors.admin()
    answer = await manager.post("/admin/users/root/grants", role="member", until="whenever")
    assert answer.status == 403
    assert "You cannot manage root" in answer.text
