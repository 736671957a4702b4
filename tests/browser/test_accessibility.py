"""Accessibility and layout of all pages: axe reports nothing, and no page scrolls sideways.

Each page is loaded once and checked in two views. Colours do not depend on the width, nor widths on
the colours, so two views are enough for both widths and both colour schemes. In German, whose long
words matter on a narrow page only, it is checked in one of them, and there by the rules that depend
on the view.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import pytest
from axe_playwright_python.base import AXE_SCRIPT
from playwright.async_api import Page, expect

from tests.browser.conftest import NewBrowser, is_live, page_of, register, sign_in
from tests.people import Person, Server


class View(NamedTuple):
    width: int
    scheme: Literal["light", "dark"]


# The last one is the view of a new page, so that a test can go on.
VIEWS = (PHONE, DESK) = (View(375, "dark"), View(1280, "light"))
# Taken together, axe's script and its complete answer cost ten times as much as its checks do. So
# the script is sent once for each page, and the answer is reduced to what fails a test.
VIOLATIONS = """async runOnly => (
  await axe.run({resultTypes: ["violations"], ...runOnly && {runOnly}})
).violations.map(violation => [violation.id, violation.nodes[0].html])"""
OF_THE_VIEW = [
    *("color-contrast", "link-in-text-block", "target-size", "scrollable-region-focusable"),
    *("html-has-lang", "valid-lang"),
]
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
    *("/admin/users/root/disable", "/admin/users/root/sessions/end", "/admin/users/root/delete"),
    *("/admin", "/admin/users/new", "/admin/roles", "/admin/roles/new", "/admin/roles/moderator"),
    *("/admin/roles/moderator/delete", "/admin/sessions", "/admin/events", "/admin/invitations"),
    "/admin/requests",
]


@pytest.mark.parametrize(
    ("language", "view", "rules"),
    [
        pytest.param("en-GB", DESK, None, id="English, desk"),
        pytest.param("de-DE", PHONE, OF_THE_VIEW, id="German, phone"),
        pytest.param("en-GB", PHONE, None, id="English, phone", marks=pytest.mark.long),
        pytest.param("de-DE", DESK, None, id="German, desk", marks=pytest.mark.long),
    ],
)
@pytest.mark.parametrize(
    ("username", "paths"),
    [(None, SIGNED_OUT), ("root", SIGNED_IN[::2]), ("root", SIGNED_IN[1::2])],
    ids=["signed out", "signed in", "signed in, others"],
)
async def test_pages_are_accessible_and_fit_the_window(
    server: Server,
    new_browser: NewBrowser,
    language: str,
    view: View,
    rules: list[str] | None,
    username: str | None,
    paths: list[str],
) -> None:
    page = await (await new_browser(server.url, locale=language)).new_page()
    await show(page, view)
    if username:
        await sign_in(page, username)
    for path in paths:
        await page.goto(path)
        assert await page.locator("html").get_attribute("lang") == language[:2]
        await assert_accessible(page, [view], rules)


@pytest.mark.parametrize("locale", ["en-GB", "de-DE"])
async def test_menus_and_dialogs_are_accessible(
    server: Server, ada: Person, new_browser: NewBrowser, locale: str
) -> None:
    page = await page_of(ada, new_browser, locale=locale)
    answer = await ada.post("/posts/new", page="/posts/new", title="Notes", body="- One\n- Two")
    await page.goto(answer.headers["location"])
    await is_live(page)
    await assert_accessible(page)
    for view in VIEWS:
        await show(page, view)
        for menu in ("notices", "account-menu") if view == DESK else ("menu",):
            await page.locator(f"[popovertarget={menu}]").click()
            if menu == "notices":
                await expect(page.locator("#notices li").first).to_be_visible()
            await assert_accessible(page, [view])
            await page.keyboard.press("Escape")
    await page.keyboard.press("?")
    await assert_accessible(page)
    await page.keyboard.press("Escape")
    await server.run("user", "end-sessions", ada.username)
    dialog = page.get_by_role("alertdialog")
    await expect(dialog).to_be_visible()
    await assert_accessible(page)
    await page.locator("#ended-action").click()
    await expect(dialog.locator("[name=password]")).to_be_visible()
    await assert_accessible(page)


async def test_a_forbidden_page_is_accessible(server: Server, new_browser: NewBrowser) -> None:
    page = await (await new_browser(server.url)).new_page()
    await register(page, f"nobody-{secrets.token_hex(4)}")
    await page.goto("/admin/users")
    await assert_accessible(page)


async def show(page: Page, view: View) -> None:
    await page.set_viewport_size({"width": view.width, "height": 800})
    # An element that fades in has too little contrast for a moment.
    await page.emulate_media(color_scheme=view.scheme, reduced_motion="reduce")


async def assert_accessible(
    page: Page, views: Sequence[View] = VIEWS, rules: list[str] | None = None
) -> None:
    """Check the open page with axe, and that it does not scroll sideways, in each of the views.

    With names of rules, only those of axe are checked.
    """
    if not await page.evaluate("'axe' in window"):
        await page.evaluate(AXE_SCRIPT)
    for view in views:
        await show(page, view)
        found: list[Any] = await page.evaluate(VIOLATIONS, rules)
        assert found == [], (page.url, view)
        assert await page.evaluate(OVERFLOW) <= 0, f"{page.url} is wider than {view.width} px"
