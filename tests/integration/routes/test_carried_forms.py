"""Text that is sent when it cannot be accepted is not lost, also without JavaScript."""

from __future__ import annotations

import html
from datetime import timedelta

import pytest
from beanie import PydanticObjectId
from pymongo.errors import AutoReconnect

from quartapp import clock
from quartapp.auth.rate_limits import RateLimitExceeded
from quartapp.models import Post, Role, Session
from quartapp.models.authorization.transaction import SessionOver
from quartapp.models.base.actor import SYSTEM
from quartapp.models.sessions.reason import Reason
from quartapp.routes.invitations import admin as admin_pages
from quartapp.runtime import runtime_of
from tests.integration.routes.authenticator import set_up
from tests.integration.routes.conftest import (
    Answer,
    Visitor,
    Visitors,
    documents,
    role_named,
    user_named,
)
from tests.integration.routes.test_posts import write

TYPED = {"title": "Ünïcode & <b>", "body": 'Line one\nline two "quoted"'}
FACTOR = "/login/factor?next=/posts/new"


async def end_sessions(visitor: Visitor) -> None:
    user = await user_named(visitor.username)
    await user.end_sessions(Reason.ENDED_BY_ADMIN, by=SYSTEM)
    await runtime_of(visitor.app).barrier.wait()


async def sent_too_late(visitor: Visitor, path: str = "/posts/new", **typed: str) -> Answer:
    """Send a form from a page that was opened before the session ended."""
    token = await visitor.csrf_token()
    await end_sessions(visitor)
    return await visitor.send(path, {**(typed or TYPED), "csrf_token": token})


async def sign_in_on(page: Answer, visitor: Visitor, password: str = "") -> Answer:
    """Fill in the sign-in form of this page and send it."""
    typed = {"login": visitor.username, "password": password or visitor.password}
    return await visitor.send("/login?next=/posts/new", {**page.fields, **typed})


def is_shown(page: Answer, action: str, **typed: str) -> bool:
    """Check that the page shows the form as filled in."""
    found = {name: page.fields.get(name) for name in typed}
    return page.status == 200 and f'action="{action}"' in page.text and found == typed


@pytest.mark.parametrize("place", ["/posts/new", "{post}/edit", "{post}/comments"])
async def test_a_form_sent_after_its_session_ended_is_restored_after_sign_in(
    ada: Visitor, place: str
) -> None:
    path = place.format(post=await write(ada))
    typed = {"body": "A comment.\nOr two."} if "comments" in place else TYPED
    before = await documents("posts")
    page = await sent_too_late(ada, path, **typed)
    assert page.status == 422
    assert "An administrator ended your session." in page.text
    assert typed["body"] not in page.text
    wrong = await sign_in_on(page, ada, "another password")
    assert wrong.status == 422
    shown = await sign_in_on(wrong, ada)
    assert is_shown(shown, path, **typed)
    assert "Your text was not sent yet" in shown.text
    assert (await documents("posts"), await documents("comments")) == (before, [])
    done = await ada.send(path, {name: shown.fields[name] for name in ("csrf_token", *typed)})
    assert done.status == 303
    assert (
        html.escape(typed["body"].partition("\n")[0])
        in (await ada.get(done.location.partition("#")[0])).text
    )


async def test_a_form_is_carried_through_the_second_step(ada: Visitor) -> None:
    await set_up(ada)
    page = await sent_too_late(ada)
    step = await sign_in_on(page, ada)
    assert (step.status, "Two-factor authentication" in step.text) == (200, True)
    wrong = await ada.send(FACTOR, {**step.fields, "code": "000000"})
    assert wrong.status == 422
    shown = await ada.send(FACTOR, {**wrong.fields, "code": ada.codes[0]})
    assert is_shown(shown, "/posts/new", **TYPED)


async def test_only_the_author_of_a_text_gets_it_back(ada: Visitor, visitors: Visitors) -> None:
    page = await sent_too_late(ada)
    await visitors.account("bob", await role_named("member"))
    bob = Visitor(visitors.app, "bob")
    sent = {"csrf_token": await bob.csrf_token(), "carried": page.fields["carried"]}
    answer = await bob.send("/login", {**sent, "login": "bob", "password": bob.password})
    assert answer.status == 303
    front = (await bob.get("/")).text
    assert "another user wrote it" in front
    assert html.escape(TYPED["title"]) not in answer.text + front
    # It is not restored after a day, nor from a made-up cookie.
    at = clock.now() - timedelta(days=1, seconds=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(clock, "now", lambda: at)
        old = await sent_too_late_sealed(ada)
    for carried in (old, "made up", "x" * 1000, page.fields["carried"][:-4]):
        fields = {"csrf_token": await ada.csrf_token(), "carried": carried}
        answer = await ada.send("/login", {**fields, "login": "ada", "password": ada.password})
        assert answer.status == 303
        await ada.post("/logout")


async def sent_too_late_sealed(visitor: Visitor) -> str:
    """Return the encrypted form as of the time of a patched clock."""
    user = await user_named(visitor.username)
    what = ["posts.new", {}, [["title", "Old"], ["body", "Old"]]]
    return runtime_of(visitor.app).encryption.encrypt_value(what, f"carried form of {user.id}")


async def test_a_text_that_cannot_be_carried_is_shown_to_be_copied(
    ada: Visitor,
) -> None:
    long = "too long " * 5400
    token = await ada.csrf_token()
    await end_sessions(ada)
    body = await ada.send("/posts/new", {**TYPED, "csrf_token": token, "body": long})
    assert body.status == 422
    assert long in body.text
    assert "carried" not in body.fields
    # Without the cookie the author of the text is unknown.
    await ada.sign_in()
    token = await ada.csrf_token()
    await ada.post("/logout")
    page = await ada.send("/posts/new", {**TYPED, "csrf_token": token})
    assert (page.status, "carried" in page.fields) == (422, False)
    assert html.escape(TYPED["title"]) in page.text
    assert "Copy it from below" in page.text


async def test_a_long_text_in_any_alphabet_is_carried(ada: Visitor) -> None:
    typed = {"title": "Ж" * 200, "body": "Ж" * 10_000}
    token = await ada.csrf_token()
    await end_sessions(ada)
    page = await ada.send("/posts/new", {**typed, "csrf_token": token})
    shown = await sign_in_on(await sign_in_on(page, ada, "another password"), ada)
    assert is_shown(shown, "/posts/new", **typed)


async def test_a_text_whose_page_is_gone_or_forbidden_is_shown_to_be_copied(
    ada: Visitor,
) -> None:
    post = await write(ada)
    page = await sent_too_late(ada, f"{post}/comments", body="Too late for this.")
    other = ada.another_device()
    await other.sign_in()
    await other.post(f"{post}/delete")
    shown = await sign_in_on(page, ada)
    assert (shown.status, "Too late for this." in shown.text) == (422, True)
    # The same for a signed-in user, and for one who may not write any more.
    token = await ada.csrf_token()
    gone = await ada.send(f"{post}/comments", {"csrf_token": token, "body": "Too late again."})
    assert (gone.status, "Too late again." in gone.text) == (404, True)
    await (await user_named("ada")).revoke(await role_named("member"), by=SYSTEM)
    await runtime_of(ada.app).barrier.wait()
    await ada.sign_in()
    refused = await ada.post("/posts/new", **TYPED)
    assert (refused.status, html.escape(TYPED["title"]) in refused.text) == (403, True)


async def test_an_action_sent_after_the_session_ended_is_reported_as_not_done(
    root: Visitor, visitors: Visitors
) -> None:
    await visitors.account("bob")
    answer = await sent_too_late(root, "/admin/users/bob/disable", reason="none")
    assert answer.status == 302
    page = await root.get(answer.location)
    assert "nothing was changed" in page.text
    assert (await user_named("bob")).is_active


async def test_no_password_or_code_is_carried_or_shown_again(ada: Visitor) -> None:
    secret = "a secret that is long enough"
    typed = {"password": secret, "current_password": secret, "confirm": secret, "code": secret}
    page = await sent_too_late(ada, **TYPED, **typed)
    about = f"carried form of {(await user_named('ada')).id}"
    sealed = runtime_of(ada.app).encryption.decrypt(page.fields["carried"], about)
    assert sealed
    assert TYPED["title"] in sealed
    assert secret not in sealed + page.text
    shown = await sign_in_on(page, ada)
    assert is_shown(shown, "/posts/new", **TYPED)
    # The page that shows a text for copying does not show it either.
    token = await ada.csrf_token()
    await ada.post("/logout")
    page = await ada.send("/posts/new", {**TYPED, **typed, "csrf_token": token})
    assert html.escape(TYPED["title"]) in page.text
    assert secret not in page.text


async def test_another_site_cannot_have_a_text_carried(ada: Visitor) -> None:
    token = await ada.csrf_token()
    await end_sessions(ada)
    for headers in ({}, {"Origin": "https://evil.example"}):
        answer = await ada.send("/posts/new", {**TYPED, "csrf_token": token}, headers)
        assert "carried" not in answer.fields
        assert html.escape(TYPED["title"]) not in answer.text


@pytest.mark.parametrize("status", [429, 503])
async def test_a_form_answered_with_retry_after_can_be_sent_again(
    ada: Visitor, root: Visitor, status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(*_: object, **__: object) -> None:
        if status == 503:
            raise AutoReconnect
        raise RateLimitExceeded(clock.now() + timedelta(seconds=30))

    invited, role = {"email": "new@example.org"}, {"name": "tidy", "description": "Tidies up."}
    for visitor, path, typed, owner, verb in (
        (ada, "/posts/new", TYPED, Post, "write"),
        (root, "/admin/invitations", invited, admin_pages, "_invite"),
        (root, "/admin/roles/new", role, Role, "add"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(owner, verb, fail)
            answer = await visitor.post(path, **typed)
        assert (answer.status, "Retry-After" in answer.headers) == (status, True)
        assert {name: answer.fields[name] for name in typed} == typed
        token = {"csrf_token": answer.fields["csrf_token"]}
        assert (await visitor.send(path, {**typed, **token})).status == 303
    # A form without its password cannot be sent again as it is.
    with monkeypatch.context() as patch:
        patch.setattr("quartapp.auth.reauthentication.reauthenticate", fail)
        await root.expire_authentication()
        answer = await root.post("/admin/roles/new", **role, password="a secret of mine")
    assert "a secret of mine" not in answer.text


async def test_a_session_that_ends_during_the_request_loses_no_text(
    ada: Visitor, monkeypatch: pytest.MonkeyPatch
) -> None:
    token = await ada.csrf_token()
    session = PydanticObjectId(await ada.session_id())

    async def over(*_: object, **__: object) -> None:
        await Session.change({}, {"$set": {"ended_at": clock.now()}})
        raise SessionOver(session)

    with monkeypatch.context() as patch:
        patch.setattr(Post, "write", over)
        page = await ada.send("/posts/new", {**TYPED, "csrf_token": token})
    assert is_shown(await sign_in_on(page, ada), "/posts/new", **TYPED)
