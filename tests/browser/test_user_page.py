"""The tabs of a user's page, by keyboard alone, and the live end of a session on its tab."""

from __future__ import annotations

from playwright.async_api import Page, expect

from tests.browser.conftest import NewBrowser, expect_locked, is_live, page_of
from tests.people import Person

REACHED = "selector => document.activeElement.matches(selector)"


async def press_enter_on(page: Page, selector: str) -> None:
    """Move the focus with the Tab key until it is on the element, and press Enter."""
    for _ in range(80):
        await page.keyboard.press("Tab")
        if await page.evaluate(REACHED, selector):
            return await page.keyboard.press("Enter")
    raise AssertionError(f"the Tab key does not reach {selector}")


async def test_a_session_is_ended_by_keyboard_and_leaves_its_tab_live(
    root: Person, ada: Person, new_browser: NewBrowser
) -> None:
    user = await page_of(ada, new_browser)
    await user.goto("/posts")
    await is_live(user)
    admin = await page_of(root, new_browser)
    home = f"/admin/users/{ada.username}"
    watching = await admin.context.new_page()
    await watching.goto(f"{home}/sessions")
    await is_live(watching)
    await expect(watching.locator(".session")).to_have_count(1)

    await admin.goto(home)
    await press_enter_on(admin, f'a[href="{home}/roles"]')
    await expect(admin.locator("#held-roles")).to_contain_text("Without this role")
    await press_enter_on(admin, f'a[href="{home}/sessions"]')
    await expect(admin.locator('.tabs [aria-current="page"]')).to_have_text("Sessions")
    await press_enter_on(admin, 'main a[href^="/admin/sessions/"]')
    await expect(admin.locator("main")).to_contain_text(
        "1 active session will end, with 1 open tab."
    )
    await press_enter_on(admin, "main button.danger-solid")
    await expect(admin.locator(".flash")).to_contain_text("ended")
    assert admin.url.endswith(f"{home}/sessions")
    await expect_locked(user, "ended your session")
    for page in (admin, watching):
        await expect(page.locator("main")).to_contain_text("has no active sessions.")
        await expect(page.locator("h1")).to_have_text(ada.username)
