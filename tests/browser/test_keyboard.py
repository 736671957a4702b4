"""What users and administrators do most, by keyboard alone, with and without JavaScript."""

from __future__ import annotations

import pytest
from playwright.async_api import Locator, Page, expect

from tests.browser.conftest import NewBrowser
from tests.conftest import PASSWORD, long
from tests.people import Person, Server

IS_FOCUSED = "each => each === document.activeElement"


async def reach(page: Page, target: Locator) -> None:
    """Press Tab until the element has the focus."""
    element = await target.element_handle()
    for _ in range(100):
        if await element.evaluate(IS_FOCUSED):
            return
        await page.keyboard.press("Tab")
    raise AssertionError(f"the keyboard does not reach {target}")


async def press(page: Page, target: Locator, key: str = "Enter") -> None:
    await reach(page, target)
    await page.keyboard.press(key)


async def enter(page: Page, target: Locator, text: str) -> None:
    """Type into a field. In a select element, this selects the option that begins with the text."""
    await reach(page, target)
    await page.keyboard.type(text)


async def follow(page: Page, target: Locator, address: str) -> None:
    await press(page, target)
    await page.wait_for_url(f"**{address}")


async def sign_in(page: Page, username: str) -> None:
    await page.goto("/login")
    await enter(page, page.get_by_label("Username or email address"), username)
    await enter(page, page.get_by_label("Password", exact=True), PASSWORD)
    await page.keyboard.press("Enter")
    await page.wait_for_url("**/")


async def open_by(page: Page, keys: str, link: str, address: str, *, script: bool) -> None:
    """Open a page with its shortcut, or with its link in the header."""
    if script:
        await page.keyboard.type(keys)
        await page.wait_for_url(f"**{address}")
    else:
        menu = page.get_by_role("navigation", name="Main")
        await follow(page, menu.get_by_role("link", name=link), address)


async def open_settings(page: Page, name: str, address: str) -> None:
    await press(page, page.locator(".account-button"))
    await follow(page, page.locator("#account-menu a[href='/account']"), "/account")
    area = page.get_by_role("navigation", name="Account settings")
    await follow(page, area.get_by_role("link", name=name), address)


async def is_told(page: Page, words: str) -> None:
    await expect(page.locator(".flashes")).to_contain_text(words)


@pytest.mark.parametrize("script", [True, long(False)])
async def test_a_user_needs_only_the_keyboard(
    server: Server, root: Person, ada: Person, new_browser: NewBrowser, script: bool
) -> None:
    role = f"writer-{ada.username}"
    await root.post("/admin/roles/new", name=role, description="", permissions="posts.write")
    page = await (await new_browser(server.url, java_script_enabled=script)).new_page()
    await sign_in(page, ada.username)
    await open_settings(page, "Profile", "/account/profile")
    await enter(page, page.get_by_label("Display name"), "Ada L.\n")
    await is_told(page, "Your profile was saved.")

    area = page.get_by_role("navigation", name="Account settings")
    await follow(page, area.get_by_role("link", name="Roles"), "/account/roles")
    await enter(page, page.get_by_label("Role", exact=True), role)
    await enter(page, page.get_by_label("Reason", exact=True), "For the print run.")
    await press(page, page.get_by_role("button", name="Ask for the role"))
    await expect(page.locator("#own-requests")).to_contain_text("For the print run.")

    bell = page.locator(".nav-notices > button" if script else ".nav-notices > a")
    await press(page, bell)
    await press(page, page.get_by_role("button", name="Mark all as read"))
    await expect(page.locator("[data-unread]:visible")).to_have_count(0)

    await open_by(page, "gp", "Posts", "/posts", script=script)
    await follow(page, page.get_by_role("link", name="Write a post"), "/posts/new")
    await enter(page, page.get_by_label("Title"), f"Notes of {ada.username}")
    await enter(page, page.get_by_label("Text"), "Some **strong** words.")
    await press(page, page.get_by_role("button", name="Preview"))
    await expect(page.locator(".preview strong")).to_have_text("strong")
    await press(page, page.get_by_role("button", name="Publish"))
    await expect(page.get_by_role("heading", level=1)).to_have_text(f"Notes of {ada.username}")
    if script:
        await page.keyboard.press("/")
        await page.wait_for_url("**/posts#q")
    else:
        await open_by(page, "gp", "Posts", "/posts", script=script)
    await enter(page, page.get_by_role("searchbox"), f"{ada.username}\n")
    await page.wait_for_url("**/posts?q=*")
    await expect(page.locator("main .rows").get_by_role("link").first).to_contain_text("Notes of")

    await open_settings(page, "Preferences", "/account/preferences")
    await enter(page, page.get_by_label("Language"), "Deutsch")
    await press(page, page.get_by_label("As the system"), "ArrowDown")
    await page.keyboard.press("ArrowDown")
    await press(page, page.get_by_label("Roles that you are given"), "Space")
    await press(page, page.get_by_role("button", name="Save preferences"))
    await is_told(page, "Ihre Einstellungen wurden gespeichert.")
    await expect(page.locator("html[lang=de][data-theme=dark]")).to_have_count(1)
    await expect(page.get_by_label("Rollen, die Sie erhalten")).to_be_checked()
    await press(page, page.locator(".account-button"))
    await press(page, page.get_by_role("button", name="Abmelden"))
    await expect(page.get_by_role("link", name="Sign in").first).to_be_visible()
    await root.post(f"/admin/roles/{role}/delete")


@pytest.mark.parametrize("script", [False, long(True)])
async def test_an_administrator_needs_only_the_keyboard(
    server: Server, root: Person, ada: Person, bob: Person, new_browser: NewBrowser, script: bool
) -> None:
    role = f"crew-{bob.username}"
    await root.post("/admin/roles/new", name=role, description="", permissions="posts.write")
    await root.post(f"/admin/users/{bob.username}/grants", role=role)
    wanted = f"guest-{bob.username}"
    await root.post("/admin/roles/new", name=wanted, description="", permissions="posts.write")
    await bob.post("/account/roles", role=wanted, reason="For a week.")
    await root.post(f"/admin/users/{ada.username}/grants", role="admin")
    page = await (await new_browser(server.url, java_script_enabled=script)).new_page()
    await sign_in(page, ada.username)
    if script:
        await page.keyboard.press("?")
    else:
        await press(page, page.locator(".account-button"))
        await press(page, page.get_by_role("button", name="Keyboard shortcuts"))
    shortcuts = page.get_by_role("heading", name="Keyboard shortcuts")
    await expect(shortcuts).to_be_visible()
    await page.keyboard.press("Escape")
    await expect(shortcuts).to_be_hidden()

    # A request, granted for two hours.
    await open_by(page, "gq", "Requests", "/admin/requests", script=script)
    request = page.locator(".grant", has_text=bob.username)
    await press(page, request.locator("summary", has_text="Grant"))
    await enter(page, request.get_by_label("Until optional"), "2h\n")
    await is_told(page, f"{bob.username} has the role {wanted}")

    # A change of a role, which is previewed before it is saved.
    await open_by(page, "gr", "Roles", "/admin/roles", script=script)
    await press(page, page.get_by_label(f"posts.moderate for {role}"), "Space")
    await press(page, page.get_by_role("button", name=f"changes of {role}"))
    await expect(page.locator("main")).to_contain_text("One user has this role.")
    await press(page, page.get_by_role("button", name="Save changes"))
    await is_told(page, f"The role {role} was changed")

    # A revocation for a selected user, and its preview.
    if script:
        await page.keyboard.press("/")
        await page.wait_for_url("**/admin/users#q")
    else:
        await open_by(page, "gu", "Users", "/admin/users", script=script)
    await enter(page, page.get_by_role("searchbox"), bob.username + ("" if script else "\n"))
    await expect(page.locator("tbody tr")).to_have_count(1)
    await press(page, page.get_by_label(f"Select {bob.username}"), "Space")
    await enter(page, page.get_by_label("Action"), "Revoke")
    await enter(page, page.locator("#bulk-role"), role)
    await press(page, page.get_by_role("button", name="Preview"))
    await expect(page.locator("main")).to_contain_text("1 user is affected.")
    await expect(page.locator("main")).to_contain_text("1 active session will end")
    await press(page, page.get_by_role("button", name="Revoke role"))
    await expect(page.locator("main")).to_contain_text("Done for 1 of 1 user")

    # The entry of the audit log, from which it is undone.
    await open_by(page, "gl", "Audit log", "/admin/events", script=script)
    await enter(page, page.get_by_label("Person"), bob.username)
    await enter(page, page.get_by_label("Activity"), "Role revoked")
    await press(page, page.get_by_role("button", name="Filter"))
    entries = page.locator(".log-entries > li")
    await expect(entries).to_have_count(1)
    await expect(entries).to_contain_text(f"{ada.username} revoked the role {role}")
    await press(page, entries.get_by_role("link", name="Undo…"))
    await press(page, page.get_by_role("button", name="Undo"))
    await is_told(page, "The action was undone.")

    # The end of another session.
    await open_by(page, "gs", "Sessions", "/admin/sessions", script=script)
    await enter(page, page.get_by_label("Username"), f"{ada.username}\n")
    sessions = page.locator("tbody tr")
    await expect(sessions).to_have_count(2)
    await press(page, sessions.last.get_by_role("link", name="End…"))
    await press(page, page.get_by_role("button", name="End session"))
    await expect(page.locator(".flashes")).to_contain_text("ended")
    assert await ada.me() is None
    for each in (role, wanted):
        await root.post(f"/admin/roles/{each}/delete")
