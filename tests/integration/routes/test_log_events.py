"""What is logged, and what never is (ASVS 16.2.1, 16.2.5, 16.3.1 to 16.3.3)."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import structlog
from itsdangerous import URLSafeSerializer
from quart import Quart
from quart.testing.connections import WebsocketResponseError

from quartapp import log
from quartapp.models.accounts.one_time_token import Purpose, issue_setup
from quartapp.security.passwords import PasswordHasher
from tests.conftest import PASSWORD
from tests.integration.routes.conftest import ORIGIN, Visitor, Visitors
from tests.integration.routes.requests import issue_token

CANARY = "canary-of-a-password"
WRONG = "something else altogether"
CHANGED = "an entirely different phrase"
ADDRESS = "198.51.100.7"
Listen = Callable[[], "Said"]


class Said:
    """Collects the lines of the log, as in production."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys
        capsys.readouterr()
        log.configure(production=True, worker="7")

    def __call__(self) -> list[dict[str, Any]]:
        """Return the lines since the last call."""
        return [json.loads(line) for line in self._capsys.readouterr().err.splitlines()]


@pytest.fixture
def listen(capsys: pytest.CaptureFixture[str]) -> Iterator[Listen]:
    yield lambda: Said(capsys)
    structlog.reset_defaults()


async def handshake(visitor: Visitor, origin: str) -> None:
    headers = {"Origin": origin}
    async with visitor.client.websocket("/ws", headers=headers, scope_base=visitor.scope) as socket:
        with pytest.raises(WebsocketResponseError):
            await socket.receive()


async def test_each_action_logs_one_complete_line_without_secrets(
    visitors: Visitors, listen: Listen
) -> None:
    said = listen()
    lines: list[dict[str, Any]] = []
    secrets = [PASSWORD, WRONG, CHANGED]

    def logged(event: str, **fields: Any) -> None:
        """Check that the last action has logged exactly one event of this kind."""
        lines.extend(new := said())
        found = [line for line in new if line["event"] == event]
        assert len(found) == 1, (event, new)
        assert fields.items() <= found[0].items()
        assert found[0]["ip"] == ADDRESS
        if visitor.token:
            payload = visitor.token.strip('"').partition(".")[0]
            token = URLSafeSerializer("").load_payload(payload.encode())
            assert len(token) == 43
            secrets.extend((payload, token))

    visitor = Visitor(visitors.app, "ada", address=ADDRESS)
    assert (await visitor.register()).status == 303
    logged("user_created", user="ada")
    await visitor.post("/verify", code="000000")
    logged("address_code_refused", user="ada")
    await visitor.get("/admin/users")
    logged("authz_fail", user="ada", permission="users.read")
    await visitor.post("/confirm", password=WRONG)
    logged("authn_login_fail", login="ada")
    await visitor.post("/confirm", password=PASSWORD)
    logged("session_renewed", user="ada")
    new = {"password": CHANGED, "confirm": CHANGED}
    await visitor.post("/account/password", current_password=WRONG, **new)
    logged("authn_login_fail", login="ada")
    await visitor.post("/account/password", current_password=PASSWORD, **new)
    logged("authn_password_change", user="ada")
    thief = visitor.copy()
    thief.address = ADDRESS
    await visitor.post("/logout")
    said()
    await thief.get("/account")
    logged("session_use_after_expire", reason="signed_out")
    await visitor.sign_in(password=CHANGED)
    logged("session_created", user="ada")
    await visitor.post("/logout")

    for login in ("ada", "nobody-at-all"):
        await visitor.sign_in(login, WRONG)
        logged("authn_login_fail", login=login)
    for _ in range(5):
        await visitor.sign_in("ada", WRONG)
    logged("excess_rate_limit_exceeded", what="sign-in")

    await visitor.post("/forgot", email="ada@example.org")
    logged("password_reset_asked")
    secrets.append(token := await issue_token(visitor, Purpose.RESET))
    link = f"/reset/{token}"
    for headers in ({}, {"Origin": "https://evil.example"}):
        await visitor.send(link, {}, headers)
        logged("malicious_csrf", path="/reset/<token>", origin=headers.get("Origin"))
    await handshake(visitor, "https://evil.example")
    logged("malicious_cors", origin="https://evil.example")
    await visitor.post(link, password=PASSWORD, confirm=PASSWORD)
    logged("authn_password_reset")

    visitor = await visitors.admin()
    visitor.address = ADDRESS
    said()
    for path, fields, event in (
        ("grants", {"role": "moderator"}, "authz_change"),
        ("grants/moderator/revoke", {}, "authz_change"),
        ("disable", {}, "user_disabled"),
        ("enable", {}, "user_enabled"),
    ):
        await visitor.post(f"/admin/users/ada/{path}", **fields)
        logged(event, user="ada", by="root")

    for line in lines:
        assert line["timestamp"].endswith("Z")
        assert (line["level"], line["worker"]) in (("info", "7"), ("warning", "7"))
    text = json.dumps(lines)
    assert [secret for secret in secrets if secret in text] == []


async def test_creating_the_first_administrator_is_logged(
    visitors: Visitors, listen: Listen
) -> None:
    link = f"/setup/{await issue_setup()}"
    said = listen()
    visitor = Visitor(visitors.app, "grace", address=ADDRESS)
    fields = {"email": "grace@example.org", "password": PASSWORD, "confirm": PASSWORD}
    assert (await visitor.post(link, username="grace", **fields)).status == 303
    created, opened = (line for line in said() if "user" in line)
    assert (created["event"], created["user"], created["ip"]) == ("user_created", "grace", ADDRESS)
    assert opened["event"] == "session_created"


async def test_an_expired_form_is_not_logged_as_an_attack(ada: Visitor, listen: Listen) -> None:
    said = listen()
    await ada.send("/posts/new", {"csrf_token": "old"}, {"Origin": ORIGIN})
    assert said() == []


async def test_a_logged_error_does_not_contain_a_token_from_the_url(
    visitors: Visitors, listen: Listen, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = listen()

    async def broken(token: str) -> None:
        raise LookupError

    monkeypatch.setitem(visitors.app.view_functions, "recovery.reset", broken)
    assert (await visitors.anonymous().get("/reset/a-token-that-works")).status == 500
    (line,) = said()
    assert (line["event"], line["path"]) == ("unhandled", "/reset/<token>")
    assert "a-token-that-works" not in json.dumps(line)


@pytest.mark.parametrize("production", [True, False])
async def test_a_logged_error_contains_no_password(
    app: Quart,
    production: bool,
    listen: Listen,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    # The traceback has frames with the password as a local variable.
    def broken(_: PasswordHasher, password: str) -> str:
        raise LookupError

    monkeypatch.setattr(PasswordHasher, "_hash", broken)
    client = app.test_client()
    page = await (await client.get("/register")).get_data(as_text=True)
    token = re.findall(r'name="csrf_token" value="([^"]+)"', page)[0]
    log.configure(production=production)
    answer = await client.post(
        "/register",
        form={
            "csrf_token": token,
            "username": "ada",
            "email": "ada@example.org",
            "password": CANARY,
            "confirm": CANARY,
        },
        headers={"Origin": "http://localhost"},
    )
    assert answer.status_code == 500
    said = capsys.readouterr().err
    assert "LookupError" in said
    assert CANARY not in said
