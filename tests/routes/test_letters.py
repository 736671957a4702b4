"""Letters on pages, for development alone; and no request waits for a mail server."""

import asyncio
import time
from collections.abc import AsyncIterator
from ipaddress import ip_network

import pytest
from pydantic import SecretStr
from quart import Quart

from quartapp import create_app
from quartapp.settings import Settings
from tests.routes.conftest import Town, Visitor, documents


async def test_the_letters_are_listed_and_their_links_can_be_followed(
    town: Town, nobody: Visitor
) -> None:
    assert "No emails yet" in (await nobody.get("/dev/mail")).text
    await nobody.register("ada")
    await town.letters("ada@example.org")
    stranger = town.nobody()
    listed = await stranger.get("/dev/mail")
    (address,) = [link for link in listed.links if link.startswith("/dev/mail/")]
    letter = await stranger.get(address)
    assert "Verify your email address" in letter.text
    assert any("/verify/" in link for link in letter.links)


PROXY_HEADERS = [
    {"X-Forwarded-For": "127.0.0.1"},
    {"Forwarded": "for=127.0.0.1"},
    {"X-Real-IP": "127.0.0.1"},
    {"Via": "1.1 proxy"},
]


async def test_emails_are_shown_to_this_machine_alone(settings: Settings) -> None:
    proxies = {"trusted_proxies": [ip_network("127.0.0.1"), ip_network("10.0.0.7")]}
    for update, peer, headers, status in (
        *[({}, peer, {}, 200) for peer in ("127.0.0.1", "127.9.9.9", "::1", "::ffff:127.0.0.1")],
        *[({}, peer, {}, 404) for peer in ("10.0.0.7", "2001:db8::1", "<local>", "")],
        # Through a proxy that nobody has named, anybody may be asking.
        *[({}, "127.0.0.1", headers, 404) for headers in PROXY_HEADERS],
        (proxies, "127.0.0.1", {"X-Forwarded-For": "127.0.0.1"}, 200),
        (proxies, "10.0.0.7", {"X-Forwarded-For": "127.0.0.2"}, 200),
        (proxies, "127.0.0.1", {"X-Forwarded-For": "127.0.0.1, 203.0.113.9"}, 404),
        (proxies, "10.0.0.7", {}, 404),
        (proxies, "10.0.0.8", {"X-Forwarded-For": "127.0.0.1"}, 404),
    ):
        visitor = Town(create_app(settings.model_copy(update=update))).nobody()
        visitor.address = peer
        for path in ("/dev/mail", "/dev/mail/nothing"):
            expected = status if path == "/dev/mail" else 404
            answer = await visitor.get(path, headers=headers)
            assert answer.status == expected, (update, peer, headers)


@pytest.mark.parametrize("name", ["nothing", "..", "%2e%2e%2fsecret_key", "x" * 300, "a.eml"])
async def test_what_is_no_letter_is_404(nobody: Visitor, name: str) -> None:
    assert (await nobody.get(f"/dev/mail/{name}")).status == 404


@pytest.fixture
async def deployed(settings: Settings) -> AsyncIterator[Quart]:
    update = {"quartapp_env": "production", "secret_key": SecretStr("0123456789abcdef" * 4)}
    update["base_url"] = "https://localhost"
    app = create_app(settings.model_copy(update={**update, "bcrypt_cost": 10}))
    async with app.test_app():
        yield app


async def test_production_has_no_such_page_and_no_link_to_it(deployed: Quart) -> None:
    nobody = Town(deployed, "https").nobody()
    assert (await nobody.get("/dev/mail")).status == 404
    assert (await nobody.get("/dev/mail/letter")).status == 404
    assert "/dev/" not in (await nobody.get("/")).text


async def test_a_mail_server_that_hangs_is_waited_for_by_no_request(settings: Settings) -> None:
    async def say_nothing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    server = await asyncio.start_server(say_nothing, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        update = {"smtp_host": "127.0.0.1", "smtp_port": port, "smtp_tls": "none"}
        app = create_app(settings.model_copy(update=update))
        async with app.test_app():
            nobody = Town(app).nobody()
            began = time.monotonic()
            assert (await nobody.register("ada")).status == 303
            assert (await nobody.post("/forgot", email="ada@example.org")).status == 303
            assert time.monotonic() - began < 15, "a letter may take 20"
            assert len(await documents("outbox")) == 2
            assert (await nobody.get("/dev/mail")).status == 404
