"""The matrix of roles and permissions, and the preview of an edit."""

import re
from urllib.parse import urlencode

import pytest

from quartapp.models import Role
from quartapp.models.base.actor import SYSTEM
from quartapp.models.roles import preview as preview_module
from quartapp.models.roles import role as role_module
from quartapp.policy import Permission
from tests.integration.routes.conftest import Answer, Visitor, Visitors, documents


async def new_role(name: str, *permissions: Permission) -> Role:
    return await Role.add(name, "", permissions, by=SYSTEM)


def cells(page: Answer, role: str) -> dict[str, set[str]]:
    """Return the attributes `checked` and `disabled` of each checkbox of the role."""
    found = {}
    for permission, attributes in re.findall(
        rf'value="([a-z.]+)" aria-label="[a-z.]+ for {role}"([^>]*)>', page.text
    ):
        found[permission] = set(attributes.split())
    return found


def changes(role: str, *permissions: str) -> str:
    query = urlencode({"permissions": permissions}, doseq=True)
    return f"/admin/roles/{role}/changes?{query}"


async def test_the_matrix_shows_which_role_has_which_permission(root: Visitor) -> None:
    await new_role("editor", Permission.POSTS_WRITE)
    page = await root.get("/admin/roles")
    assert cells(page, "editor") == {
        permission: {"checked"} if permission == "posts.write" else set()
        for permission in Permission
    }


async def test_cells_that_an_edit_would_refuse_are_disabled(visitors: Visitors) -> None:
    boss = await visitors.with_permissions("boss", Permission.ROLES_MANAGE, Permission.POSTS_WRITE)
    await new_role("editor", Permission.POSTS_WRITE)
    await new_role("reader", Permission.USERS_READ)
    page = await boss.get("/admin/roles")
    assert "disabled" not in cells(page, "editor")["posts.write"]
    assert "disabled" in cells(page, "editor")["users.read"]
    assert all("disabled" in each for each in cells(page, "reader").values())
    assert all("disabled" in each for each in cells(page, "admin").values())
    assert "disabled" in cells(page, "member")["roles.manage"]


async def test_a_preview_says_who_gains_and_who_loses(visitors: Visitors, root: Visitor) -> None:
    editor = await new_role("editor", Permission.POSTS_WRITE, Permission.USERS_READ)
    other = await new_role("reader", Permission.USERS_READ)
    await visitors.account("ada", editor)
    await visitors.account("bob", editor, other)
    await visitors.account("eve", editor)
    page = await root.get(changes("editor", "posts.write", "posts.moderate"))
    assert "3 users have this role" in page.text
    assert "2 users lose it" in page.text
    added, _, removed = page.text.partition("change-removed")
    assert "posts.moderate" in added
    assert "users.read" in removed


async def test_a_preview_of_many_users_does_not_count_who_loses(
    visitors: Visitors, root: Visitor, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (role_module, preview_module):
        monkeypatch.setattr(module, "COUNTED_HOLDERS", 1)
    editor = await new_role("editor", Permission.USERS_READ)
    await visitors.account("ada", editor)
    await visitors.account("bob", editor)
    page = await root.get(changes("editor"))
    assert "1+ users have this role" in page.text
    assert "lose it" not in page.text


async def test_saving_a_preview_changes_the_role_and_nothing_else(root: Visitor) -> None:
    await root.post("/admin/roles/new", name="editor", description="Words.", requires_factor="y")
    preview = await root.get(changes("editor", "posts.write"))
    answer = await root.send("/admin/roles/editor", preview.fields)
    assert (answer.status, answer.location) == (303, "/admin/roles")
    editor = (await documents("roles", name="editor"))[0]
    assert editor["permissions"] == ["posts.write"]
    assert (editor["description"], editor["requires_factor"]) == ("Words.", True)


async def test_a_preview_without_a_difference_offers_nothing(root: Visitor) -> None:
    await new_role("editor", Permission.POSTS_WRITE)
    page = await root.get(changes("editor", "posts.write", "nonsense"))
    assert page.status == 200
    assert "Nothing would change." in page.text
    assert "Save changes" not in page.text


async def test_a_preview_that_exceeds_the_users_rights_has_no_form(visitors: Visitors) -> None:
    boss = await visitors.with_permissions("boss", Permission.ROLES_MANAGE)
    await new_role("editor")
    page = await boss.get(changes("editor", "users.read"))
    assert "You cannot make this change" in page.text
    assert "Save changes" not in page.text


async def test_an_edit_does_not_undo_one_that_it_has_not_seen(
    visitors: Visitors, root: Visitor
) -> None:
    await new_role("editor", Permission.POSTS_WRITE)
    page = await root.get("/admin/roles/editor")
    await root.post("/admin/roles/editor", name="editor", permissions=["users.read"])
    refused = await root.send("/admin/roles/editor", {**page.fields, "permissions": "posts.write"})
    assert refused.status == 422
    assert "was changed in the meantime" in refused.text
    assert (await documents("roles", name="editor"))[0]["permissions"] == ["users.read"]
    again = await root.send("/admin/roles/editor", {**refused.fields, "permissions": "posts.write"})
    assert again.status == 303
    assert (await documents("roles", name="editor"))[0]["permissions"] == ["posts.write"]
