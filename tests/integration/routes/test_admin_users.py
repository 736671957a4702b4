"""The admin pages for users (ASVS 2.3.4, 7.4)."""

import asyncio
from urllib.parse import urlencode

import pytest

from quartapp.models import Role, User
from quartapp.models.base.actor import SYSTEM
from quartapp.models.base.references import role_ref
from quartapp.policy import Permission
from tests.integration.routes.conftest import (
    Visitor,
    Visitors,
    documents,
    pages,
    role_named,
    user_named,
)


async def insert_users(count: int) -> list[str]:
    """Insert this many accounts and return their usernames in order."""
    member = await role_named("member")
    names = [f"Person-{number:03}" for number in range(count)]
    await User.insert_many(
        User(
            username=name,
            email=f"{name.lower()}@{'north' if number % 2 else 'south'}.example.org",
            password_hash="x",
            roles=[role_ref(member.id)],
        )
        for number, name in enumerate(names)
    )
    return names


def listed(text: str) -> list[str]:
    return [part.split('"')[0] for part in text.split('name="users" value="')[1:]]


async def test_a_hundred_and_twenty_users_are_paginated_by_name(root: Visitor) -> None:
    names = await insert_users(120)
    shown = [listed(page.text) for page in await pages(root, "/admin/users")]
    assert [len(page) for page in shown] == [50, 50, 21]
    assert [name for page in shown for name in page] == [*names, "root"]


SEARCHES = [
    ("person-01", range(10, 20)),
    ("PERSON-119", [119]),
    ("person-007@north", [7]),
    ("  person-007  ", [7]),
    ("erson", []),
    ("person-", range(120)),
    ("zzz", []),
]


async def test_a_search_finds_users_by_prefix_of_name_or_address(root: Visitor) -> None:
    names = await insert_users(120)
    for text, numbers in SEARCHES:
        # The next pages belong to the same search.
        shown = await pages(root, f"/admin/users?{urlencode({'q': text})}")
        found = [name for page in shown for name in listed(page.text)]
        assert found == [names[number] for number in numbers], text


async def test_granting_and_revoking_take_effect_immediately(
    visitors: Visitors, root: Visitor, ada: Visitor
) -> None:
    answer = await root.post("/admin/users/ADA/grants", role="moderator")
    assert (answer.status, answer.location) == (303, "/admin/users/ada/roles")
    assert "now has the role moderator" in (await root.get(answer.location)).text
    me = await ada.me()
    assert me is not None
    assert me["roles"] == ["member", "moderator"]
    answer = await root.post("/admin/users/ada/grants/moderator/revoke")
    assert (answer.status, answer.location) == (303, "/admin/users/ada/roles")
    assert await ada.me() is None
    assert "root revoked one of your roles" in (await ada.get("/login")).text
    assert (await ada.sign_in()).status == 303
    me = await ada.me()
    assert me is not None
    assert me["roles"] == ["member"]


async def test_a_repeated_action_is_reported_and_signs_no_user_out(
    root: Visitor, ada: Visitor
) -> None:
    for address, fields in (
        ("grants", {"role": "member"}),
        ("grants/moderator/revoke", {}),
        ("enable", {}),
    ):
        answer = await root.post(f"/admin/users/ada/{address}", **fields)
        assert answer.status == 303
    assert await ada.me() is not None


async def test_ending_the_sessions_of_a_user_ends_no_others(
    visitors: Visitors, root: Visitor, ada: Visitor
) -> None:
    phone, bob = ada.another_device(), await visitors.member("bob")
    await phone.sign_in()
    answer = await root.post("/admin/users/ada/sessions/end")
    assert (answer.status, answer.location) == (303, "/admin/users/ada/sessions")
    assert await ada.me() is None
    assert await phone.me() is None
    assert await bob.me() is not None
    assert await root.me() is not None
    assert "root ended your session." in (await phone.get("/login")).text


async def test_a_disabled_account_cannot_sign_in_until_it_is_enabled(
    root: Visitor, ada: Visitor
) -> None:
    assert (await root.post("/admin/users/ada/disable")).status == 303
    assert await ada.me() is None
    assert "root disabled your account." in (await ada.get("/login")).text
    assert (await ada.sign_in()).status == 403
    assert "disabled" in (await root.get("/admin/users/ada")).text
    assert (await root.post("/admin/users/ada/enable")).status == 303
    # The ended session stays ended.
    assert await ada.me() is None
    assert (await ada.sign_in()).status == 303


@pytest.mark.parametrize("act", ["grants/admin/revoke", "disable"])
async def test_the_last_administrator_cannot_be_revoked_or_disabled(
    root: Visitor, act: str
) -> None:
    answer = await root.post(f"/admin/users/root/{act}")
    assert answer.status == 422
    assert "last active administrator" in answer.text
    me = await root.me()
    assert me is not None
    assert me["roles"] == ["admin"]


@pytest.mark.parametrize("act", ["grants/admin/revoke", "disable"])
async def test_two_administrators_removing_each_other_leave_one(
    visitors: Visitors, root: Visitor, act: str
) -> None:
    other = await visitors.admin("other")
    answers = await asyncio.gather(
        root.post(f"/admin/users/other/{act}"), other.post(f"/admin/users/root/{act}")
    )
    # The slower one is refused: too late, or without permission by now.
    statuses = [answer.status for answer in answers]
    assert statuses.count(303) == 1
    assert set(statuses) <= {303, 302, 403, 422}
    assert [await root.me() is None, await other.me() is None].count(True) == 1


async def test_unknown_users_are_404_and_unknown_roles_a_form_error(
    root: Visitor, ada: Visitor
) -> None:
    assert (await root.get("/admin/users/nobody")).status == 404
    for act in ("grants", "grants/member/revoke", "sessions/end", "disable", "enable"):
        assert (await root.post(f"/admin/users/nobody/{act}", role="member")).status == 404
    assert (await root.post("/admin/users/ada/grants/nothing/revoke")).status == 404
    answer = await root.post("/admin/users/ada/grants", role="nothing")
    assert answer.status == 422
    assert answer.error("role")
    me = await ada.me()
    assert me is not None
    assert me["roles"] == ["member"]


async def test_each_admin_action_is_recorded_with_its_actor(root: Visitor, ada: Visitor) -> None:
    for act in ("grants", "grants/moderator/revoke", "sessions/end", "disable", "enable"):
        await ada.sign_in()
        await root.post(f"/admin/users/ada/{act}", role="moderator")
    admin, subject = await user_named("root"), await user_named("ada")
    record = [
        event["verb"]
        for event in await documents("events", **{"subject.$id": subject.id})
        if event["actor"] and event["actor"].id == admin.id
    ]
    assert record == [
        "role.granted",
        "role.revoked",
        "sessions.ended",
        "user.disabled",
        "user.enabled",
    ]


async def test_the_page_of_a_user_shows_no_secret(root: Visitor, ada: Visitor) -> None:
    page = (await root.get("/admin/users/ada")).text
    user = await user_named("ada")
    assert user.email in page
    assert user.password_hash not in page
    for session in await documents("sessions"):
        assert session["digest"] not in page
    assert 'type="password"' not in page


async def test_administrators_cannot_set_passwords(root: Visitor, ada: Visitor) -> None:
    before = (await user_named("ada")).password_hash
    for act in ("grants", "disable", "enable", "sessions/end"):
        await root.post(
            f"/admin/users/ada/{act}", role="member", password="planted", password_hash="planted"
        )
    assert (await user_named("ada")).password_hash == before


@pytest.mark.parametrize("permission", [Permission.USERS_MANAGE, Permission.USERS_READ])
async def test_users_read_and_users_manage_allow_different_actions(
    visitors: Visitors, ada: Visitor, permission: Permission
) -> None:
    await Role.add("spare", "", [], by=SYSTEM)
    visitor = await visitors.with_permissions("half", permission, Permission.POSTS_WRITE)
    reads = permission is Permission.USERS_READ
    assert (await visitor.get("/admin/users/ada")).status == (200 if reads else 403)
    answer = await visitor.post("/admin/users/ada/grants", role="spare")
    assert answer.status == (403 if reads else 303)
    for act, fields in {"grants": {"role": "nothing"}, "last-day": {"date": "nothing"}}.items():
        refused = await visitor.post(f"/admin/users/ada/{act}", **fields)
        assert refused.status >= 400
        if not reads:
            # The form is on a page that the sender may not read.
            assert "ada@example.org" not in refused.text
            assert "<h1>ada</h1>" not in refused.text


async def test_a_role_is_granted_by_its_name_in_any_case(root: Visitor, ada: Visitor) -> None:
    await Role.add("Editor", "", [], by=SYSTEM)
    assert (await root.post("/admin/users/ada/grants", role="Editor")).status == 303
    assert (await root.post("/admin/users/ada/grants/EDITOR/revoke")).status == 303
    user = await user_named("ada")
    assert [link.ref.id for link in user.roles] == [(await role_named("member")).id]
