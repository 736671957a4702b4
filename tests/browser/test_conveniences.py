"""page.js: passwords that can be shown, the rating of a new password, keyboard shortcuts."""

from __future__ import annotations

import secrets

import pytest
from playwright.async_api import expect

from tests.browser.conftest import NewBrowser, register, sign_in
from tests.conftest import PASSWORD
from tests.people import Server


async def test_a_new_password_is_rated_while_typing_and_can_be_shown(
    server: Server, new_browser: NewBrowser
) -> None:
    page = await (await new_browser(server.url)).new_page()
    await page.goto("/register")
    password = page.get_by_label("Password", exact=True)
    words = page.locator(".strength p")
    await password.fill("qwertyuiop")
    await expect(words).to_contain_text("too easy to guess")
    await password.fill(PASSWORD)
    await expect(words).to_have_text("Very good password.")
    await expect(page.locator("meter")).to_have_js_property("value", 4)
    await page.get_by_role("button", name="Show Password", exact=True).press("Enter")
    await expect(password).to_have_attribute("type", "text")
    shown = page.get_by_role("button", name="Show Password", exact=True, pressed=True)
    await shown.press("Enter")
    await expect(password).to_have_attribute("type", "password")
    await password.fill("")
    await expect(page.locator(".strength")).to_be_empty()


async def test_keyboard_shortcuts_list_search_and_go(
    server: Server, new_browser: NewBrowser
) -> None:
    page = await (await new_browser(server.url)).new_page()
    await sign_in(page, "root")
    await page.keyboard.press("?")
    keys = page.get_by_role("dialog", name="Keyboard shortcuts")
    await expect(keys).to_be_visible()
    await page.keyboard.press("Escape")
    await expect(keys).to_be_hidden()
    await page.keyboard.press("/")
    await page.wait_for_url("**/admin/users#q")
    search = page.get_by_role("searchbox")
    await expect(search).to_be_focused()
    await page.keyboard.type("ga?")
    await expect(search).to_have_value("ga?")
    await search.blur()
    await page.keyboard.press("/")
    await expect(search).to_be_focused()
    await search.blur()
    await page.keyboard.type("ga")
    await page.wait_for_url("**/account")


async def test_shortcuts_go_only_where_the_user_may_and_can_be_turned_off(
    server: Server, new_browser: NewBrowser
) -> None:
    page = await (await new_browser(server.url)).new_page()
    await register(page, f"member-{secrets.token_hex(4)}")
    await page.goto("/posts")
    await page.keyboard.type("gu")
    await page.keyboard.press("?")
    keys = page.get_by_role("dialog", name="Keyboard shortcuts")
    await expect(keys.get_by_role("link", name="Users")).to_be_hidden()
    await keys.get_by_role("checkbox").uncheck()
    await page.keyboard.press("Escape")
    await page.reload()
    await page.keyboard.type("?ga")
    await expect(keys).to_be_hidden()
    assert page.url.endswith("/posts")


@pytest.mark.parametrize("script", [True, False], ids=["script", "no script"])
async def test_the_account_menu_opens_the_list_of_shortcuts(
    server: Server, new_browser: NewBrowser, script: bool
) -> None:
    context = await new_browser(server.url, java_script_enabled=script)
    page = await context.new_page()
    await sign_in(page, "root")
    await page.locator(".account-button").click()
    await page.get_by_role("button", name="Keyboard shortcuts").click()
    await expect(page.get_by_role("heading", name="Keyboard shortcuts")).to_be_visible()
