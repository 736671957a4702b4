"""SITE_NAME on pages, in emails and in passkey options, with characters that need escaping."""

from __future__ import annotations

import html
import re
from collections.abc import AsyncIterator
from urllib.parse import parse_qs, urlsplit

import pytest
from markupsafe import Markup, escape
from quart import Quart

from quartapp import create_app
from quartapp.email.transports import MailFolder
from quartapp.routes.factors import pages
from quartapp.runtime import runtime_of
from quartapp.settings import Settings
from tests.integration.routes.conftest import Visitors
from tests.integration.routes.requests import options

NAME = 'Müller & "Söhne"'


@pytest.fixture
async def named(settings: Settings) -> AsyncIterator[Quart]:
    app = create_app(
        settings.model_copy(update={"site_name": NAME, "base_url": "http://localhost"})
    )
    async with app.test_app():
        yield app


async def test_the_site_name_is_escaped_everywhere(
    named: Quart, monkeypatch: pytest.MonkeyPatch
) -> None:
    def as_text(uri: str) -> Markup:
        return Markup('<img alt="{}">').format(uri)

    monkeypatch.setattr(pages, "_qr_code", as_text)
    visitors = Visitors(named)
    anonymous, ada = visitors.anonymous(), await visitors.member()

    for page in (
        await anonymous.get("/"),
        await ada.get("/posts"),
        await anonymous.get("/nowhere"),
    ):
        title = re.search(r"<title>(.*?)</title>", page.text)
        assert title
        assert html.unescape(title[1]).endswith(f" \N{EN DASH} {NAME}")
        brand = re.search(r'<p class="brand"><a href="/">.*?</svg>(.*?)</a></p>', page.text)
        assert brand
        assert brand[1] == escape(NAME)
        assert NAME not in page.text
        assert "quartapp" not in re.sub(r"<pre.*?</pre>", "", page.text, flags=re.DOTALL)

    asked = await options(ada, "/account/factors/passkeys/options")
    assert asked["rp"] == {"id": "localhost", "name": NAME}

    page = await ada.get("/account/factors/totp")
    uri = re.search(r'alt="(otpauth:[^"]*)"', page.text)
    assert uri
    assert parse_qs(urlsplit(html.unescape(uri[1])).query)["issuer"] == [NAME]

    assert (await anonymous.post("/forgot", email="ada@example.org")).status == 303
    await visitors.emails("ada@example.org", f"[{NAME}] ")
    (message,) = MailFolder(runtime_of(named).settings.data / "mail").newest(1)
    assert message.subject == f"[{NAME}] Set a new password"
