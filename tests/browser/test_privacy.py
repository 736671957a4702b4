"""Deleting and restoring an account, exporting its data, and ending an unknown session."""

from __future__ import annotations

import json
import zipfile

import pytest
from playwright.async_api import Page, expect

from quartapp import clock
from tests.browser.conftest import (
    NewBrowser,
    enter_password,
    expect_locked,
    is_live,
    sign_in,
    submit,
)
from tests.browser.test_email import email_text
from tests.people import Server, until


@pytest.fixture
async def page(server: Server, page: Page, name: str) -> Page:
    # Unverified addresses get no notifications.
    await server.run("user", "verify", name)
    return page


async def delete(page: Page, name: str) -> None:
    await page.goto("/account/export")
    await page.get_by_role("link", name="Delete account…").click()
    await page.get_by_label("Username").fill(name)
    await page.get_by_role("button", name="Delete account").click()


async def test_an_account_is_deleted_restored_and_erased(
    server: Server, new_browser: NewBrowser, page: Page, name: str
) -> None:
    await page.goto("/posts/new")
    await page.get_by_label("Title").fill("What I think")
    await page.get_by_label("Text").fill("Much.")
    await submit(page)
    post = page.url
    elsewhere = await (await new_browser(server.url)).new_page()
    await sign_in(elsewhere, name)
    await is_live(elsewhere)

    await delete(page, "somebody else")
    await expect(page.get_by_label("Username")).to_have_value("somebody else")
    await expect(page.get_by_role("alert")).to_be_visible()
    await delete(page, name)
    await expect(page.locator(".flashes")).to_contain_text("permanently deleted on")
    await expect_locked(elsewhere, "You deactivated or deleted your account.")
    assert "/login" in await email_text(server, name, "will be deleted")

    await enter_password(elsewhere, name)
    await expect(elsewhere.get_by_role("heading", level=1)).to_have_text(
        "Your account will be deleted"
    )
    await elsewhere.get_by_role("button", name="Keep my account").click()
    await expect(elsewhere.locator(".flashes")).to_contain_text("Welcome back")
    await is_live(elsewhere)

    await delete(elsewhere, name)
    await expect(elsewhere.locator(".flashes")).to_contain_text("permanently deleted on")
    async with server.database() as database:
        due = {"$set": {"deletes_at": clock.now()}}
        await database.users.update_one({"username": name}, due)

        async def gone() -> bool:
            return await database.users.find_one({"username": name}) is None

        await until(gone, within=20)
    await elsewhere.goto(post)
    await expect(elsewhere.locator(".byline")).to_contain_text("deleted user")
    await expect(elsewhere.get_by_role("heading", level=1)).to_have_text("What I think")
    await expect(elsewhere.get_by_role("main")).not_to_contain_text(name)


async def test_a_user_exports_their_data_once_and_is_then_rate_limited(
    page: Page, name: str
) -> None:
    await page.goto("/account")
    await page.get_by_role("link", name="Data", exact=True).click()
    async with page.expect_download() as download:
        await page.get_by_role("button", name="Download").click()
    file = await download.value
    assert file.suggested_filename == f"{name}.zip"
    with zipfile.ZipFile(await file.path()) as archive:
        found = json.loads(archive.read(f"{name}.json"))
    assert found["account"]["email"] == f"{name}@example.org"
    assert found["sessions"][0]["ip"] == "127.0.0.1"
    await page.get_by_role("button", name="Download").click()
    await expect(page.get_by_role("alert")).to_contain_text("Try again in")


async def test_a_new_sign_in_appears_in_the_activity_and_can_be_ended(
    server: Server, new_browser: NewBrowser, page: Page, name: str
) -> None:
    await page.goto("/account/timeline")
    await is_live(page)
    rows = page.locator("main li.row")
    await expect(rows.filter(has_text="Signed in")).to_have_count(1)
    await expect(rows.filter(has_text="this session")).to_have_count(1)

    other = await (await new_browser(server.url)).new_page()
    await sign_in(other, name)
    await is_live(other)
    await page.get_by_role("link", name="1 new").click()
    await expect(rows.filter(has_text="Signed in")).to_have_count(2)
    newest = rows.first
    await expect(newest).to_contain_text("signed in")
    await newest.locator("summary").click()
    await newest.locator(".confirm-box button").click()

    await page.wait_for_url("**/account/timeline/not-me")
    await expect(page.locator("main")).to_contain_text("All your other sessions were ended")
    await expect_locked(other, "You ended this session from another device.")
    assert "/account/timeline" in await email_text(server, name, "new browser")
    await page.goto("/account/timeline")
    await expect(rows.filter(has_text="not you")).not_to_have_count(0)
