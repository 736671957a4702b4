"""Flows with an email: verifying an address, accepting an invitation, resetting a password."""

from __future__ import annotations

import pytest
from playwright.async_api import Page, expect

from quartapp.email.transports import MailFolder
from tests.browser.conftest import (
    NewBrowser,
    is_live,
    register,
    register_by_form,
    sign_in,
    submit,
)
from tests.integration.routes.conftest import code_in, link_in
from tests.people import Server, until

NEW = "quite another horse and battery"


@pytest.fixture
async def page(server: Server, new_browser: NewBrowser) -> Page:
    return await (await new_browser(server.url)).new_page()


async def email_text(server: Server, name: str, subject: str) -> str:
    """Wait for an email with this subject to the user, and return the text of the newest one."""
    found: list[str] = []

    async def arrived() -> bool:
        found[:] = [
            each.text
            for each in MailFolder(server.data / "mail").newest(500)
            if each.to == f"{name}@example.org" and subject in each.subject
        ]
        return bool(found)

    await until(arrived)
    return found[0]


async def test_a_new_user_verifies_their_address_with_the_code(
    server: Server, page: Page, name: str
) -> None:
    await register_by_form(page, name)
    await page.goto("/account")
    await expect(page.locator(".notice-box")).to_contain_text("not verified yet")
    await page.get_by_role("link", name="Verify it").click()
    code = code_in(await email_text(server, name, "Verify"))
    await page.get_by_label("Code").fill(f"{(int(code) + 1) % 10**6:06}")
    await submit(page)
    await expect(page.get_by_role("alert")).to_be_visible()
    await expect(page.locator("main")).to_contain_text("4 more tries")
    await page.get_by_label("Code").fill(f"{code[:3]} {code[3:]}")
    await submit(page)
    await expect(page.locator(".flashes")).to_contain_text("verified")
    await expect(page.locator(".notice-box")).to_have_count(0)


async def test_a_user_without_javascript_verifies_with_the_emailed_link(
    server: Server, new_browser: NewBrowser, name: str
) -> None:
    page = await (await new_browser(server.url, java_script_enabled=False)).new_page()
    await register(page, name)
    link = link_in(await email_text(server, name, "Verify"))
    assert server.url + link in await email_text(server, name, "Verify"), "the address served"
    await page.goto("/dev/mail")
    # Other tests use the same server, so the page may list other emails too.
    row = page.locator("li", has_text=f"{name}@example.org")
    await row.get_by_role("link", name="Verify your email address").click()
    await page.locator("pre a").click()
    await page.get_by_role("button", name="Verify email address").click()
    await expect(page.locator(".flashes")).to_contain_text("verified")


async def test_an_invited_user_registers_and_has_the_role(
    server: Server, new_browser: NewBrowser, page: Page, name: str
) -> None:
    admin = await (await new_browser(server.url)).new_page()
    await sign_in(admin, "root")
    await admin.goto("/admin/invitations")
    await admin.get_by_label("Email address").fill(f"{name}@example.org")
    await admin.get_by_label("Role").select_option("moderator")
    await admin.get_by_role("button", name="Send invitation").click()
    row = admin.get_by_role("row").filter(has_text=f"{name}@example.org")
    await expect(row).to_contain_text("pending")
    assert "moderator" in await email_text(server, name, "invited")
    await is_live(admin)

    await page.goto("/dev/mail")
    mine = page.locator("li", has_text=f"{name}@example.org")
    await mine.get_by_role("link", name="You are invited").click()
    await page.locator("pre a").click()
    await expect(page.locator("main")).to_contain_text(f"{name}@example.org")
    await page.get_by_label("Username").fill("root")
    await page.get_by_label("Password", exact=True).fill(NEW)
    await page.get_by_label("Repeat password", exact=True).fill(NEW)
    await submit(page)
    await expect(page.locator("main")).to_contain_text("taken")
    await page.get_by_label("Username").fill(name)
    await page.get_by_label("Password", exact=True).fill(NEW)
    await page.get_by_label("Repeat password", exact=True).fill(NEW)
    await submit(page)
    await expect(page.get_by_role("heading", name=f"Hello, {name}")).to_be_visible()
    await page.goto("/account")
    await expect(page.locator("[data-roles]")).to_have_text("member, moderator")
    await expect(page.locator(".notice-box")).to_have_count(0)
    # The inviting administrator receives a notification on the open page.
    await expect(admin.locator(".toast")).to_contain_text(f"{name} accepted your invitation")


async def test_resetting_a_password_ends_the_other_session(
    server: Server, new_browser: NewBrowser, page: Page, name: str
) -> None:
    elsewhere = await (await new_browser(server.url)).new_page()
    await register(elsewhere, name)
    await is_live(elsewhere)

    await page.goto("/login")
    await page.get_by_role("link", name="Forgot your password?").click()
    await page.get_by_label("Email address").fill(f"{name}@example.org")
    await submit(page)
    await expect(page.get_by_role("heading", name="Check your email")).to_be_visible()

    link = link_in(await email_text(server, name, "Set a new password"))
    await page.goto(link)
    await page.get_by_label("New password", exact=True).fill(NEW)
    await page.get_by_label("Repeat new password", exact=True).fill("something else")
    await submit(page)
    await expect(page.locator("main")).to_contain_text("do not match")
    await page.get_by_label("New password", exact=True).fill(NEW)
    await page.get_by_label("Repeat new password", exact=True).fill(NEW)
    await submit(page)
    await page.wait_for_url("**/login")
    await expect(page.locator(".flashes")).to_contain_text("Your password was changed")
    dialog = elsewhere.get_by_role("alertdialog")
    await expect(dialog).to_contain_text("Your password was changed")

    await page.get_by_label("Username or email address").fill(name)
    await page.get_by_label("Password", exact=True).fill(NEW)
    await submit(page)
    await expect(page.get_by_role("heading", name=f"Hello, {name}")).to_be_visible()
    assert "/forgot" in await email_text(server, name, "Your password was changed")

    await page.goto(link)
    await expect(page.get_by_role("heading", name="no longer works")).to_be_visible()
