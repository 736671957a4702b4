"""The pages that show emails in development; and no request waits for a mail server."""

import asyncio
import time
from collections.abc import AsyncIterator
from ipaddress import ip_network

import pytest
from pydantic import SecretStr
from quart import Quart

from quartapp import create_app
from quartapp.settings import Settings
from tests.integration.routes.conftest import Visitor, Visitors, documents


async def test_development_lists_emails_with_working_links(
    visitors: Visitors, anonymous: Visitor
) -> None:
    assert "No emails yet" in (await anonymous.get("/dev/mail")).text
    await anonymous.register("ada")
    await visitors.emails("ada@example.org")
    stranger = visitors.anonymous()
    listed = await stranger.get("/dev/mail")
    (address,) = [link for link in listed.links if link.startswith("/dev/mail/")]
    message = await stranger.get(address)
    assert "Verify your email address" in message.text
    assert any("/verify/" in link for link in message.links)


PROXY_HEADERS = [
    {"X-Forwarded-For": "127.0.0.1"},
    {"Forwarded": "for=127.0.0.1"},
    {"X-Real-IP": "127.0.0.1"},
    {"Via": "1.1 proxy"},
]


async def test_emails_are_shown_only_to_this_machine(settings: Settings) -> None:
    proxies = {"trusted_proxies": [ip_network("127.0.0.1"), ip_network("10.0.0.7")]}
    for update, peer, headers, status in (
        *[({}, peer, {}, 200) for peer in ("127.0.0.1", "127.9.9.9", "::1", "::ffff:127.0.0.1")],
        *[({}, peer, {}, 404) for peer in ("10.0.0.7", "2001:db8::1", "<local>", "")],
        # Behind an undeclared proxy the client may be on another machine.
        *[({}, "127.0.0.1", headers, 404) for headers in PROXY_HEADERS],
        (proxies, "127.0.0.1", {"X-Forwarded-For": "127.0.0.1"}, 200),
        (proxies, "10.0.0.7", {"X-Forwarded-For": "127.0.0.2"}, 200),
        (proxies, "127.0.0.1", {"X-Forwarded-For": "127.0.0.1, 203.0.113.9"}, 404),
        (proxies, "10.0.0.7", {}, 404),
        (proxies, "10.0.0.8", {"X-Forwarded-For": "127.0.0.1"}, 404),
    ):
        visitor = Visitors(create_app(settings.model_copy(update=update))).anonymous()
        visitor.address = peer
        for path in ("/dev/mail", "/dev/mail/nothing"):
            expected = status if path == "/dev/mail" else 404
            answer = await visitor.get(path, headers=headers)
            assert answer.status == expected, (update, peer, headers)


@pytest.mark.parametrize("name", ["nothing", "..", "%2e%2e%2fsecret_key", "x" * 300, "a.eml"])
async def test_an_unknown_email_is_404(anonymous: Visitor, name: str) -> None:
    assert (await anonymous.get(f"/dev/mail/{name}")).status == 404


@pytest.fixture
async def deployed(settings: Settings) -> AsyncIterator[Quart]:
    update = {"quartapp_env": "production", "secret_key": SecretStr("0123456789abcdef" * 4)}
    update["base_url"] = "https://localhost"
    app = create_app(settings.model_copy(update={**update, "bcrypt_cost": 10}))
    async with app.test_app():
        yield app


async def test_production_has_no_mail_page(deployed: Quart) -> None:
    anonymous = Visitors(deployed, "https").anonymous()
    assert (await anonymous.get("/dev/mail")).status == 404
    assert (await anonymous.get("/dev/mail/letter")).status == 404
    assert "/dev/" not in (await anonymous.get("/")).text


async def test_no_request_waits_for_a_mail_server_that_hangs(settings: Settings) -> None:
    async def say_nothing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    server = await asyncio.start_server(say_nothing, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        update = {"smtp_host": "127.0.0.1", "smtp_port": port, "smtp_tls": "none"}
        app = create_app(settings.model_copy(update=update))
        async with app.test_app():
            anonymous = Visitors(app).anonymous()
            began = time.monotonic()
            assert (await anonymous.register("ada")).status == 303
            assert (await anonymous.post("/forgot", email="ada@example.org")).status == 303
            assert time.monotonic() - began < 15, "sending an email may take 20 seconds"
            assert len(await documents("outbox")) == 2
            assert (await anonymous.get("/dev/mail")).status == 404
