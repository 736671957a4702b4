"""A rejected form shows the errors of its validators and those of the models in one answer, and
keeps what was typed."""

import pytest

from quartapp.models import Invitation, Role, User
from quartapp.models.base.actor import SYSTEM
from quartapp.policy import Permission
from tests.integration.routes.conftest import StartApp, Visitors

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
