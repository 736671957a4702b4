"""Forwarded headers are believed from trusted proxies only (ASVS 4.1.3, 15.3.4)."""

from __future__ import annotations

from collections.abc import AsyncIterator
from ipaddress import ip_network
from typing import Any

import pytest
from quart import Quart, request, websocket

from quartapp import create_app
from quartapp.auth import remote_address
from quartapp.middleware.forwarded import ForwardedHeaders
from quartapp.settings import Settings
from tests.integration.routes.conftest import Answer, Visitors, documents

TRUSTED = [ip_network("10.0.0.0/8"), ip_network("fd00::/8")]
PROXY = "10.0.0.1"


async def seen(
    peer: str | None, *forwarded: str, proto: str = "", kind: str = "http"
) -> tuple[str | None, str]:
    """Return the client and the scheme that the middleware passes on."""
    told: dict[str, Any] = {}

    async def app(scope: dict[str, Any], *_: object) -> None:
        told.update(scope)

    headers = [(b"X-Forwarded-For", value.encode()) for value in forwarded]
    headers += [(b"x-forwarded-proto", proto.encode())] * bool(proto)
    headers += [(b"x-forwarded-host", b"evil.example"), (b"forwarded", b"for=203.0.113.66")]
    scheme = "http" if kind == "http" else "ws"
    scope: dict[str, Any] = {"type": kind, "scheme": scheme, "headers": headers}
    scope["client"] = (peer, 1234) if peer else None
    await ForwardedHeaders(app, TRUSTED)(scope, None, None)
    return told["client"] and told["client"][0], told["scheme"]


@pytest.mark.parametrize("peer", ["203.0.113.9", "2001:db8::1", "127.0.0.1", "<local>", None])
async def test_forwarded_headers_of_untrusted_clients_are_ignored(peer: str | None) -> None:
    assert await seen(peer, "10.0.0.7", "192.0.2.1", proto="https") == (peer, "http")


@pytest.mark.parametrize(
    ("forwarded", "client"),
    [
        (["192.0.2.1"], "192.0.2.1"),
        # The entries to the left of the trusted proxy's are written by the client.
        (["6.6.6.6, 192.0.2.1"], "192.0.2.1"),
        (["6.6.6.6", "192.0.2.1"], "192.0.2.1"),
        (["10.9.9.9, 192.0.2.1"], "192.0.2.1"),
        # Several trusted proxies in a chain.
        (["6.6.6.6, 192.0.2.1, 10.0.0.2, 10.0.0.3"], "192.0.2.1"),
        (["192.0.2.1", "fd00::5"], "192.0.2.1"),
        (["2001:db8::7"], "2001:db8::7"),
        (["[2001:db8::7]:4711"], "2001:db8::7"),
        (['"[2001:db8::7]"'], "2001:db8::7"),
        (["192.0.2.1:4711"], "192.0.2.1"),
        (["::ffff:192.0.2.1"], "192.0.2.1"),
        (["::ffff:10.0.0.2, ::ffff:192.0.2.1"], "192.0.2.1"),
        # A client in a trusted network.
        (["10.0.0.2"], "10.0.0.2"),
        # Entries to the left of an invalid one are not trusted.
        (["192.0.2.1, unknown"], PROXY),
        (["192.0.2.1, unknown, 10.0.0.2"], "10.0.0.2"),
        (["192.0.2.1, ,"], "192.0.2.1"),
        (["\xff\xfe"], PROXY),
        ([], PROXY),
        ([""], PROXY),
    ],
)
async def test_the_last_untrusted_entry_is_the_client(forwarded: list[str], client: str) -> None:
    assert (await seen(PROXY, *forwarded))[0] == client
    assert (await seen("::ffff:10.0.0.1", *forwarded))[0] in (client, "10.0.0.1")


@pytest.mark.parametrize(
    ("proto", "kind", "scheme"),
    [
        ("https", "http", "https"),
        ("HTTPS", "http", "https"),
        ("http, https", "http", "https"),
        ("https, http", "http", "http"),
        ("https", "websocket", "wss"),
        ("javascript", "http", "http"),
        ("", "websocket", "ws"),
    ],
)
async def test_a_trusted_proxy_says_whether_the_client_spoke_tls(
    proto: str, kind: str, scheme: str
) -> None:
    assert (await seen(PROXY, "192.0.2.1", proto=proto, kind=kind))[1] == scheme


@pytest.fixture
async def behind(settings: Settings) -> AsyncIterator[Quart]:
    app = create_app(settings.model_copy(update={"trusted_proxies": TRUSTED}))

    @app.get("/client_of")
    async def client_of() -> dict[str, Any]:
        return {"address": remote_address(), "host": request.host, "scheme": request.scheme}

    @app.websocket("/ws/client_of")
    async def client_of_socket() -> None:
        await websocket.send_json({"address": remote_address(), "scheme": websocket.scheme})

    async with app.test_app():
        yield app


async def test_sessions_limits_and_audit_log_use_the_forwarded_client(behind: Quart) -> None:
    visitor = Visitors(behind).anonymous()
    said = {"X-Forwarded-For": "6.6.6.6, 192.0.2.1", "X-Forwarded-Host": "evil.example"}
    visitor.address = PROXY
    answer = await visitor.get("/client_of", headers=said)
    assert answer.text.count("192.0.2.1") == 1
    assert "evil" not in answer.text
    visitor.address = "203.0.113.9"
    assert "203.0.113.9" in (await visitor.get("/client_of", headers=said)).text

    visitor.username, visitor.address = "ada", PROXY
    fields = {"username": "ada", "email": "ada@example.org", "csrf_token": ""}
    fields |= {"password": visitor.password, "confirm": visitor.password}
    fields["csrf_token"] = await visitor.csrf_token()
    headers = {"Origin": "http://localhost", **said}
    assert (await visitor.send("/register", fields, headers)).status == 303
    (session,) = await documents("sessions")
    assert session["ip"] == "192.0.2.1"
    assert {event["ip"] for event in await documents("events")} == {"192.0.2.1"}

    async def guess(address: str) -> Answer:
        stranger = Visitors(behind).anonymous()
        stranger.address = PROXY
        token = await stranger.csrf_token()
        fields = {"csrf_token": token, "login": "ada", "password": "something else altogether"}
        return await stranger.send(
            "/login", fields, {"Origin": "http://localhost", "X-Forwarded-For": address}
        )

    # Only another client, not another left entry, has a limit of its own.
    statuses = [(await guess(f"198.51.100.{n}, 198.51.100.200")).status for n in range(6)]
    assert statuses == [422] * 5 + [429]
    assert (await guess("198.51.100.201")).status == 422


async def test_a_forwarded_scheme_does_not_change_cookies_or_csrf_checks(
    behind: Quart,
) -> None:
    visitor = await Visitors(behind).member("ada")
    token = await visitor.csrf_token()
    fields = {"csrf_token": token, "title": "A", "body": "B"}
    spoofed = {"X-Forwarded-Proto": "https", "X-Forwarded-Host": "evil.example"}
    for origin in ("https://localhost", "https://evil.example", "http://evil.example"):
        answer = await visitor.send("/posts/new", fields, {"Origin": origin, **spoofed})
        assert answer.status == 403
    visitor.address = PROXY
    for origin in ("http://localhost", "https://evil.example"):
        answer = await visitor.send("/posts/new", fields, {"Origin": origin, **spoofed})
        assert answer.status == 403
    answer = await visitor.send("/posts/new", fields, {"Origin": "https://localhost", **spoofed})
    assert answer.status == 303


def test_trusted_networks_and_limits_come_from_the_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TRUSTED_PROXIES", '["10.0.0.0/8", "192.0.2.1", "fd00::/8"]')
    monkeypatch.setenv("LIMIT_SIGN_IN_ACCOUNT", "20/hour")
    found = Settings.load(secret_key="k" * 32)
    assert [str(each) for each in found.trusted_proxies] == [
        "10.0.0.0/8",
        "192.0.2.1/32",
        "fd00::/8",
    ]
    limit = found.limit_sign_in_account
    assert (limit.amount, limit.get_expiry()) == (20, 3600)
