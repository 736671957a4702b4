"""A request for a role, from the user who asks to the administrator who grants it."""

from __future__ import annotations

from playwright.async_api import expect

from tests.browser.conftest import NewBrowser, is_live, page_of
from tests.people import Person, Server


async def test_a_request_is_granted_live_for_two_hours(
    server: Server, root: Person, ada: Person, new_browser: NewBrowser
) -> None:
    role = f"writer-{ada.username}"
    await server.run("role", "create", role, "--permission", "posts.write")
    admin, user = await page_of(root, new_browser), await page_of(ada, new_browser)
    await admin.goto("/admin/requests")
    await is_live(admin)
    await user.goto("/account/roles")
    await user.get_by_label("Role", exact=True).select_option(role)
    await user.get_by_label("Reason", exact=True).fill("For the print run.")
    await user.get_by_role("button", name="Ask for the role").click()
    await expect(user.locator("#own-requests")).to_contain_text("For the print run.")
    await is_live(user)
    # The administrator sees it without loading the page again.
    await expect(admin.locator("#toasts")).to_contain_text(f"asks for the role {role}")
    row = admin.locator(".grant", has_text=ada.username)
    await expect(row).to_contain_text("For the print run.")
    await expect(admin.locator("#open-requests .badge")).to_be_visible()
    await row.locator("summary", has_text="Grant").click()
    await row.get_by_label("Until optional").fill("2h")
    await row.get_by_role("button", name="Grant").click()
    await expect(admin.locator(".flash")).to_contain_text(f"{ada.username} has the role {role}")
    # So does the user.
    await expect(user.locator("#toasts")).to_contain_text(f"gave you the role {role} until")
    await expect(user.locator("#own-requests")).to_contain_text("granted")
    await expect(user.locator("#held-roles")).to_contain_text(role)
    await expect(user.locator("#held-roles")).to_contain_text("ends on")
    await server.run("role", "delete", role)
