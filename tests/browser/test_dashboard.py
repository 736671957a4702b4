"""The dashboard in an open page."""

from __future__ import annotations

import secrets

from playwright.async_api import expect

from tests.browser.conftest import NewBrowser, is_live, page_of
from tests.people import Person, Server

COUNTED = "before => Number(document.querySelector('#day strong').textContent) > before"


async def test_an_open_dashboard_follows_sign_ins_tabs_and_revocations(
    server: Server, root: Person, ada: Person, new_browser: NewBrowser
) -> None:
    await server.run("user", "grant", ada.username, "moderator")
    dashboard = await page_of(root, new_browser)
    await dashboard.goto("/admin")
    await is_live(dashboard)
    sign_ins = int(await dashboard.locator("#day strong").first.inner_text())
    # The table stays open while the charts are replaced.
    await dashboard.locator("#day-numbers summary").focus()
    await dashboard.keyboard.press("Enter")
    async with ada.another_device() as other:
        await other.sign_in()
    await dashboard.wait_for_function(COUNTED, arg=sign_ins)
    await expect(dashboard.locator("#day-numbers table")).to_be_visible()
    open_page = await page_of(ada, new_browser)
    await open_page.goto("/admin/users")
    await is_live(open_page)
    await server.run("user", "revoke", ada.username, "moderator")
    latest = dashboard.locator("#latest li").first
    await expect(latest).to_contain_text(ada.username)
    await expect(latest).to_contain_text("role.revoked")
    await expect(latest.locator(".receipt")).to_contain_text("1")
    await expect(dashboard.locator("#workers tbody tr")).to_have_count(2)


async def test_a_part_of_the_dashboard_appears_with_its_permission(
    server: Server, ada: Person, new_browser: NewBrowser
) -> None:
    role = f"reader-{secrets.token_hex(4)}"
    await server.run("role", "create", role, "--permission", "users.read")
    await server.run("user", "grant", ada.username, role)
    dashboard = await page_of(ada, new_browser)
    await dashboard.goto("/admin")
    await is_live(dashboard)
    await expect(dashboard.locator("#month svg").first).to_be_visible()
    await expect(dashboard.locator("#latest")).to_be_hidden()
    await dashboard.evaluate("window.same = true")
    await server.run("role", "edit", role, "--allow", "events.read")
    await expect(dashboard.locator("#latest li").first).to_contain_text("role.granted")
    assert await dashboard.evaluate("window.same")
