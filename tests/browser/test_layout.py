"""Layouts that change while a page is open: resized menus, the growing post editor, print."""

from __future__ import annotations

import pytest
from playwright.async_api import Page, ViewportSize, expect

from tests.browser.conftest import NewBrowser, sign_in
from tests.people import Server

NARROW, WIDE = ViewportSize(width=800, height=700), ViewportSize(width=1200, height=700)


async def page_of_root(server: Server, new_browser: NewBrowser, **options: object) -> Page:
    page = await (await new_browser(server.url, **options)).new_page()
    await sign_in(page, "root")
    return page


@pytest.mark.parametrize("script", [True, False], ids=["script", "no script"])
async def test_an_open_menu_covers_nothing_after_the_window_is_resized(
    server: Server, new_browser: NewBrowser, script: bool
) -> None:
    page = await page_of_root(server, new_browser, viewport=NARROW, java_script_enabled=script)
    for button, then in ((".menu-button", WIDE), (".account-button", NARROW)):
        await page.locator(button).click()
        await page.set_viewport_size(then)
        # A click fails if something else would receive it.
        await page.locator("h1").click(timeout=5000)
    await page.set_viewport_size(NARROW)
    await page.locator(".menu-button").click()
    await page.set_viewport_size(WIDE)
    if script:
        await expect(page.locator("[popover]:popover-open")).to_have_count(0)
    await page.get_by_role("link", name="Posts", exact=True).click()
    await page.wait_for_url("**/posts")


@pytest.mark.parametrize("width", [390, 1280])
async def test_the_post_editor_is_tall_and_grows_within_the_window(
    server: Server, new_browser: NewBrowser, width: int
) -> None:
    page = await page_of_root(server, new_browser, viewport=ViewportSize(width=width, height=844))
    await page.goto("/posts/new")
    text = page.get_by_label("Text")
    lines = "el => (el.clientHeight - 16) / parseFloat(getComputedStyle(el).lineHeight)"
    assert await text.evaluate(lines) >= 12
    await text.fill("A line.\n" * 20)
    assert await text.evaluate(lines) >= 20
    await text.fill("A line.\n" * 200)
    assert await text.evaluate("el => el.offsetHeight") < 844


async def test_the_audit_log_prints_as_unbroken_rows(
    server: Server, new_browser: NewBrowser
) -> None:
    page = await page_of_root(server, new_browser)
    await page.goto("/admin/events")
    await page.evaluate(
        """() => {
          const rows = document.querySelector(".log-entries")
          while (rows.children.length < 50) rows.append(rows.lastElementChild.cloneNode(true))
          while (rows.children.length > 50) rows.lastElementChild.remove()
        }"""
    )
    pdf = await page.pdf(format="A4")
    assert 1 <= pdf.count(b"/Type /Page\n") <= 4
    # On A4 paper, this is the width between the margins.
    await page.set_viewport_size({"width": 718, "height": 1000})
    await page.emulate_media(media="print")
    row = page.locator(".log-entries .row").first
    assert await row.evaluate("el => getComputedStyle(el).breakInside") == "avoid"
    for path in ("/admin/users/root", "/posts/new", "/admin/invitations", "/account/sessions"):
        await page.goto(path)
        await expect(page.locator("h1")).to_be_visible()
        shown = page.locator(":is(form, button, .button, input, textarea, .bar):visible")
        await expect(shown).to_have_count(0)
