"""An authenticator app: setting it up, signing in with it, and using a recovery code instead."""

from __future__ import annotations

import secrets
import time

from playwright.async_api import Page, expect
from pyotp.totp import TOTP

from tests.browser.conftest import NewBrowser, register, sign_out, submit
from tests.browser.test_accessibility import assert_accessible
from tests.conftest import PASSWORD
from tests.people import Server


async def enter_password(page: Page, name: str) -> None:
    await page.goto("/login?next=/account/sessions")
    await page.get_by_label("Username or email address").fill(name)
    await page.get_by_label("Password", exact=True).fill(PASSWORD)
    await submit(page)
    await expect(page.get_by_role("heading", name="Two-factor authentication")).to_be_visible()


async def enter_code(page: Page, code: str) -> None:
    await page.get_by_label("Code").fill(code)
    await submit(page)


async def test_an_authenticator_app_from_setup_to_recovery(
    server: Server, new_browser: NewBrowser
) -> None:
    name = f"tot-{secrets.token_hex(4)}"
    page = await (await new_browser(server.url)).new_page()
    await register(page, name)
    await page.goto("/account/factors")
    await page.get_by_role("link", name="Set up an app").click()
    await expect(page.get_by_role("img", name="Image to scan")).to_be_visible()
    app = TOTP(await page.locator("#totp-secret").inner_text())
    now = int(time.time())
    await enter_code(page, app.at(now + 3600))
    await expect(page.get_by_role("alert")).to_be_visible()
    await enter_code(page, app.at(now))
    codes = await page.locator("#recovery-codes code").all_inner_texts()
    assert len(codes) == 10
    await assert_accessible(page)
    await page.get_by_role("link", name="I have saved my codes").click()
    await expect(page.locator("main")).to_contain_text("10 recovery codes left")

    await sign_out(page)
    await enter_password(page, name)
    await assert_accessible(page)
    # The code of this half minute has been used. The next one is accepted already.
    await enter_code(page, app.at(now))
    await expect(page.locator("#sign-in-code-error")).to_be_visible()
    await enter_code(page, app.at(now + 30))
    await page.wait_for_url("**/account/sessions")

    await sign_out(page)
    await enter_password(page, name)
    await enter_code(page, codes[0].upper())
    await expect(page.locator(".flash-warning")).to_contain_text("recovery code")
    await expect(page.locator("main")).to_contain_text("9 recovery codes left")
    await page.get_by_text("Remove app", exact=True).first.click()
    await page.get_by_role("button", name="Remove app").click()
    await expect(page.get_by_role("link", name="Set up an app")).to_be_visible()
