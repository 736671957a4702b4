"""Signing in and out (ASVS 6.3, 7.2, 7.4)."""

import asyncio
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import timedelta
from typing import Any

import bcrypt
import pytest
from quart import Quart

from quartapp import clock, create_app
from quartapp.i18n.times import format_time
from quartapp.models import User
from quartapp.models.accounts import account_expiry
from quartapp.models.accounts.registration import register as register_account
from quartapp.models.base.actor import SYSTEM, Actor
from quartapp.models.limits import hash_cost
from quartapp.runtime import runtime_of
from quartapp.security.passwords import Busy
from quartapp.settings import Settings
from tests.conftest import PASSWORD
from tests.integration.models.helpers import reloaded
from tests.integration.routes.authenticator import set_up
from tests.integration.routes.conftest import (
    ORIGIN,
    SESSION_COOKIE,
    StartApp,
    Visitor,
    Visitors,
    role_named,
    user_named,
)
from tests.integration.routes.requests import add_passkey, options
from tests.people import SECONDS, until
from tests.security_key import Authenticator


@pytest.mark.parametrize("login", ["ada", "ADA", "ada@example.org", "Ada@Example.Org", " ada "])
async def test_sign_in_accepts_username_or_address_in_any_case(ada: Visitor, login: str) -> None:
    other = ada.another_device()
    assert (await other.sign_in(login=login)).status == 303
    me = await other.me()
    assert me is not None
    assert me["username"] == "ada"


@pytest.mark.parametrize(("fields", "lasts"), [({}, False), ({"remember": "y"}, True)])
async def test_only_a_remembered_session_has_a_persistent_cookie(
    ada: Visitor, fields: dict[str, str], lasts: bool
) -> None:
    answer = await ada.another_device().sign_in(**fields)
    cookies = answer.headers.getlist("Set-Cookie")
    (cookie,) = (text for text in cookies if text.startswith(f"{SESSION_COOKIE}="))
    assert ("Max-Age=" in cookie and "Expires=" in cookie) is lasts
    assert "HttpOnly" in cookie
    assert "SameSite=Lax" in cookie


async def test_the_cookie_is_refused_with_the_reason_after_signing_out(ada: Visitor) -> None:
    thief = ada.copy()
    answer = await ada.post("/logout")
    assert (answer.status, answer.location) == (303, "/")
    assert answer.headers["Clear-Site-Data"] == '"storage"'
    assert ada.token == ""
    assert await thief.me() is None
    refused = await thief.get("/account")
    assert (refused.status, refused.location[:7]) == (302, "/login?")
    assert "You signed out." in (await thief.get(refused.location)).text


async def test_the_sign_in_page_says_nothing_about_active_sessions(ada: Visitor) -> None:
    me = await ada.me()
    assert me is not None
    anonymous = ada.another_device()
    page = await anonymous.get(f"/login?ended={me['session']}")
    assert page.status == 200
    assert "has ended" not in page.text


async def test_only_its_browser_is_told_why_a_session_ended(
    visitors: Visitors, ada: Visitor, root: Visitor
) -> None:
    session = await ada.session_id()
    bob = await visitors.member("bob")
    await root.post("/admin/users/ada/disable")
    await root.post("/admin/users/bob/sessions/end")
    page = f"/login?ended={session}"
    assert "root disabled your account." in (await ada.get(page)).text
    assert "root disabled your account." in (await ada.get("/login")).text
    for other in (visitors.anonymous(), ada.another_device(), bob):
        text = (await other.get(page)).text
        assert "has ended" not in text
        assert "root" not in text


async def test_each_sign_in_creates_a_new_token(
    ada: Visitor,
) -> None:
    attacker, victim = ada.copy(), ada.copy()
    await attacker.post("/logout")
    # The victim's browser still has a cookie that the attacker knows.
    await victim.get("/login")
    assert (await victim.sign_in()).status == 303
    reloaded = ada.another_device()
    await reloaded.sign_in()
    assert len({ada.token, victim.token, reloaded.token}) == 3
    assert await ada.me() is None
    assert await victim.me() is not None


async def test_a_tampered_cookie_authenticates_no_user(ada: Visitor) -> None:
    for cookie in ada.client.cookie_jar:  # type: ignore[attr-defined]
        if cookie.name == SESSION_COOKIE:
            cookie.value = f"x{cookie.value}"
    assert await ada.me() is None
    assert (await ada.get("/")).status == 200


async def test_unknown_user_wrong_password_and_disabled_get_one_answer(
    visitors: Visitors, monkeypatch: pytest.MonkeyPatch
) -> None:
    await visitors.admin("root")
    await visitors.member("wrong-one")
    await visitors.member("closed-1x")
    await (await user_named("closed-1x")).disable(by=SYSTEM)
    attempts = [
        ("nobody-at", visitors.anonymous().password),
        ("wrong-one", "something else altogether"),
        ("closed-1x", "something else altogether"),
    ]
    anonymous = visitors.anonymous()
    await anonymous.get("/login")
    seen = []
    for login, password in attempts:
        with monkeypatch.context() as patch:
            hashed = counted(patch)
            answer = await anonymous.sign_in(login=login, password=password)
        page = answer.anonymized.replace(login, "")
        headers = [h for h in answer.headers if h[0].lower() != "set-cookie"]
        seen.append((answer.status, headers, page, hashed()))
    assert seen[0][0] == 422
    assert seen[0][3] == 1
    assert seen[1:] == seen[:1] * 2


async def disabled_by_an_administrator(user: User) -> str:
    await user.disable(by=SYSTEM)
    return "An administrator disabled your account."


async def expired(user: User) -> str:
    past = clock.now() - timedelta(days=2)
    await User.change({"_id": user.id}, {"$set": {"closes_at": past}})
    return f"Your account expired at the end of {(past - timedelta(milliseconds=1)).date()} (UTC)."


async def expired_and_recorded(user: User) -> str:
    said = await expired(user)
    # The application may have recorded it already.
    await account_expiry.disable_expired(await reloaded(user))
    assert (await reloaded(user)).disabled_at
    return said


async def deleted_by_an_administrator(user: User) -> str:
    until = clock.now() + timedelta(days=14)
    root = await user_named("root")
    await user.deactivate(by=Actor(root.id, root.username), deletes_at=until)
    return f"Your account will be deleted on {format_time(until)}."


@pytest.mark.parametrize("way", ["password", "password and factor", "passkey"])
@pytest.mark.parametrize(
    "shut",
    [
        disabled_by_an_administrator,
        expired,
        expired_and_recorded,
        deleted_by_an_administrator,
    ],
)
async def test_the_right_password_is_told_that_the_account_is_disabled(
    start_app: StartApp, shut: Callable[[User], Awaitable[str]], way: str
) -> None:
    visitors = await start_app(support_contact="help@example.org")
    await visitors.account("root", await role_named("admin"))
    ada, device = await visitors.member("ada"), Authenticator()
    if way == "password and factor":
        await set_up(ada)
    elif way == "passkey":
        await add_passkey(ada, device)
    await ada.post("/logout")
    said = await shut(await user_named("ada"))
    visitor = ada.another_device()
    if way == "passkey":
        credential = device.authenticate(await options(visitor, "/login/passkey/options"))
        answer = await visitor.post("/login/passkey", credential=credential)
    else:
        wrong = await visitor.sign_in(password="something else altogether")
        assert wrong.status == 422
        assert "Your account" not in wrong.text
        answer = await visitor.sign_in()
    assert answer.status == 403
    assert said in answer.text
    assert "mailto:help@example.org" in answer.links
    assert visitor.token == ""
    assert await visitor.me() is None


@pytest.mark.parametrize(
    ("contact", "shown"),
    [
        ("", "contact an administrator."),
        ("https://help.example/x?a&b", 'href="https://help.example/x?a&amp;b"'),
        ("the desk, <b>room 7</b>", "contact the desk, &lt;b&gt;room 7&lt;/b&gt;."),
        ("javascript:alert(1)", "contact javascript:alert(1)."),
    ],
)
async def test_the_contact_is_shown_as_link_or_text(
    start_app: StartApp, contact: str, shown: str
) -> None:
    visitors = await start_app(support_contact=contact)
    await (await visitors.account("ada")).disable(by=SYSTEM)
    answer = await visitors.anonymous().sign_in("ada")
    assert shown in answer.text


async def test_old_expensive_hashes_do_not_reveal_accounts_by_their_cost(
    visitors: Visitors, monkeypatch: pytest.MonkeyPatch
) -> None:
    await visitors.account("of-today")
    costly = bcrypt.hashpw(PASSWORD.encode(), bcrypt.gensalt(6)).decode()
    for name in ("of-before", "closed"):
        await register_account(name, f"{name}@example.org", costly, roles=[], by=SYSTEM)
    await (await user_named("closed")).disable(by=SYSTEM)
    await hash_cost.highest(6)
    work = []
    for login in ("nobody-at-all", "of-today", "of-before", "closed"):
        with monkeypatch.context() as patch:
            done = worked(patch)
            wrong = PASSWORD if login == "closed" else "something else altogether"
            answer = await visitors.anonymous().sign_in(login=login, password=wrong)
            assert answer.status == (403 if login == "closed" else 422)
        work.append(done())
    assert work == [2**6] * 4


def worked(patch: pytest.MonkeyPatch) -> Callable[[], int]:
    """Return a function that returns the rounds of bcrypt since this call."""
    done: list[int] = []
    for name in ("checkpw", "hashpw"):
        real = getattr(bcrypt, name)

        def call(*args: Any, real: Callable[..., Any] = real) -> Any:
            done.append(2 ** int(args[1].split(b"$")[2]))
            return real(*args)

        patch.setattr(bcrypt, name, call)
    return lambda: sum(done)


def counted(patch: pytest.MonkeyPatch) -> Callable[[], int]:
    """Return a function that returns the number of bcrypt runs since this call."""
    calls: list[str] = []

    def counting(name: str) -> Callable[..., Any]:
        real = getattr(bcrypt, name)

        def call(*args: Any) -> Any:
            calls.append(name)
            return real(*args)

        return call

    for name in ("checkpw", "hashpw"):
        patch.setattr(bcrypt, name, counting(name))
    return lambda: len(calls)


FLOOD, ROOM = 60, 4


@pytest.fixture
async def narrow(settings: Settings) -> AsyncIterator[Quart]:
    """An application with one thread for passwords and a short queue."""
    few = {"bcrypt_threads": 1, "bcrypt_queue": ROOM - 1}
    app = create_app(settings.model_copy(update=few))
    async with app.test_app():
        yield app


async def test_a_full_password_queue_is_503_and_does_not_block_pages(
    narrow: Quart, monkeypatch: pytest.MonkeyPatch
) -> None:
    visitors = Visitors(narrow)
    ada = await visitors.member("ada")
    strangers = [Visitor(narrow, f"u-{n}", address=f"192.0.2.{n}") for n in range(FLOOD)]
    tokens = [await each.csrf_token() for each in strangers]
    release, real = threading.Event(), bcrypt.checkpw

    def slow(*args: Any) -> bool:
        assert release.wait(30)
        return real(*args)

    monkeypatch.setattr(bcrypt, "checkpw", slow)
    attempts = [
        asyncio.create_task(
            each.send("/login", {"csrf_token": token, "login": each.username, "password": "x"})
        )
        for each, token in zip(strangers, tokens, strict=True)
    ]
    try:

        async def all_others_are_answered() -> bool:
            return sum(task.done() for task in attempts) == FLOOD - ROOM

        await until(all_others_are_answered)
        for number, task in enumerate(attempts):
            if task.done():
                refused = task.result()
                assert refused.status == 503
                assert int(refused.headers["Retry-After"]) > 0
                assert refused.fields["login"] == f"u-{number}"
                assert refused.fields["password"] == ""
        assert (await ada.get("/account")).status == 200
        async with ada.client.websocket(
            "/ws", headers={"Origin": ORIGIN}, scope_base=ada.scope
        ) as socket:
            assert (await socket.receive_json())["type"] == "hello"
            await (await user_named("ada")).grant(await role_named("moderator"), by=SYSTEM)
            async with asyncio.timeout(SECONDS):
                while (said := await socket.receive_json())["type"] != "notice":
                    pass
            assert "moderator" in said["text"]
        assert sum(task.done() for task in attempts) == FLOOD - ROOM
    finally:
        release.set()
    assert sorted(answer.status for answer in await asyncio.gather(*attempts)) == (
        ROOM * [422] + (FLOOD - ROOM) * [503]
    )
    assert (await ada.another_device().sign_in()).status == 303


async def test_a_flask_bcrypt_hash_is_upgraded_at_sign_in(
    visitors: Visitors, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = bcrypt.hashpw(b"secret of 2014", bcrypt.gensalt(5)).decode()
    await register_account("ada", "ada@example.org", old, roles=[], by=SYSTEM)
    ada = Visitor(visitors.app, "ada", "secret of 2014")
    assert (await ada.sign_in(password="secret of 2015")).status == 422
    assert (await user_named("ada")).password_hash == old

    async def busy(_: str) -> str:
        raise Busy

    with monkeypatch.context() as patch:
        patch.setattr(runtime_of(visitors.app).hasher, "hash", busy)
        assert (await ada.another_device().sign_in()).status == 303
    assert (await user_named("ada")).password_hash == old
    assert (await ada.sign_in()).status == 303
    assert (await user_named("ada")).password_hash.startswith("$quartapp$")
    assert (await ada.another_device().sign_in()).status == 303
    assert await ada.me() is not None
