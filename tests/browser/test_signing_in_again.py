"""Signing in inside the dialog of a locked page, which then goes on where it was."""

from __future__ import annotations

import secrets
import time

from playwright.async_api import Locator, Page, expect
from pyotp.totp import TOTP

from tests.browser.conftest import (
    NewBrowser,
    enter_password,
    expect_locked,
    is_live,
    register,
    sign_in_again,
    submit,
)
from tests.browser.test_accessibility import assert_accessible
from tests.browser.test_passkeys import (
    HOME,
    UNANSWERED_SUGGESTIONS,
    add,
    add_authenticator,
    url_with_host_name,
)
from tests.conftest import PASSWORD
from tests.people import Person, Server

# A field that drafts.js does not store: its text is lost with the page.
UNSAVED = "Current password"


async def type_and_lock(server: Server, page: Page, name: str) -> Locator:
    """Type into a page, end its session, and return the dialog with the form of the sign-in."""
    await page.goto("/account/password")
    await is_live(page)
    await page.set_viewport_size({"width": 390, "height": 400})
    await page.get_by_label(UNSAVED, exact=True).fill("typed before")
    await page.evaluate("scrollTo(0, 50)")
    await server.run("user", "end-sessions", name)
    await expect_locked(page, "An administrator ended your session.")
    dialog = page.get_by_role("alertdialog")
    await dialog.get_by_role("link", name="Sign in again").click()
    await expect(dialog.get_by_role("heading")).to_have_text("Sign in")
    return dialog


async def expect_unlocked(server: Server, page: Page, name: str) -> None:
    """The page is as it was, receives messages of the new session, and its forms can be sent."""
    await expect(page.get_by_role("alertdialog")).to_be_hidden()
    await is_live(page)
    field = page.get_by_label(UNSAVED, exact=True)
    await expect(field).to_have_value("typed before")
    await expect(field).to_be_focused()
    assert await page.evaluate("scrollY") == 50
    await server.run("user", "grant", name, "moderator")
    await expect(page.locator("#toasts")).to_contain_text("You now have: ")
    await page.get_by_label("New password", exact=True).fill("short")
    await page.get_by_label("Repeat new password", exact=True).fill("short")
    await submit(page)
    await expect(page.locator("main [role=alert]")).to_contain_text("your attention")


async def test_a_password_unlocks_the_page_where_it_was(
    server: Server, page: Page, name: str
) -> None:
    dialog = await type_and_lock(server, page, name)
    await expect(dialog.get_by_label("Username or email address")).to_be_focused()
    await enter_password(page, name, PASSWORD[::-1])
    await expect(dialog.get_by_role("alert")).to_contain_text("Incorrect username or password")
    password = dialog.get_by_label("Password", exact=True)
    await dialog.get_by_role("button", name="Show Password", exact=True).click()
    await expect(password).to_have_attribute("type", "text")
    await expect(dialog.get_by_label("Username or email address")).to_have_value(name)
    await enter_password(page, name)
    await expect_unlocked(server, page, name)


async def test_a_second_factor_is_asked_for_in_the_dialog(
    server: Server, page: Page, name: str
) -> None:
    await page.goto("/account/factors/totp")
    app = TOTP(await page.locator("#totp-secret").inner_text())
    now = int(time.time())
    await page.get_by_label("Code").fill(app.at(now))
    await submit(page)
    await expect(page.get_by_role("heading", level=1)).to_have_text("Recovery codes")
    recovery = await page.locator("#recovery-codes code").first.inner_text()

    dialog = await type_and_lock(server, page, name)
    await enter_password(page, name)
    await expect(dialog.get_by_role("heading")).to_have_text("Two-factor authentication")
    await dialog.get_by_label("Code").fill("000000")
    await dialog.get_by_role("button", name="Sign in", exact=True).click()
    await expect(dialog.get_by_role("alert")).to_be_visible()
    await dialog.get_by_label("Code").fill(app.at(now + 30))
    await dialog.get_by_role("button", name="Sign in", exact=True).click()
    await expect_unlocked(server, page, name)

    dialog = await type_and_lock(server, page, name)
    await enter_password(page, name)
    await dialog.get_by_label("Code").fill(recovery)
    await dialog.get_by_role("button", name="Sign in", exact=True).click()
    await expect(page.locator(".flash")).to_contain_text("You signed in with a recovery code")
    await expect(page.get_by_label(UNSAVED, exact=True)).to_have_value("typed before")


async def test_a_passkey_unlocks_the_page(server: Server, new_browser: NewBrowser) -> None:
    page = await (await new_browser(url_with_host_name(server))).new_page()
    await add_authenticator(page)
    await page.add_init_script(UNANSWERED_SUGGESTIONS)
    name = f"ada-{secrets.token_hex(4)}"
    await register(page, name)
    await page.goto(HOME)
    await add(page, "Phone")
    await expect(page.get_by_role("heading", level=1)).to_have_text("Recovery codes")

    dialog = await type_and_lock(server, page, name)
    await dialog.get_by_role("button", name="Sign in with a passkey").click()
    await expect_unlocked(server, page, name)

    dialog = await type_and_lock(server, page, name)
    await enter_password(page, name)
    await dialog.get_by_role("button", name="Use a passkey").click()
    await expect(dialog).to_be_hidden()
    await is_live(page)

    # The virtual authenticator stands for the user who chooses the suggestion.
    await page.evaluate("delete navigator.credentials.get")
    await server.run("user", "end-sessions", name)
    await expect_locked(page, "An administrator ended your session.")
    await dialog.get_by_role("link", name="Sign in again").click()
    await expect(dialog).to_be_hidden()
    await is_live(page)


async def test_another_user_gets_a_page_of_their_own(
    server: Server, page: Page, name: str, bob: Person
) -> None:
    await page.goto("/posts/new")
    await page.get_by_label("Title").fill("Kept for the writer")
    await is_live(page)
    await server.run("user", "end-sessions", name)
    await page.evaluate("window.same = true")
    await sign_in_again(page, bob.username)
    await expect(page.get_by_label("Title")).to_have_value("")
    assert not await page.evaluate("window.same")

    await is_live(page)
    await server.run("user", "end-sessions", bob.username)
    await sign_in_again(page, name)
    await expect(page.get_by_label("Title")).to_have_value("Kept for the writer")


async def test_signing_in_unlocks_the_other_tabs_of_the_user(
    server: Server, page: Page, name: str
) -> None:
    other = await page.context.new_page()
    await other.goto("/posts")
    await is_live(other)
    await other.evaluate("window.same = true")
    await type_and_lock(server, page, name)
    await expect_locked(other, "An administrator ended your session.")
    await enter_password(page, name)
    await expect(other.get_by_role("alertdialog")).to_be_hidden()
    await is_live(other)
    assert await other.evaluate("window.same")


async def test_a_disabled_account_is_explained_in_the_dialog(
    server: Server, page: Page, name: str
) -> None:
    dialog = await type_and_lock(server, page, name)
    await assert_accessible(page)
    await server.run("user", "disable", name)
    await enter_password(page, name)
    await expect(dialog).to_contain_text("An administrator disabled your account.")
    await expect(page.get_by_label(UNSAVED, exact=True)).to_have_value("typed before")
