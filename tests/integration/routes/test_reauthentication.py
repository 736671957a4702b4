"""Sensitive actions require a recent authentication, and keep the form (ASVS 7.2.4, 7.5)."""

import asyncio
import re

import pytest

from quartapp.models.roles.role import Role
from quartapp.routes.sessions.reauthentication import UNNAMED
from quartapp.runtime import runtime_of
from tests.integration.routes.authenticator import app_code, codes_on, secret_on, set_up
from tests.integration.routes.conftest import (
    ORIGIN,
    SESSION_COOKIE,
    Answer,
    Visitor,
    Visitors,
    contents,
    documents,
    user_named,
)
from tests.integration.routes.permission_matrix import POSTS
from tests.integration.routes.requests import (
    add_passkey,
    author_with_content,
    form_with_code,
    options,
    path,
    sufficient_permissions,
    with_own_passkey,
)
from tests.security_key import Authenticator

TITLE = "Confirm that it is you"


async def send_again(visitor: Visitor, page: Answer, action: str, password: str) -> Answer:
    """Type the password into the page that asks for it, and a recovery code if it asks for one."""
    assert f'action="{action}"' in page.text
    fields = {**page.fields, "password": password}
    if "factor_code" in fields:
        fields["factor_code"] = visitor.codes.pop()
    return await visitor.send(action, fields)


async def test_exactly_the_sensitive_posts_ask_to_reauthenticate(
    visitors: Visitors,
) -> None:
    wrong = {}
    for number, row in enumerate(POSTS):
        if row.needs in ("anyone", "returning"):
            continue
        author, parts = await author_with_content(visitors, f"author-{number}", row.rule)
        visitor = author
        if row.needs not in ("signed in", "author"):
            visitor = await visitors.with_permissions(
                f"visitor-{number}", *sufficient_permissions(row)
            )
        parts = await with_own_passkey(visitor, row, parts)
        await visitor.expire_authentication()
        fields, token = await form_with_code(row, visitor, author.username), visitor.token
        if row.rule == "/confirm":
            fields = {}
        before = await contents()
        answer = await visitor.post(path(row, parts), **fields)
        asked = TITLE in answer.text
        if asked != (row.fresh or row.rule == "/confirm"):
            wrong[str(row)] = answer.status
        if row.fresh:
            if answer.status != 422 or await contents() != before or visitor.token != token:
                wrong[str(row)] = "something was done"
            if re.search(f"Enter your password to <strong>({UNNAMED})?</strong>", answer.text):
                wrong[str(row)] = "the page does not name the action"
            done = await send_again(visitor, answer, path(row, parts), visitor.password)
            if done.status != row.done or visitor.token == token:
                wrong[str(row)] = f"{done.status} after the confirmation"
    assert wrong == {}


async def test_the_submitted_form_is_kept_and_done_with_the_password(root: Visitor) -> None:
    typed = {
        "name": "Spaß",
        "description": 'A "quoted" <b> description, ünïcode',
        "permissions": ["posts.write", "events.read"],
    }
    await root.expire_authentication()
    asked = await root.post("/admin/roles/new", **typed)
    assert asked.text.count('name="permissions"') == 2
    assert asked.fields["description"] == typed["description"]
    # Form errors are shown after the reauthentication, with the form as filled in.
    fields = {**asked.fields, "permissions": typed["permissions"], "password": root.password}
    refused = await root.send("/admin/roles/new", fields)
    assert refused.status == 422
    assert refused.error("name")
    assert refused.fields["description"] == typed["description"]
    assert (await root.send("/admin/roles/new", {**fields, "name": "spass"})).status == 303
    made = await Role.named("spass")
    assert made is not None
    assert sorted(made.permissions) == ["events.read", "posts.write"]
    assert made.description == typed["description"]


@pytest.mark.parametrize(
    ("path", "fields", "named"),
    [
        ("/admin/users/ada/grants/member/revoke", {}, "revoke the role member from ada"),
        ("/admin/users/ada/grants", {"role": "admin"}, "grant the role admin to ada"),
        ("/admin/users/ada/grants", {}, "grant a role to ada"),
        ("/admin/users/ada/grants", {"username": "bob", "role": "x"}, "grant the role x to ada"),
        ("/admin/roles/new", {"name": "a\u202e\n<b>{x}"}, "create the role a &lt;b&gt;{x}"),
    ],
)
async def test_the_reauthentication_page_names_the_action(
    root: Visitor, visitors: Visitors, path: str, fields: dict[str, str], named: str
) -> None:
    await visitors.account("ada")
    await root.expire_authentication()
    page = await root.post(path, **fields)
    assert f"Enter your password to <strong>{named}</strong>." in page.text
    assert f">{named[0].upper()}{named[1:]}</button>" in page.text


async def test_the_reauthentication_page_never_contains_a_password(root: Visitor) -> None:
    await root.expire_authentication()
    secret = "a secret that is long enough"
    typed = {"password": "", "current_password": secret, "confirm": secret, "new_password": secret}
    answer = await root.post("/admin/roles/new", name="x", **typed)
    assert (answer.status, TITLE in answer.text) == (422, True)
    wrong = await root.post("/admin/roles/new", name="x", password=secret)
    assert wrong.error("password") == "Incorrect password."
    assert secret not in answer.text + wrong.text


async def test_reauthentication_replaces_the_token_and_keeps_the_session(
    root: Visitor, visitors: Visitors
) -> None:
    thief, me = root.copy(), await root.me()
    await root.expire_authentication()
    async with root.client.websocket(
        "/ws", headers={"Origin": ORIGIN}, scope_base=root.scope
    ) as tab:
        assert (await tab.receive_json())["type"] == "hello"
        answer = await root.send(
            "/confirm?next=/admin/users",
            {"csrf_token": await root.csrf_token(), "password": root.password},
        )
        assert (answer.status, answer.location) == (303, "/admin/users")
        assert await thief.me() is None
        assert await root.me() == me
        # The socket of the open page stays open.
        await (await user_named("root")).read_notices()
        await visitors.member("ada")
        assert (await root.post("/admin/users/root/grants", role="member")).status == 303
        kinds = set()
        while "permissions.changed" not in kinds:
            message = await asyncio.wait_for(tab.receive_json(), 5)
            kinds.add(message["type"])
        assert "session.ended" not in kinds
    events = await documents("events", verb="session.confirmed")
    assert len(events) == 1


async def test_the_old_token_is_refused_once_the_answer_arrives(
    root: Visitor, monkeypatch: pytest.MonkeyPatch
) -> None:
    thief, fields = root.copy(), {"csrf_token": await root.csrf_token(), "password": root.password}
    stream = runtime_of(root.app).change_stream
    tell, loop = stream._dispatch, asyncio.get_running_loop()
    monkeypatch.setattr(stream, "_dispatch", lambda event: loop.call_later(0.4, tell, event))
    assert await thief.me() is not None
    assert (await root.send("/confirm", fields)).status == 303
    assert await thief.me() is None
    assert await root.me() is not None


async def test_a_session_is_fresh_for_fifteen_minutes(root: Visitor) -> None:
    await root.expire_authentication(14 * 60 + 50)
    assert (await root.post("/admin/roles/new", name="early")).status == 303
    await root.expire_authentication(15 * 60)
    assert (await root.post("/admin/roles/new", name="late")).status == 422
    # Reading needs no reauthentication.
    for page in ("/admin/users/root", "/admin/roles/new", "/account/sessions", "/confirm"):
        assert (await root.get(page)).status == 200
    # Neither do forms that ask for the password themselves.
    new = "an entirely different phrase"
    sent = {"current_password": root.password, "password": new, "confirm": new}
    assert (await root.post("/account/password", **sent)).status == 303
    assert (await root.post("/admin/roles/new", name="late")).status == 303


async def test_a_missing_permission_is_reported_before_reauthentication(ada: Visitor) -> None:
    await ada.expire_authentication()
    answer = await ada.post("/admin/roles/new", name="x", password=ada.password)
    assert answer.status == 403
    assert "roles.manage" in answer.text


async def test_a_refused_action_after_reauthentication_keeps_the_session(root: Visitor) -> None:
    await root.expire_authentication()
    answer = await root.post("/admin/users/root/disable", password=root.password)
    assert answer.status == 422
    assert "last active administrator" in answer.text
    assert await root.me() is not None


async def test_wrong_passwords_are_limited_on_the_reauthentication_page(root: Visitor) -> None:
    await root.expire_authentication()
    typed = {"name": "half-a-thought", "description": "A whole one takes longer."}
    for _ in range(3):
        answer = await root.post("/admin/roles/new", **typed, password="not mine, I believe")
        assert answer.status == 422
    # Reauthentication and password change share one count.
    new = {"password": "an entirely different phrase", "confirm": "an entirely different phrase"}
    for _ in range(2):
        answer = await root.post("/account/password", current_password="nor is this one", **new)
        assert answer.status == 422
    for attempt in (
        root.post("/admin/roles/new", **typed, password=root.password),
        root.post("/confirm", password=root.password),
        root.post("/account/password", current_password=root.password, **new),
    ):
        answer = await attempt
        assert answer.status == 429
        assert 0 < int(answer.headers["Retry-After"]) <= 2
        assert "Try again in" in answer.text
    kept = (await root.post("/admin/roles/new", **typed, password=root.password)).fields
    assert {name: kept[name] for name in typed} == typed
    # Failures in one session do not affect other browsers.
    elsewhere = root.another_device()
    assert (await elsewhere.sign_in()).status == 303
    assert (await elsewhere.post("/confirm", password=root.password)).status == 303


@pytest.mark.parametrize(
    ("target", "leads"),
    [("/posts?after=1", "/posts?after=1"), ("//evil.example", "/"), ("https://evil.example", "/")],
)
async def test_reauthentication_redirects_only_within_this_site(
    root: Visitor, target: str, leads: str
) -> None:
    page = f"/confirm?next={target}"
    fields = {"csrf_token": await root.csrf_token(), "password": root.password}
    answer = await root.send(page, fields)
    assert (answer.status, answer.location) == (303, leads)


async def test_submitting_the_reauthentication_twice_keeps_the_session(root: Visitor) -> None:
    await root.expire_authentication()
    copy, fields = root.copy(), {"csrf_token": await root.csrf_token(), "password": root.password}
    answers = await asyncio.gather(root.send("/confirm", fields), copy.send("/confirm", fields))
    # Had it come later, the second request would have had a void token.
    if [answer.status for answer in answers] == [303, 303]:
        assert [await root.me() is None, await copy.me() is None].count(True) == 1


async def test_a_remembered_session_stays_remembered_after_reauthentication(root: Visitor) -> None:
    other = root.another_device()
    await other.sign_in(remember="y")
    answer = await other.post("/confirm", password=root.password)
    cookies = answer.headers.getlist("Set-Cookie")
    (cookie,) = (text for text in cookies if text.startswith(f"{SESSION_COOKIE}="))
    assert "Max-Age=" in cookie


# ---- with a second factor


SENSITIVE = [
    ("/account/factors/totp/remove", {}),
    ("/account/factors/recovery-codes", {}),
    ("/account/email", {"email": "eve@example.org"}),
    ("/account/sessions/end-others", {}),
    ("/account/export", {}),
    ("/account/deactivate", {}),
]


@pytest.mark.parametrize(("action", "fields"), SENSITIVE, ids=[path for path, _ in SENSITIVE])
async def test_reauthentication_requires_the_second_factor(
    ada: Visitor, action: str, fields: dict[str, str]
) -> None:
    await set_up(ada)
    await ada.expire_authentication()
    before = await contents()
    page = await ada.post(action, **fields)
    assert (page.status, TITLE in page.text) == (422, True)
    assert "factor_code" in page.fields
    token = ada.token
    for code in ("", "000000", "not a recovery code"):
        sent = {**page.fields, "password": ada.password, "factor_code": code}
        refused = await ada.send(action, sent)
        assert refused.status == 422
        assert refused.error("factor_code")
    # A right code with a wrong password is not used up.
    wrong = {**page.fields, "password": "not mine", "factor_code": ada.codes[0]}
    assert (await ada.send(action, wrong)).error("password")
    after = await contents()
    changed = {name for name in after if after[name] != before.get(name)}
    assert changed <= {"users", "guesses", "allowances"}, "wrong codes are counted"
    assert ada.token == token
    sent = {**page.fields, "password": ada.password, "factor_code": ada.codes[0]}
    assert (await ada.send(action, sent)).status in (200, 303)


async def test_a_password_change_does_not_bypass_the_second_factor(ada: Visitor) -> None:
    await set_up(ada)
    new = "quite another horse and battery"
    sent = {"current_password": ada.password, "password": new, "confirm": new}
    await ada.expire_authentication()
    for answer in (
        await ada.get("/account/password?after=not-me"),
        await ada.post("/account/password?after=not-me", **sent),
    ):
        assert answer.status == 303
        assert answer.location == "/confirm?next=%2Faccount%2Fpassword%3Fafter%3Dnot-me"
    old = (await user_named("ada")).password_hash
    refused = await ada.post("/confirm", password=ada.password)
    assert refused.error("factor_code")
    confirmed = await ada.post(answer.location, password=ada.password, factor_code=ada.codes[0])
    assert confirmed.location == "/account/password?after=not-me"
    assert (await ada.post(confirmed.location, **sent)).status == 303
    assert (await user_named("ada")).password_hash != old


async def test_the_codes_of_the_form_and_of_reauthentication_are_separate(
    ada: Visitor,
) -> None:
    added = await add_passkey(ada, Authenticator())
    ada.codes = codes_on(await ada.get(added.location))
    secret = secret_on(await ada.get("/account/factors/totp"))
    await ada.expire_authentication()
    page = await ada.post("/account/factors/totp", code=app_code(secret))
    assert page.fields["code"] == app_code(secret)
    done = await send_again(ada, page, "/account/factors/totp", ada.password)
    assert (done.status, done.location) == (303, "/account/factors")
    assert (await user_named("ada")).totp is not None


async def test_a_passkey_reauthenticates_without_a_password(
    ada: Visitor, visitors: Visitors
) -> None:
    device, other = Authenticator(), Authenticator()
    await add_passkey(ada, device)
    bob = await visitors.member("bob")
    await add_passkey(bob, other)
    await ada.expire_authentication()
    page = await ada.post("/account/sessions/end-others")
    assert 'data-options="/confirm/options"' in page.text
    asked = await options(ada, "/confirm/options")
    assert [each["id"] for each in asked["allowCredentials"]] == [device.id]
    refusals = [
        other.authenticate(await options(ada, "/confirm/options")),
        device.authenticate(await options(ada, "/login/passkey/options")),
        "{}",
    ]
    for credential in refusals:
        refused = await ada.post("/confirm", credential=credential)
        assert refused.status == 422
        assert "not accepted" in refused.text
    credential = device.authenticate(await options(ada, "/confirm/options"))
    done = await ada.post("/confirm?next=/account", credential=credential)
    assert (done.status, done.location) == (303, "/account")
    assert (await ada.post("/account/sessions/end-others")).status == 303
    await ada.expire_authentication()
    assert (await ada.post("/confirm", credential=credential)).status == 422, "it works once"
