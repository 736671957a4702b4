"""Open pages follow changes of permissions and sessions that are made elsewhere."""

from __future__ import annotations

import secrets
from urllib.parse import urlsplit

import pytest
from playwright.async_api import Page, expect

from tests.browser.conftest import (
    NewBrowser,
    expect_locked,
    is_live,
    register,
    sign_in,
    sign_out,
    submit,
)
from tests.conftest import PASSWORD
from tests.people import Person, Server


@pytest.fixture
async def page(page: Page) -> Page:
    """Return the only tab of a new user, on the home page, signed in and connected."""
    await is_live(page)
    return page


async def test_ending_a_session_locks_every_tab_of_its_browser_only(
    server: Server, new_browser: NewBrowser, page: Page, name: str
) -> None:
    second = await page.context.new_page()
    await second.goto("/account")
    await is_live(second)
    elsewhere = await (await new_browser(server.url)).new_page()
    await sign_in(elsewhere, name)
    await is_live(elsewhere)
    await expect(page.locator("#toasts")).to_contain_text("New sign-in: ")

    await elsewhere.goto("/account/sessions")
    await elsewhere.get_by_role("button", name="End session on").click()

    for tab in (page, second):
        await expect_locked(tab, "You ended this session from another device.")
    await is_live(elsewhere)
    await expect(elsewhere.get_by_role("alertdialog")).to_be_hidden()


async def test_signing_out_in_one_tab_locks_the_other(page: Page) -> None:
    other = await page.context.new_page()
    await other.goto("/posts")
    await is_live(other)
    await sign_out(other)
    await expect_locked(page, "You signed out.")


async def test_the_command_line_locks_an_open_page(server: Server, page: Page, name: str) -> None:
    await server.run("user", "disable", name)
    await expect_locked(page, "An administrator disabled your account.")
    await page.goto(await page.locator("#ended-action").get_attribute("href") or "")
    await page.get_by_label("Username or email address").fill(name)
    await page.get_by_label("Password", exact=True).fill(PASSWORD[::-1])
    await submit(page)
    await expect(page.get_by_role("alert")).to_contain_text("Incorrect username or password")
    await expect(page.get_by_label("Username or email address")).to_have_value(name)
    await page.get_by_label("Password", exact=True).fill(PASSWORD)
    await submit(page)
    await expect(page.get_by_role("heading", level=1)).to_have_text("You cannot sign in")
    await expect(page.locator("main")).to_contain_text("An administrator disabled your account.")


async def test_an_update_in_the_database_locks_an_open_page(
    server: Server, page: Page, name: str
) -> None:
    async with server.database() as database:
        await database.users.update_one({"username": name}, {"$set": {"roles": []}})
    await expect_locked(page, "revoked one of your roles")


async def test_controls_follow_role_edits_without_a_reload(
    server: Server, page: Page, name: str, root: Person
) -> None:
    role = f"sweeper-{secrets.token_hex(4)}"
    await server.run("role", "create", role)
    await server.run("user", "grant", name, role)
    author = Person(server.url, f"author-{secrets.token_hex(4)}", PASSWORD)
    async with author:
        await author.register()
        answer = await author.post("/posts/new", page="/posts/new", title="Hers", body="Words.")
    await page.goto(answer.headers["location"])
    await is_live(page)
    delete = page.locator(".post-tools summary")
    await expect(delete).to_be_hidden()
    await page.get_by_label("Your comment").fill("I was typing this")

    await server.run("role", "edit", role, "--allow", "posts.moderate")
    await expect(delete).to_be_visible()
    await server.run("role", "edit", role, "--forbid", "posts.moderate")
    await expect(delete).to_be_hidden()

    await expect(page.get_by_label("Your comment")).to_have_value("I was typing this")
    await expect(page.get_by_role("alertdialog")).to_be_hidden()
    await server.run("role", "delete", role)
    await expect_locked(page, "deleted a role that you had")


async def test_a_page_is_emptied_when_its_permission_is_revoked(
    server: Server, page: Page, name: str
) -> None:
    role = f"reader-{secrets.token_hex(4)}"
    await server.run("role", "create", role, "--permission", "users.read")
    await server.run("user", "grant", name, role)
    await page.goto("/admin/users")
    await is_live(page)
    await expect(page.get_by_role("table")).to_be_visible()
    await server.run("role", "edit", role, "--forbid", "users.read")
    await expect(page.get_by_role("heading", name="You no longer have permission")).to_be_visible()
    await expect(page.get_by_role("table")).to_have_count(0)


async def test_changing_the_password_locks_the_other_browsers_only(
    server: Server, new_browser: NewBrowser, page: Page, name: str
) -> None:
    elsewhere = await (await new_browser(server.url)).new_page()
    await sign_in(elsewhere, name)
    await is_live(elsewhere)
    tab = await page.context.new_page()
    await tab.goto("/posts")
    await is_live(tab)

    await page.goto("/account/password")
    await page.get_by_label("Current password", exact=True).fill(PASSWORD)
    await page.get_by_label("New password", exact=True).fill(PASSWORD[::-1])
    await page.get_by_label("Repeat new password", exact=True).fill(PASSWORD[::-1])
    await submit(page)

    await expect(page.locator(".flash")).to_contain_text("Your password was changed")
    await expect_locked(elsewhere, "Your password was changed.")
    await expect(tab.get_by_role("alertdialog")).to_be_hidden()
    await tab.goto("/account")
    await expect(tab.get_by_role("heading", level=1)).to_contain_text("Account")


async def test_user_input_is_escaped_wherever_it_is_shown(
    server: Server, page: Page, name: str, bob: Person
) -> None:
    """This includes invalid usernames and messages to an open page (ASVS 3.2.2)."""
    hostile = "<img src=x onerror=alert(1)><script>alert(2)</script>"
    page.on("dialog", lambda dialog: pytest.fail(f"script ran: {dialog.message}"))
    await page.goto("/posts/new")
    await page.get_by_label("Title").fill(hostile)
    await page.get_by_label("Text").fill(hostile)
    await submit(page)
    await expect(page.get_by_role("heading", level=1)).to_have_text(hostile)
    await expect(page.locator(".prose").first).to_have_text(hostile)
    path = urlsplit(page.url).path
    await page.goto("/posts")
    await expect(page.get_by_role("link", name=hostile).first).to_be_visible()

    named = f"{hostile[:28]}{name}"
    async with server.database() as database:
        await database.users.update_one({"username": bob.username}, {"$set": {"username": named}})
    await is_live(page)
    assert (await bob.post(f"{path}/comments", body=hostile)).status_code == 303
    toast = page.locator("#toasts")
    await expect(toast).to_contain_text(named)
    await expect(toast).to_contain_text(hostile)
    for place in (path, "/account/notices"):
        await page.goto(place)
        await expect(page.locator("main")).to_contain_text(named)
        await expect(page.locator("main img, main script, #toasts img")).to_have_count(0)


async def test_browser_storage_contains_no_secret(server: Server, page: Page, name: str) -> None:
    """Only the cursor and drafts of fields that are not secret are stored (ASVS 14.3.3)."""
    secret = "an entirely different phrase"
    await page.goto("/account/password")
    await is_live(page)
    for label in ("Current password", "New password", "Repeat new password"):
        await page.get_by_label(label, exact=True).fill(secret)
    await server.run("user", "end-sessions", name)
    await expect_locked(page, "An administrator ended your session.")
    kept = await page.evaluate("() => ({...sessionStorage, ...localStorage})")
    assert [key for key in kept if not key.startswith(("cursor:", "draft:"))] == []
    assert secret not in str(kept)
    assert await page.evaluate("() => document.cookie") == ""


async def test_posting_and_signing_in_again_work_without_javascript(
    server: Server, new_browser: NewBrowser, name: str
) -> None:
    page = await (await new_browser(server.url, java_script_enabled=False)).new_page()
    await register(page, name)
    await page.goto("/posts/new")
    await page.get_by_label("Title").fill("Plain")
    await page.get_by_label("Text").fill("No script ran here.")
    await submit(page)
    await page.get_by_label("Your comment").fill("Nor here.")
    await submit(page)
    await expect(page.locator(".comment")).to_contain_text("Nor here.")
    await server.run("user", "end-sessions", name)
    await page.goto("/account")
    await expect(page.locator("main")).to_contain_text("An administrator ended your session.")
    await sign_in(page, name)
    await page.wait_for_url("**/account")


async def test_a_refused_form_keeps_its_input_and_marks_the_field(page: Page) -> None:
    await page.goto("/posts/new")
    await page.get_by_label("Text").fill("A text without a title")
    await page.locator("main form.form").evaluate("form => form.noValidate = true")
    await submit(page)
    title = page.get_by_label("Title")
    await expect(title).to_have_attribute("aria-invalid", "true")
    await expect(title).to_have_accessible_description("Enter a title.")
    await expect(page.get_by_label("Text")).to_have_value("A text without a title")
