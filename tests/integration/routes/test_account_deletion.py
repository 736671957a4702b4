"""Deactivating, deleting and restoring accounts on the pages."""

from datetime import timedelta

import pytest

from quartapp import clock
from quartapp.i18n.times import format_time
from quartapp.models import User
from quartapp.runtime import runtime_of
from tests.integration.routes.authenticator import set_up
from tests.integration.routes.conftest import (
    Answer,
    Visitor,
    Visitors,
    contents,
    documents,
    link_in,
    user_named,
)
from tests.integration.routes.requests import sign_in_to_closed_account


async def delete(visitor: Visitor, **fields: str) -> Answer:
    return await visitor.post("/account/delete", **{"username": visitor.username, **fields})


async def test_deleting_an_account_signs_out_and_names_the_date(
    visitors: Visitors, ada: Visitor
) -> None:
    phone = ada.another_device()
    await phone.sign_in()
    answer = await delete(ada, posts="remove")
    assert (answer.status, answer.location, ada.token) == (303, "/", "")
    assert await phone.me() is None
    user = await user_named("ada")
    assert user.deletes_at is not None
    grace = user.deletes_at - clock.now()
    assert timedelta(days=13, hours=23) < grace <= timedelta(days=14)
    assert user.deletes_posts
    day = f"{user.deletes_at.day} {user.deletes_at:%b %Y, %H:%M} UTC"
    assert day in (await ada.get("/")).text
    (message,) = await visitors.emails(ada.email, "will be deleted")
    assert day in message
    assert "/login" in message
    again = await phone.get("/account")
    assert "You deactivated or deleted your account." in (await phone.get(again.location)).text


@pytest.mark.parametrize("typed", ["", "Ada", "bob", "ada@example.org"])
async def test_deletion_requires_the_username(ada: Visitor, typed: str) -> None:
    before = await contents()
    answer = await delete(ada, username=typed, posts="remove")
    assert answer.status == 422
    assert answer.error("username")
    assert '<input checked id="posts-1" name="posts" type="radio" value="remove">' in answer.text
    assert await contents() == before


async def test_posts_are_kept_or_deleted_and_other_choices_refused(ada: Visitor) -> None:
    assert (await delete(ada, posts="both")).status == 422
    assert (await user_named("ada")).is_active


async def test_signing_in_to_a_deleted_account_allows_only_to_restore_it(
    visitors: Visitors, ada: Visitor
) -> None:
    await delete(ada)
    back = ada.another_device()
    answer = await back.sign_in(login="ADA@example.org", remember="y")
    assert (answer.status, answer.location, back.token) == (303, "/account/closed", "")
    page = await back.get("/account/closed")
    assert "Keep my account" in page.text
    assert await back.me() is None
    for path in ("/account", "/account/export", "/account/password", "/posts/new"):
        assert (await back.get(path)).status == 302, path
    kept = await back.post("/account/closed")
    assert (kept.status, kept.location) == (303, "/account")
    assert (await back.me() or {})["username"] == "ada"
    (session,) = await documents("sessions", ended_at=None)
    assert session["remembered"]
    assert (await user_named("ada")).deletes_at is None
    assert await visitors.emails(ada.email, "active again")


async def test_restoring_with_a_second_factor_signs_in_with_it(
    visitors: Visitors, ada: Visitor
) -> None:
    await set_up(ada)
    await ada.post("/account/deactivate")
    assert (await ada.sign_in()).location == "/login/factor"
    assert (await ada.post("/login/factor", code=ada.codes[0])).location == "/account/closed"
    assert (await ada.post("/account/closed")).location == "/account"
    assert await ada.me()
    (session,) = await documents("sessions", ended_at=None)
    assert session["factor"] == "recovery_code"


async def test_the_restore_page_is_bound_to_its_browser_and_expires(visitors: Visitors) -> None:
    eve = await sign_in_to_closed_account(visitors, "eve")
    stranger = visitors.anonymous()
    for visitor in (stranger, await visitors.member("ada")):
        answer = await visitor.post("/account/closed")
        assert answer.status == 302
        assert not (await user_named("eve")).is_active
    await User.change({"username": "eve"}, {"$set": {"deletes_at": clock.now()}})
    for answer in (await eve.get("/account/closed"), await eve.post("/account/closed")):
        assert (answer.status, answer.location[:6]) == (302, "/login")
    assert not (await user_named("eve")).is_active
    # The database does not contain the token in clear.
    (token,) = await documents("tokens", purpose="return")
    assert token["digest"] not in (await eve.get("/login")).text


async def test_only_the_right_password_learns_that_restoring_is_refused(
    visitors: Visitors, root: Visitor
) -> None:
    for name in ("own-1", "late1", "admin", "shut1"):
        await visitors.member(name)
    for name in ("own-1", "late1", "shut1"):
        visitor = Visitor(visitors.app, name)
        await visitor.sign_in()
        await delete(visitor)
    await User.change({"username": "late1"}, {"$set": {"deletes_at": clock.now()}})
    await root.post("/admin/users/admin/delete", username="admin")
    await root.post("/admin/users/shut1/disable")
    assert not (await user_named("admin")).is_active
    anonymous, seen = visitors.anonymous(), []
    await anonymous.get("/login")
    for login in ("nobod", "own-1", "late1", "admin", "shut1"):
        answer = await anonymous.sign_in(login=login, password="something else altogether")
        seen.append((answer.status, answer.anonymized.replace(login, "")))
    assert seen[0][0] == 422
    assert seen[1:] == seen[:1] * 4
    # The right password shows the reason and signs no user in.
    for login in ("late1", "admin", "shut1"):
        answer = await anonymous.sign_in(login=login)
        assert answer.status == 403
        assert "You cannot sign in" in answer.text
        assert await anonymous.me() is None


async def test_a_deactivated_account_is_kept_until_its_owner_signs_in(
    visitors: Visitors, ada: Visitor
) -> None:
    answer = await ada.post("/account/deactivate")
    assert (answer.status, answer.location, ada.token) == (303, "/", "")
    user = await user_named("ada")
    assert (user.is_active, user.deletes_at) == (False, None)
    assert (await ada.sign_in()).location == "/account/closed"
    assert "Reactivate my account" in (await ada.get("/account/closed")).text
    assert (await ada.post("/account/closed")).status == 303
    assert await ada.me()
    assert await visitors.emails(ada.email, "is deactivated")


async def test_a_closed_account_can_reset_its_password_and_be_restored(
    visitors: Visitors, ada: Visitor
) -> None:
    await delete(ada)
    back = visitors.anonymous()
    await back.post("/forgot", email=ada.email)
    (message,) = await visitors.emails(ada.email, "new password")
    new = "an entirely different phrase"
    answer = await back.post(link_in(message), password=new, confirm=new)
    assert (answer.status, answer.location) == (303, "/login")
    assert (await back.sign_in(login="ada", password=new)).location == "/account/closed"


async def test_the_last_administrator_cannot_delete_their_account(root: Visitor) -> None:
    for path in ("/account/delete", "/account/deactivate", "/admin/users/root/delete"):
        answer = await root.post(path, username="root")
        assert answer.status == 422, path
        assert "last active administrator" in answer.text
    assert await root.me()


async def test_administrators_delete_and_restore_an_account(
    visitors: Visitors, root: Visitor, ada: Visitor
) -> None:
    assert (await root.post("/admin/users/ada/delete", username="bob")).status == 422
    answer = await root.post("/admin/users/ada/delete", username="ada", posts="remove")
    assert (answer.status, answer.location) == (303, "/admin/users/ada")
    assert await ada.me() is None
    for path in ("/admin/users", "/admin/users/ada"):
        assert "to be deleted on" in (await root.get(path)).text
    (message,) = await visitors.emails(ada.email, "will be deleted")
    assert "An administrator" in message
    again = await root.post("/admin/users/ada/delete", username="ada")
    assert "before that" in (await root.get(again.location)).text
    assert (await user_named("ada")).deletes_posts
    assert (await root.post("/admin/users/ada/restore")).status == 303
    assert (await ada.sign_in()).location == "/"
    assert await ada.me()
    await ada.post("/account/deactivate")
    assert "deactivated" in (await root.get("/admin/users/ada")).text
    assert '<span class="tag tag-off">deactivated</span>' in (await root.get("/users/ada")).text


async def test_an_administrator_can_delete_an_account_in_deletion(
    root: Visitor, ada: Visitor
) -> None:
    await delete(ada, posts="remove")
    sooner = clock.now() + timedelta(days=1)
    await User.change({"username": "ada"}, {"$set": {"deletes_at": sooner}})
    until = format_time(sooner)
    page = await root.get("/admin/users/ada")
    assert "/admin/users/ada/delete" in page.links
    form = await root.get("/admin/users/ada/delete")
    assert until in form.text
    assert 'checked id="posts-1"' in form.text, "Ada's choice is kept"
    assert (
        await root.post("/admin/users/ada/delete", username="ada", posts="remove")
    ).status == 303
    page = await root.get("/admin/users/ada")
    assert f"permanently deleted on {until}" in page.text
    assert "/admin/users/ada/delete" not in page.links
    assert (await ada.another_device().sign_in()).status == 403


@pytest.mark.parametrize("posts", ["keep", "remove"])
async def test_a_worker_erases_due_accounts_and_pages_show_deleted_user(
    visitors: Visitors, root: Visitor, ada: Visitor, posts: str
) -> None:
    written = await ada.post("/posts/new", title="What I think", body="Much.")
    theirs = (await root.get(written.location)).text
    assert "/users/ada" in theirs
    await delete(ada, posts=posts)
    await User.change({"username": "ada"}, {"$set": {"deletes_at": clock.now()}})
    await runtime_of(visitors.app).erasure.erase_due()
    page = await root.get(written.location)
    if posts == "remove":
        assert page.status == 404
    else:
        assert "deleted user" in page.text
        assert 'href="/users/' not in page.text.partition("<main")[2]
        assert "deleted user" in (await root.get("/posts")).text
    assert (await root.get("/users/ada")).status == 404
    record = await root.get("/admin/events")
    assert "user.erased" in record.text
    assert "deleted user" in record.text
    assert "ada@" not in record.text
    assert (await visitors.anonymous().register("ada")).status == 303
