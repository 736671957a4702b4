"""Times, theme and language as the browser and the user's preferences choose them."""

from __future__ import annotations

import re
from typing import Any

import pytest
from playwright.async_api import Page, expect

from tests.browser.conftest import NewBrowser, is_live, register, sign_in, submit
from tests.people import Server

TOKYO = {"timezone_id": "Asia/Tokyo", "locale": "en-GB"}
CLOCK = re.compile(r"\d{1,2} \w+ \d{4}, (\d\d):(\d\d)$")


async def shown_and_expected(page: Page, hours: int) -> tuple[str, str]:
    """Return the time of day of the first time of the page that is not relative, and what it is in
    a zone that is so many hours ahead of UTC."""
    time = page.locator("main time[data-shown=time]").first
    utc = await time.get_attribute("datetime")
    assert utc is not None
    found = CLOCK.search(await time.inner_text())
    assert found, await time.inner_text()
    return found[1], f"{(int(utc[11:13]) + hours) % 24:02}"


async def test_the_first_page_already_has_times_in_the_browsers_zone(
    server: Server, new_browser: NewBrowser, name: str
) -> None:
    context = await new_browser(server.url, **TOKYO)
    page = await context.new_page()
    await register(page, name)
    await context.clear_cookies(name="timezone")
    await page.goto("/account")
    await expect(page.locator("#zone")).to_have_text("Asia/Tokyo")
    first = await shown_and_expected(page, 9)
    assert first[0] == first[1]
    text = await page.locator("main time").first.inner_text()
    await page.reload()
    assert await page.locator("html").get_attribute("data-zone") == "Asia/Tokyo"
    assert await page.locator("main time").first.inner_text() == text, "the server writes the same"


@pytest.mark.parametrize("javascript", [True, False])
async def test_the_stored_zone_and_theme_are_used_with_and_without_javascript(
    server: Server, new_browser: NewBrowser, name: str, javascript: bool
) -> None:
    options: dict[str, Any] = {**TOKYO, "java_script_enabled": javascript, "color_scheme": "light"}
    page = await (await new_browser(server.url, **options)).new_page()
    await register(page, name)
    await page.goto("/account/preferences")
    if not javascript:
        await expect(page.locator("#zone")).to_have_text("UTC")
    await page.get_by_label("Time zone").select_option("Asia/Kolkata")
    await page.get_by_label("Dark").check()
    await submit(page)
    await expect(page.locator(".flashes")).to_contain_text("Your preferences were saved.")
    await expect(page.locator("#zone")).to_have_text("Asia/Kolkata")
    await expect(page.locator("html")).to_have_css("color-scheme", "dark")
    await expect(page.get_by_label("Dark")).to_be_checked()


async def test_a_changed_theme_arrives_on_another_worker(
    server: Server, new_browser: NewBrowser, name: str, page: Page
) -> None:
    elsewhere = await (await new_browser(server.url)).new_page()
    await sign_in(elsewhere, name)
    await is_live(elsewhere)
    await page.goto("/account/preferences")
    await page.get_by_label("Dark").check()
    await submit(page)
    await expect(page.locator("html")).to_have_attribute("data-theme", "dark")
    await elsewhere.goto("/account")
    await expect(elsewhere.locator("html")).to_have_attribute("data-theme", "dark")
    await expect(elsewhere.locator("#toasts")).to_be_empty()
