"""Pages are readable by everybody: axe finds nothing, and nothing is wider than the screen."""

from __future__ import annotations

import secrets

import pytest
from axe_playwright_python.async_playwright import Axe
from playwright.async_api import Page

from tests.browser.conftest import NewBrowser, register, sign_in
from tests.people import Server

WIDTHS = {"phone": 375, "desk": 1280}
OUTSIDE = ["/", "/login", "/register", "/posts", "/setup/nothing", "/nowhere"]
OUTSIDE += ["/forgot", "/forgot/sent", "/reset/nothing", "/verify/nothing", "/dev/mail"]
OUTSIDE += ["/invited/nothing"]
INSIDE = [
    *("/", "/posts", "/posts/new", "/account", "/account/password", "/account/sessions"),
    *("/account/email", "/verify", "/confirm", "/account/factors", "/account/factors/totp"),
    *("/account/factors/recovery-codes", "/account/factors/passkeys"),
    *(
        "/account/timeline",
        "/account/timeline/not-me",
        "/account/export",
        "/account/delete",
        "/admin/users/root/delete",
    ),
    *("/account/notices", "/users/root", "/admin/users", "/admin/users/root", "/admin/roles"),
    *("/admin/roles/new", "/admin/roles/moderator", "/admin/sessions", "/admin/events"),
    "/admin/invitations",
]


# Colours do not depend on the width, nor widths on the colours.
@pytest.mark.parametrize(("width", "scheme"), [("phone", "dark"), ("desk", "light")])
async def test_pages_are_accessible_and_fit(
    server: Server, new_browser: NewBrowser, width: str, scheme: str
) -> None:
    size = {"width": WIDTHS[width], "height": 800}
    context = await new_browser(server.url, viewport=size, color_scheme=scheme)
    page = await context.new_page()
    for path in OUTSIDE:
        await judge(page, path)
    await sign_in(page, "root")
    for path in INSIDE:
        await judge(page, path)


async def test_a_forbidden_page_is_accessible(server: Server, new_browser: NewBrowser) -> None:
    page = await (await new_browser(server.url)).new_page()
    await register(page, f"nobody-{secrets.token_hex(4)}")
    await judge(page, "/admin/users")


async def judge(page: Page, path: str) -> None:
    await page.goto(path)
    await judge_this(page)


async def judge_this(page: Page) -> None:
    path = page.url
    found = (await Axe().run(page)).response["violations"]
    assert [(v["id"], v["nodes"][0]["html"]) for v in found] == [], path
    overflow = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
    assert await page.evaluate(overflow) <= 0, f"{path} is wider than the screen"
