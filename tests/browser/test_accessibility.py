"""Accessibility and layout of all pages: axe reports nothing, and no page scrolls sideways.

Each page is loaded once and checked in two views. Colours do not depend on the width, nor widths on
the colours, so two views are enough for both widths and both colour schemes.
"""

from __future__ import annotations

import secrets
from typing import Any, Literal, NamedTuple

import pytest
from axe_playwright_python.base import AXE_SCRIPT
from playwright.async_api import Page

from tests.browser.conftest import NewBrowser, register, sign_in
from tests.people import Server


class View(NamedTuple):
    width: int
    scheme: Literal["light", "dark"]


# The last one is the view of a new page, so that a test can go on.
VIEWS = (View(375, "dark"), View(1280, "light"))
# Taken together, axe's script and its complete answer cost ten times as much as its checks do. So
# the script is sent once for each page, and the answer is reduced to what fails a test.
VIOLATIONS = """async () => (await axe.run({resultTypes: ["violations"]})).violations.map(
  violation => [violation.id, violation.nodes[0].html]
)"""
OVERFLOW = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
SIGNED_OUT = [
    *("/", "/login", "/register", "/posts", "/setup/nothing", "/nowhere"),
    *("/forgot", "/forgot/sent", "/reset/nothing", "/verify/nothing", "/dev/mail"),
    *("/invited/nothing", "/dev/components"),
]
SIGNED_IN = [
    *("/", "/posts", "/posts/new", "/account", "/account/password", "/account/sessions"),
    *("/account/profile", "/account/security", "/account/preferences"),
    *("/account/email", "/verify", "/confirm", "/account/factors", "/account/factors/totp"),
    *("/account/factors/recovery-codes", "/account/factors/passkeys"),
    *("/account/timeline", "/account/timeline/not-me", "/account/export", "/account/delete"),
    *("/account/notices", "/account/roles", "/users/root", "/admin/users", "/admin/users/root"),
    *("/admin/users/root/roles", "/admin/users/root/sessions", "/admin/users/root/activity"),
    *("/admin/users/root/disable", "/admin", "/admin/roles"),
    *("/admin/users/root/delete", "/admin/roles/new", "/admin/roles/moderator"),
    *("/admin/sessions", "/admin/events", "/admin/invitations", "/admin/requests"),
]
# Pages with long texts, many controls or a list: what German words are most likely to break.
IN_GERMAN = [
    *("/", "/account/security", "/account/preferences", "/account/roles", "/admin/users"),
    *("/admin/users/root", "/admin/users/root/roles", "/admin/roles", "/admin/sessions"),
    "/admin/events",
]


@pytest.mark.parametrize(
    ("username", "paths"),
    [(None, SIGNED_OUT), ("root", SIGNED_IN[::2]), ("root", SIGNED_IN[1::2])],
    ids=["signed out", "signed in", "signed in, others"],
)
async def test_pages_are_accessible_and_fit_the_window(
    server: Server, new_browser: NewBrowser, username: str | None, paths: list[str]
) -> None:
    page = await (await new_browser(server.url)).new_page()
    if username:
        await sign_in(page, username)
    for path in paths:
        await page.goto(path)
        await assert_accessible(page)


async def test_pages_are_accessible_in_german(server: Server, new_browser: NewBrowser) -> None:
    page = await (await new_browser(server.url, locale="de-DE")).new_page()
    await page.goto("/register")
    await assert_accessible(page)
    await sign_in(page, "root")
    for path in IN_GERMAN:
        await page.goto(path)
        assert await page.locator("html").get_attribute("lang") == "de"
        await assert_accessible(page)


async def test_a_forbidden_page_is_accessible(server: Server, new_browser: NewBrowser) -> None:
    page = await (await new_browser(server.url)).new_page()
    await register(page, f"nobody-{secrets.token_hex(4)}")
    await page.goto("/admin/users")
    await assert_accessible(page)


async def assert_accessible(page: Page) -> None:
    """Check the open page with axe, and that it does not scroll sideways, in each of the views."""
    await page.evaluate(AXE_SCRIPT)
    for view in VIEWS:
        await page.set_viewport_size({"width": view.width, "height": 800})
        await page.emulate_media(color_scheme=view.scheme)
        found: list[Any] = await page.evaluate(VIOLATIONS)
        assert found == [], (page.url, view)
        assert await page.evaluate(OVERFLOW) <= 0, f"{page.url} is wider than {view.width} px"
