"""Requests are answered for the hosts of this application only (DNS rebinding)."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from quartapp.middleware.allowed_hosts import AllowedHosts
from quartapp.settings import Settings
from tests.integration.flows.test_http_framing import send_raw
from tests.people import Server

Ask = Callable[..., Awaitable[int]]
DEVELOPMENT = {"base_url": "http://dev.example:8080"}
PRODUCTION = {"quartapp_env": "production", "base_url": "https://people.example.org"}
EVERYWHERE = {
    "PEOPLE.example.org:8443": 200,
    "people.example.org.": 200,
    "people.example.org.:443": 200,
    "other.example": 200,
    "[2001:db8::1]:8443": 200,
    "attacker.example": 421,
    "attacker.example:5000": 421,
    "people.example.org.attacker.example": 421,
    "localhost.attacker.example": 421,
    "127.0.0.1.attacker.example": 421,
    "people.example.org..": 421,
    "0.0.0.0": 421,
    "169.254.169.254": 421,
    "2130706433": 421,
    "127.1": 421,
    "people.example.org@attacker.example": 400,
    "attacker.example@people.example.org": 400,
    "people.example.org, attacker.example": 400,
    "people.example.org:80:90": 400,
    "people.example.org/": 400,
    " people.example.org": 400,
    "b\xfccher.example": 400,
    "[::1": 400,
    ":5000": 400,
    "": 400,
}
LOOPBACK = ["localhost", "LOCALHOST:5000", "localhost.", "127.0.0.1:5000", "127.8.8.8", "[::1]:80"]


@pytest.fixture
def ask(settings: Settings, update: dict[str, Any]) -> Ask:
    """Ask an application with these settings behind the middleware, and return the status."""

    async def application(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})

    origins = ["https://other.example", "http://[2001:db8::1]:8080"]
    settings = settings.model_copy(update={"allowed_origins": origins, **update})
    app = AllowedHosts(application, settings)

    async def ask(*hosts: str, kind: str = "http", path: str = "/login", **headers: str) -> int:
        said: list[Any] = []

        async def receive() -> Any:
            return {"type": f"{kind}.connect"}

        async def send(message: Any) -> None:
            said.append(message)

        pairs = [("host", host) for host in hosts] + list(headers.items())
        raw = [(name.encode(), value.encode("latin-1")) for name, value in pairs]
        extensions = {"websocket.http.response": {}}
        scope = {"type": kind, "path": path, "headers": raw, "extensions": extensions}
        await app(scope, receive, send)
        if said[0]["status"] != 200 and kind == "websocket":
            assert said[0]["type"] == "websocket.http.response.start"
        return said[0]["status"]

    return ask


@pytest.mark.parametrize(
    ("update", "own", "loopback"),
    [
        (PRODUCTION, "people.example.org", 421),
        ({**DEVELOPMENT, "base_url": "http://people.example.org:81"}, "people.example.org", 200),
    ],
    ids=["production", "development"],
)
async def test_only_hosts_in_the_settings_are_served(ask: Ask, own: str, loopback: int) -> None:
    expected = EVERYWHERE | dict.fromkeys(LOOPBACK, loopback)
    for kind in ("http", "websocket"):
        assert {host: await ask(host, kind=kind) for host in expected} == expected
    assert await ask() == 400
    assert await ask(own, own) == 400
    assert await ask("attacker.example", **{"x-forwarded-host": own}) == 421
    assert await ask(own, **{"x-forwarded-host": "attacker.example"}) == 200
    # The request target may contain the host, too.
    assert await ask(own, path=f"http://{own}/login") == 200
    assert await ask(own, path="http://attacker.example/login") == 421
    assert await ask("attacker.example", path=f"http://{own}/login") == 421
    assert await ask(own, path=f"http://{own}@attacker.example/login") == 400


@pytest.mark.parametrize("update", [PRODUCTION, DEVELOPMENT], ids=["production", "development"])
async def test_health_probes_may_use_any_host(ask: Ask, update: dict[str, Any]) -> None:
    production = update is PRODUCTION
    for path in ("/livez", "/readyz", "/metrics"):
        assert await ask("10.0.0.7:5000", path=path) == (200 if production else 421)
        assert await ask(path=path) == (200 if production else 400)
    for path in ("/livez/", "/static/app.css", "http://attacker.example/livez"):
        assert await ask("10.0.0.7:5000", path=path) == 421


async def test_an_unknown_host_gets_no_page_no_mail_and_no_socket(server: Server) -> None:
    """Use a real connection, also with HTTP/1.0 and with the host in the target."""
    upgrade = ["Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13"]
    upgrade.append("Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==")
    foreign = "Host: attacker.example"
    for head, status in (
        (["GET /dev/mail HTTP/1.1", foreign], b"421"),
        (["GET /forgot HTTP/1.1", foreign, "X-Forwarded-Host: localhost"], b"421"),
        (["GET /ws HTTP/1.1", foreign, *upgrade], b"421"),
        (["GET http://attacker.example/login HTTP/1.1", "Host: localhost"], b"421"),
        (["GET http://localhost/login HTTP/1.1", "Host: localhost"], b"200"),
        (["GET /login HTTP/1.0"], b"400"),
        (["GET /login HTTP/1.0", "Host: localhost"], b"200"),
        (["GET /login HTTP/1.1", "Host: localhost", foreign], b"400"),
    ):
        if "Connection: Upgrade" not in head:
            head.append("Connection: close")
        said = await send_raw(server.url, head)
        assert said.split(b" ", 2)[1] == status, (head, said[:300])
        if status == b"421":
            assert b"Set-Cookie" not in said
            if "Connection: Upgrade" not in head:
                assert b"set BASE_URL or ALLOWED_ORIGINS" in said
                assert b"content-security-policy" in said.lower()
