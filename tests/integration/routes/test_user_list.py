"""The list of users for administrators, and creating a user."""

from datetime import timedelta
from urllib.parse import urlencode

import pytest

from quartapp import clock
from quartapp.models import Role, User
from quartapp.models.base.actor import SYSTEM
from quartapp.models.base.references import role_ref
from quartapp.policy import Permission
from tests.integration.routes.conftest import (
    Answer,
    Visitor,
    Visitors,
    documents,
    link_in,
    role_named,
    user_named,
)

COUNT, PAGE = 120, 50


@pytest.fixture
async def people(root: Visitor) -> list[str]:
    """Insert users who were seen one after the other, the last one first; return their names."""
    member, now = await role_named("member"), clock.now()
    names = [f"Person-{number:03}" for number in range(COUNT)]
    await User.insert_many(
        User(
            username=name,
            email=f"{name.lower()}@example.org",
            password_hash="x",
            roles=[role_ref(member.id)],
            seen_at=now - timedelta(minutes=number),
            disabled_at=now if number % 10 == 0 else None,
            email_verified_at=now,
        )
        for number, name in enumerate(names)
    )
    return names


def listed(answer: Answer) -> list[str]:
    return [part.split('"')[0] for part in answer.text.split('name="users" value="')[1:]]


async def ask(visitor: Visitor, **query: str) -> Answer:
    return await visitor.get(f"/admin/users?{urlencode(query)}")


async def test_filters_and_order_stay_on_the_pages_before_and_after(
    root: Visitor, people: list[str]
) -> None:
    first = await ask(root, sort="seen", status="active", role="member")
    expected = [name for name in people if not name.endswith("0")]
    assert listed(first) == expected[:PAGE]
    assert "108 users" in first.text
    second = await root.get(first.link("next"))
    third = await root.get(second.link("next"))
    assert listed(second) + listed(third) == expected[PAGE:]
    assert (first.link("prev"), third.link("next")) == ("", "")
    assert listed(await root.get(third.link("prev"))) == listed(second)
    assert listed(await root.get(second.link("prev"))) == listed(first)


async def test_each_filter_selects_users(root: Visitor, people: list[str]) -> None:
    assert listed(await ask(root, status="disabled")) == people[::10]
    assert listed(await ask(root, role="ADMIN")) == ["root"]
    assert listed(await ask(root, q="person-01", sort="created")) == people[19:9:-1]
    assert listed(await ask(root, status="closing")) == []
    await User.change({"username": "Person-005"}, {"$set": {"totp": {"sealed": "x"}}})
    without = await ask(root, q="person-00", factor="none")
    assert listed(without) == [name for name in people[:10] if name != "Person-005"]


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ({"role": "nothing"}, "This role does not exist."),
        ({"status": "gone"}, "Status:"),
        ({"factor": "all"}, "Second factor:"),
        ({"sort": "email"}, "Sort by:"),
        ({"q": "x" * 255}, "Use at most 254 characters."),
        ({"sort": "seen", "after": "x"}, "This page of the list does not exist."),
        ({"sort": "created", "before": "2026"}, "This page of the list does not exist."),
        ({"after": "x" * 255}, "This page of the list does not exist."),
    ],
)
async def test_an_invalid_filter_is_explained(
    root: Visitor, query: dict[str, str], message: str
) -> None:
    answer = await ask(root, **query)
    assert answer.status == 422
    assert message in answer.text
    assert listed(answer) == []


async def test_empty_lists_offer_to_show_all_users(root: Visitor) -> None:
    answer = await ask(root, status="disabled")
    assert answer.status == 200
    assert "No users match" in answer.text
    assert "/admin/users" in answer.links


async def test_only_actions_with_permission_are_offered(visitors: Visitors) -> None:
    for permission, offered in [
        (Permission.USERS_MANAGE, {"grant", "revoke", "disable"}),
        (Permission.SESSIONS_MANAGE, {"end-sessions"}),
        (Permission.EVENTS_READ, set()),
    ]:
        visitor = await visitors.with_permissions(
            f"x-{permission}", Permission.USERS_READ, permission
        )
        page = await visitor.get("/admin/users")
        found = {
            value
            for value in ("grant", "revoke", "end-sessions", "disable")
            if f'<option value="{value}">' in page.text
        }
        assert found == offered
        assert bool(listed(page)) == bool(offered)


# ---- creating


async def test_a_created_user_sets_a_password_with_the_link_in_the_email(
    visitors: Visitors, root: Visitor
) -> None:
    fields = {"username": "grace", "email": "grace@example.org", "role": "moderator"}
    answer = await root.post("/admin/users/new", **fields)
    assert (answer.status, answer.location) == (303, "/admin/users/grace")
    assert "grace@example.org" in (await root.get(answer.location)).text
    user = await user_named("grace")
    assert not user.verified
    (event,) = await documents("events", verb="user.registered", **{"subject.$id": user.id})
    assert event["actor"].id == (await user_named("root")).id
    grace = Visitor(visitors.app, "grace")
    assert (await grace.sign_in(password="")).status == 422
    (letter,) = await visitors.emails("grace@example.org")
    assert "grace" in letter
    answer = await grace.post(link_in(letter), password=grace.password, confirm=grace.password)
    assert answer.status == 303
    assert (await grace.sign_in()).status == 303
    me = await grace.me()
    assert me is not None
    assert me["roles"] == ["member", "moderator"]
    assert (await user_named("grace")).verified


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        ({"username": "ADA"}, "username"),
        ({"email": "ada@example.org"}, "email"),
        ({"username": "new"}, "username"),
        ({"username": "bulk"}, "username"),
        ({"username": ""}, "username"),
        ({"email": "nobody"}, "email"),
        ({"role": "nothing"}, "role"),
    ],
)
async def test_a_refused_user_keeps_what_was_typed(
    root: Visitor, ada: Visitor, fields: dict[str, str], error: str
) -> None:
    typed = {"username": "grace", "email": "grace@example.org", "role": "member", **fields}
    answer = await root.post("/admin/users/new", **typed)
    assert answer.status == 422
    assert answer.error(error)
    for name in {"username", "email"}:
        assert answer.fields[name] == typed[name]
    assert len(await documents("users")) == 2


async def test_a_user_is_created_only_with_permissions_of_the_administrator(
    visitors: Visitors,
) -> None:
    await Role.add("auditor", "", [Permission.EVENTS_READ], by=SYSTEM)
    half = await visitors.with_permissions("half", Permission.USERS_MANAGE, Permission.POSTS_WRITE)
    fields = {"username": "grace", "email": "grace@example.org"}
    answer = await half.post("/admin/users/new", **fields, role="auditor")
    assert answer.status == 403
    assert "events.read" in answer.error("role")
    assert len(await documents("users")) == 1
    assert (await half.post("/admin/users/new", **fields)).status == 303
