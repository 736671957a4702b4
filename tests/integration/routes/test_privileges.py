"""Pages and answers for users who hold fewer permissions than the user or role concerned."""

from __future__ import annotations

import re

import pytest
from quart import Quart

from quartapp.models import Role
from quartapp.models.base.actor import SYSTEM
from quartapp.models.base.references import role_ref
from quartapp.policy import Permission
from tests.integration.routes.conftest import (
    Answer,
    Visitor,
    Visitors,
    documents,
    role_named,
    user_named,
)
from tests.integration.routes.requests import create_invitation
from tests.integration.routes.test_log_events import Listen, listen

__all__ = ["listen"]

USERS, READ, WRITE = Permission.USERS_MANAGE, Permission.USERS_READ, Permission.POSTS_WRITE
ROLES, SESSIONS = Permission.ROLES_MANAGE, Permission.SESSIONS_MANAGE


def refusal(answer: Answer) -> str:
    """Return the error above the content of the page."""
    found = re.search(r'<p class="flash flash-error" role="alert"[^>]*>([^<]*)</p>', answer.text)
    return found[1] if found else ""


def options(answer: Answer) -> list[str]:
    page = re.sub(r"<datalist.*?</datalist>", "", answer.text, flags=re.DOTALL)
    return re.findall(r'<option[^>]*value="([^"]*)"', page)


async def helper(visitors: Visitors) -> Visitor:
    return await visitors.with_permissions("helper", USERS, READ, WRITE, SESSIONS, ROLES)


async def test_a_user_cannot_make_themselves_administrator(
    visitors: Visitors, listen: Listen
) -> None:
    eve, said = await helper(visitors), listen()
    answer = await eve.post("/admin/users/eve/grants", role="admin")
    assert answer.status == 404
    answer = await eve.post("/admin/users/helper/grants", role="admin")
    assert answer.status == 403
    assert "events.read" in answer.error("role"), "the error names what is missing"
    assert "<h1>helper</h1>" in answer.text, "on the page that holds the form"
    assert 'data-here="/admin/users/helper/roles" data-refused' in answer.text
    (line,) = [line for line in said() if line["event"] == "authz_fail"]
    assert (line["user"], line["target"]) == ("helper", "admin")
    assert line["missing"] == ["events.read", "posts.moderate"]
    assert len((await user_named("helper")).roles) == 1


@pytest.mark.parametrize(
    "act",
    [
        "grants",
        "grants/admin/revoke",
        "sessions/end",
        "disable",
        "enable",
        "last-day",
        "factors/reset",
        "restore",
        "delete",
    ],
)
async def test_a_stronger_user_cannot_be_managed(
    visitors: Visitors, root: Visitor, act: str
) -> None:
    eve = await helper(visitors)
    await Role.add("plain", "", [], by=SYSTEM)
    sent = {"role": "plain", "date": "2030-01-02", "username": "root"}
    answer = await eve.post(f"/admin/users/root/{act}", **sent)
    assert answer.status == 403
    said = refusal(answer) or answer.text
    assert "You cannot manage root" in said
    assert "that you do not have: events.read, posts.moderate." in said
    assert await root.me() is not None
    user = await user_named("root")
    assert (user.disabled, user.closes_at, user.closed_at) == (False, None, None)
    assert user.authz_version == 1


async def test_pages_offer_only_permitted_actions(visitors: Visitors, root: Visitor) -> None:
    eve, ada = await helper(visitors), await visitors.member("ada")
    await Role.add("writer", "", [WRITE], by=SYSTEM)
    page = await eve.get("/admin/users/ada/roles")
    assert options(page) == ["", "role-of-helper", "writer"]
    assert re.findall(r"<option[^>]*data-manages[^>]*>([^<]*)<", page.text) == ["role-of-helper"]
    assert "selected" not in page.text.replace('<option selected value="">', "")
    for tab in ("", "/roles", "/sessions"):
        strong = await eve.get(f"/admin/users/root{tab}")
        assert "You cannot manage root" in strong.text
        assert "that you do not have: events.read, posts.moderate." in strong.text
        for act in ("grants", "revoke", "end", "disable", "last-day", "delete"):
            assert f"/{act}" not in strong.text, act
    assert options(await eve.get("/admin/invitations")) == ["member", "role-of-helper", "writer"]
    assert "admin" in options(await root.get("/admin/users/ada/roles"))
    assert await ada.me() is not None


async def test_inviting_with_a_stronger_role_is_refused_with_the_form(visitors: Visitors) -> None:
    eve = await helper(visitors)
    answer = await eve.post("/admin/invitations", email="bob@example.org", role="admin")
    assert answer.status == 403
    assert "You cannot grant the role admin." in answer.text
    assert answer.fields["email"] == "bob@example.org"
    admin = await role_named("admin")
    made, _ = await create_invitation("eve@example.org", role=role_ref(admin.id))
    page = await eve.get("/admin/invitations")
    assert "You cannot manage this invitation" in page.text
    for act in ("again", "withdraw"):
        assert f"/{made.id}/{act}" not in page.text
        refused = await eve.post(f"/admin/invitations/{made.id}/{act}")
        assert refused.status == 403
        assert "events.read" in refusal(refused)
    assert len(await documents("invitations")) == 1


async def test_a_stronger_role_is_read_only(visitors: Visitors) -> None:
    eve = await helper(visitors)
    page = await eve.get("/admin/roles/moderator")
    assert "You cannot change this role. It includes posts.moderate" in page.text
    assert ">Save changes</button>" not in page.text
    answer = await eve.post("/admin/roles/moderator", name="moderator", permissions=["users.read"])
    assert answer.status == 403
    assert "You cannot change the role moderator." in answer.text
    own = await eve.post(
        "/admin/roles/role-of-helper", name="role-of-helper", permissions=["events.read"]
    )
    assert own.status == 403
    assert "You cannot add events.read" in own.text
    new = await eve.post("/admin/roles/new", name="newer", permissions=["events.read"])
    assert (new.status, new.fields["name"]) == (403, "newer")
    strong = await Role.add("strong", "", [Permission.EVENTS_READ], by=SYSTEM)
    deleted = await eve.post("/admin/roles/strong/delete")
    assert deleted.status == 403
    assert "You cannot change the role strong." in refusal(deleted)
    assert (await role_named("strong")).id == strong.id


async def test_default_roles_cannot_get_management_permissions(root: Visitor) -> None:
    page = await root.get("/admin/roles/member")
    assert page.text.count("disabled") == 6
    answer = await root.post("/admin/roles/member", name="member", permissions=["users.read"])
    assert answer.status == 422
    assert "The role member is given to every new account" in answer.text


async def test_unknown_permissions_are_shown_and_kept(root: Visitor) -> None:
    newer = await Role.add("newer", "", [WRITE], by=SYSTEM)
    await Role.change({"_id": newer.id}, {"$push": {"permissions": "moon.land"}})
    assert 'moon.land <span class="tag">unknown' in (await root.get("/admin/roles")).text
    page = await root.get("/admin/roles/newer")
    assert 'moon.land</span> <span class="tag">unknown' in page.text
    answer = await root.post("/admin/roles/newer", name="newer", permissions=["users.read"])
    assert answer.status == 303
    assert (await role_named("newer")).permissions == ["users.read", "moon.land"]


async def test_the_tabs_of_a_user_lead_to_the_previews_of_destructive_actions(
    root: Visitor, ada: Visitor
) -> None:
    for tab, act in {
        "/roles": "grants/member/revoke",
        "/sessions": "sessions/end",
        "": "disable",
    }.items():
        page = (await root.get(f"/admin/users/ada{tab}")).text
        assert f'href="/admin/users/ada/{act}"' in page
        assert f'action="/admin/users/ada/{act}"' not in page


# ---- refusals


def test_every_post_only_route_returns_to_the_page_of_its_form(app: Quart) -> None:
    posts = {rule.rule: rule for rule in app.url_map.iter_rules() if "POST" in (rule.methods or ())}
    gets = {rule.rule for rule in app.url_map.iter_rules() if "GET" in (rule.methods or ())}
    # Signing out is never refused, a refused passkey shows the sign-in page itself, and scripts ask
    # for the strength of a password and store drafts.
    alone = {"/logout", "/login/passkey", "/password/strength", "/posts/<post_id>/draft"}
    bare = {
        path
        for path, rule in posts.items()
        if path not in gets and not hasattr(app.view_functions[rule.endpoint], "returns_to")
    }
    assert bare == alone


async def test_a_refused_comment_is_shown_again_on_its_page(
    visitors: Visitors, ada: Visitor, monkeypatch: pytest.MonkeyPatch
) -> None:
    from quartapp.models import Comment
    from quartapp.models.authorization.transaction import RightsChanged
    from quartapp.security.passwords import Busy

    await ada.post("/posts/new", title="A title", body="Text.")
    (post,) = await documents("posts")
    for error, status in ((RightsChanged(), 422), (Busy(), 503)):

        async def fail(*_: object, error: Exception = error, **__: object) -> None:
            raise error

        monkeypatch.setattr(Comment, "write", fail)
        answer = await ada.post(f"/posts/{post['_id']}/comments", body="Words that took long")
        assert answer.status == status
        assert str(error) in answer.text
        assert "A title" in answer.text
        assert answer.fields["body"] == "Words that took long"
        assert f'data-here="/posts/{post["_id"]}" data-refused' in answer.text
        assert ("Retry-After" in answer.headers) == (status == 503)


async def test_the_last_administrator_is_told_on_the_page(root: Visitor) -> None:
    for act in ("grants/admin/revoke", "disable"):
        answer = await root.post(f"/admin/users/root/{act}")
        assert answer.status == 422
        assert "last active administrator" in refusal(answer)
        assert f'data-here="/admin/users/root/{act}" data-refused' in answer.text


async def test_a_refusal_is_shown_alone_to_users_who_may_not_read_the_page(
    visitors: Visitors, root: Visitor
) -> None:
    eve = await visitors.with_permissions("eve", USERS)
    answer = await eve.post("/admin/users/root/disable")
    assert answer.status == 403
    assert "You cannot manage root" in answer.text
    assert "root@example.org" not in answer.text
