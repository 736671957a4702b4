"""The tabs of a user's page for administrators, and addresses that have one meaning."""

import re

import pytest
from beanie import PydanticObjectId
from bson.errors import InvalidId
from quart import Quart
from werkzeug.routing import Rule

from quartapp.models import Role, Session, User
from quartapp.models.base.actor import SYSTEM
from quartapp.models.base.references import role_ref
from quartapp.policy import Permission
from quartapp.validation import RESERVED_ROLES, RESERVED_USERNAMES
from tests.integration.routes.conftest import Visitor, Visitors, documents, role_named, user_named

TABS = {"": "Account", "/roles": "Roles", "/sessions": "Active sessions", "/activity": "Audit log"}


def headings(text: str) -> set[str]:
    """Return the titles of the sections."""
    return set(re.findall(r"<h2[^>]*>([^<]*)</h2>", text)) & {*TABS.values(), "Danger zone"}


@pytest.mark.parametrize("tab", TABS)
async def test_each_tab_is_a_page_with_the_same_header(
    root: Visitor, ada: Visitor, tab: str
) -> None:
    text = (await root.get(f"/admin/users/ADA{tab}")).text
    assert "<h1>ada</h1>" in text
    assert '<span class="tag tag-on">active</span>' in text
    nav = text[text.index('<nav class="tabs"') :]
    links = re.findall(r'<a href="([^"]*)"( aria-current="page")?>', nav[: nav.index("</nav>")])
    assert [href for href, _ in links] == [f"/admin/users/ada{each}" for each in TABS]
    assert [href for href, current in links if current] == [f"/admin/users/ada{tab}"]
    assert headings(text) - {"Danger zone"} == {TABS[tab]}
    assert ("Danger zone" in headings(text)) is (tab == "")


async def test_readers_see_all_tabs_and_no_controls(visitors: Visitors, ada: Visitor) -> None:
    reader = await visitors.with_permissions("reader", Permission.USERS_READ)
    for tab in TABS:
        page = await reader.get(f"/admin/users/ada{tab}")
        assert page.status == 200
        for control in re.findall(
            r"<(?:form|a|section)[^>]*/(?:end|revoke|grants|disable)\b.*", page.text
        ):
            assert "hidden" in control, control
    assert (await ada.get("/admin/users/ada/roles")).status == 403


async def test_a_user_without_sessions_roles_or_entries_has_all_tabs(root: Visitor) -> None:
    await User(username="zoe", email="zoe@example.org", password_hash="x").insert()
    for tab, words in {
        "/roles": "zoe has no roles.",
        "/sessions": "zoe has no active sessions.",
        "/activity": "No entries about zoe.",
    }.items():
        assert words in (await root.get(f"/admin/users/zoe{tab}")).text


async def test_one_session_is_ended_from_the_tab_of_the_user(root: Visitor, ada: Visitor) -> None:
    phone = ada.another_device()
    await phone.sign_in_without_form(await user_named("ada"))
    session = await phone.session_id()
    tab = (await root.get("/admin/users/ada/sessions")).text
    assert f'href="/admin/sessions/{session}/end?from=user"' in tab
    preview = await root.get(f"/admin/sessions/{session}/end?from=user")
    assert 'href="/admin/users/ada/sessions"' in preview.text
    # Also after the password was asked for, which keeps the fields and not the query.
    answer = await root.post(f"/admin/sessions/{session}/end", **{"from": preview.fields["from"]})
    assert (answer.status, answer.location) == (303, "/admin/users/ada/sessions")
    assert await phone.me() is None
    assert await ada.me() is not None


# ---- what would be lost


async def test_each_role_shows_what_the_preview_of_its_revocation_says(
    visitors: Visitors, root: Visitor
) -> None:
    desk = await Role.add("desk", "", [Permission.USERS_READ, Permission.EVENTS_READ], by=SYSTEM)
    safe = await Role.add(
        "safe", "", [Permission.USERS_READ, Permission.POSTS_WRITE], by=SYSTEM, requires_factor=True
    )
    await visitors.account("bob", await role_named("member"), desk, safe)
    tab = (await root.get("/admin/users/bob/roles")).text
    # The role that requires a second factor gives nothing, so it keeps nothing either.
    for role, lost in {
        "desk": "events.read, users.read",
        "member": "posts.write",
        "safe": "",
    }.items():
        card = re.search(rf"<h3>{role}.*?</li>", tab, re.DOTALL)
        assert card
        preview = (await root.get(f"/admin/users/bob/grants/{role}/revoke")).text
        if lost:
            assert f"Without this role, bob loses: {lost}</p>" in card[0]
            assert f"bob loses: {lost}</li>" in preview
        else:
            assert "bob loses no permissions. It gives none yet." in card[0]
            assert "bob loses no permissions." in preview


async def test_each_permission_names_the_roles_and_kinds_of_their_grants(
    root: Visitor, ada: Visitor
) -> None:
    await root.post("/admin/users/ada/grants", role="moderator", until="2h")
    text = (await root.get("/admin/users/ada/roles")).text
    rows = re.findall(r'<dt class="mono">([^<]*)</dt><dd>(.*?)</dd>', text, re.DOTALL)
    sources = {name: re.findall(r"Through the role (\w+)\.", row) for name, row in rows}
    assert sources == {
        "posts.moderate": ["moderator"],
        "posts.write": ["member", "moderator"],
        "users.read": ["moderator"],
    }
    assert "ends on" in dict(rows)["users.read"]
    assert "Lost without this role." in dict(rows)["users.read"]
    assert "Lost without this role." not in dict(rows)["posts.write"]


# ---- addresses


@pytest.mark.parametrize("name", sorted(RESERVED_USERNAMES))
async def test_a_user_of_an_old_database_with_a_reserved_name_is_managed(
    visitors: Visitors, root: Visitor, name: str
) -> None:
    member = await role_named("member")
    await User(
        username=name, email="old@example.org", password_hash="x", roles=[role_ref(member.id)]
    ).insert()
    assert f'href="/admin/users/@{name}"' in (await root.get("/admin/users")).text
    for tab in TABS:
        page = await root.get(f"/admin/users/@{name}{tab}")
        assert f"<h1>{name}</h1>" in page.text
    answer = await root.post(f"/admin/users/@{name}/grants", role="moderator")
    assert (answer.status, answer.location) == (303, f"/admin/users/@{name}/roles")
    assert (
        f'href="/admin/users/@{name}/grants/moderator/revoke"'
        in (await root.get(answer.location)).text
    )
    assert (await root.post(f"/admin/users/@{name}/disable")).location == f"/admin/users/@{name}"
    assert (await user_named(name)).disabled
    # The pages of these addresses stay what they are, and any name may have the @.
    assert "<h1>New user</h1>" in (await root.get("/admin/users/new")).text
    assert "<h1>root</h1>" in (await root.get("/admin/users/@root")).text


async def test_a_role_of_an_old_database_with_a_reserved_name_is_edited(root: Visitor) -> None:
    await Role(name="new", permissions=["users.read"]).insert()
    assert 'href="/admin/roles/@new"' in (await root.get("/admin/roles")).text
    page = await root.get("/admin/roles/@new")
    assert page.fields["name"] == "new"
    assert 'href="/admin/roles/@new/delete"' in page.text
    assert "Change the role new?" in (await root.get("/admin/roles/@new/changes")).text
    answer = await root.post("/admin/roles/@new", name="newer", permissions=["users.read"])
    assert answer.status == 303
    assert [role["permissions"] for role in await documents("roles", name="newer")] == [
        ["users.read"]
    ]


NAMES = {"username": RESERVED_USERNAMES, "name": RESERVED_ROLES, "role_name": frozenset[str]()}


def test_fixed_parts_of_addresses_collide_with_no_id_and_no_usable_name(app: Quart) -> None:
    rules = list(app.url_map.iter_rules())
    collisions = {
        (argument, fixed)
        for rule in rules
        for other in rules
        for argument, fixed in _fixed_at_arguments(rule, other)
    }
    assert ("username", "new") in collisions
    for argument, fixed in collisions:
        if argument in NAMES:
            assert fixed in NAMES[argument], f"{fixed} must be reserved"
        else:
            assert argument.endswith("_id"), f"{argument} may be {fixed!r}"
            with pytest.raises(InvalidId):
                PydanticObjectId(fixed)


def _fixed_at_arguments(rule: Rule, other: Rule) -> list[tuple[str, str]]:
    """Return the arguments of the rule, with what the other rule has in their places, if one
    address can match both."""
    parts, others = rule.rule.split("/"), other.rule.split("/")
    if len(parts) != len(others) or not rule.methods or not other.methods:
        return []
    if not (rule.methods & other.methods) - {"OPTIONS"}:
        return []
    pairs = list(zip(parts, others, strict=True))
    if any(a != b and not a.startswith("<") and not b.startswith("<") for a, b in pairs):
        return []
    return [
        (a.strip("<>").rpartition(":")[2], b)
        for a, b in pairs
        if a.startswith("<") and not b.startswith("<")
    ]


# ---- lists


async def test_lists_of_sessions_show_browser_system_and_latest_activity(
    visitors: Visitors, root: Visitor, ada: Visitor
) -> None:
    session = PydanticObjectId(await ada.session_id())
    await Session.change({"_id": session}, {"$set": {"device": "Firefox on Windows"}})
    await User.change({"username": "ada"}, {"$set": {"display_name": "Ada Lovelace"}})
    await Role.add("crew", "", [], by=SYSTEM)
    await ada.post("/account/roles", role="crew", reason="A reason.")
    (row,) = re.findall(
        rf'id="session-{session}">(.*?)</tr>', (await root.get("/admin/sessions")).text, re.DOTALL
    )
    (item,) = re.findall(
        rf'id="session-{session}">(.*?)</li>',
        (await root.get("/admin/users/ada/sessions")).text,
        re.DOTALL,
    )
    for shown in (row, item):
        for words in ("Firefox", "Windows", "#laptop", "Role requested, "):
            assert words in shown
    assert "Ada Lovelace" in row
    # What a user did is in the audit log, which needs a permission of its own.
    manager = await visitors.with_permissions(
        "manager", Permission.SESSIONS_MANAGE, Permission.USERS_READ
    )
    for path in ("/admin/sessions", "/admin/users/ada/sessions"):
        text = (await manager.get(path)).text
        assert "Windows" in text
        assert "Role requested" not in text
