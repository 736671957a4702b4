"""The audit log in a browser."""

from __future__ import annotations

import json
from pathlib import Path

from playwright.async_api import expect

from tests.browser.conftest import NewBrowser, page_of
from tests.people import Person, Server


async def test_the_log_is_filtered_by_keyboard_and_exported(
    server: Server, root: Person, ada: Person, new_browser: NewBrowser, tmp_path: Path
) -> None:
    page = await page_of(root, new_browser)
    await root.post(f"/admin/users/{ada.username}/disable")
    await page.goto("/admin/events")
    await page.locator("#person").focus()
    await page.keyboard.type(ada.username)
    await page.keyboard.press("Tab")
    await page.keyboard.type("Account disabled")
    await page.keyboard.press("Tab")
    await page.keyboard.press("Enter")
    await page.wait_for_url(f"**/admin/events?person={ada.username}&kind=user.disabled&**")
    entries = page.locator(".log-entries > li")
    await expect(entries).to_have_count(1)
    await expect(entries).to_contain_text(f"root disabled the account of {ada.username}")
    await expect(entries.get_by_text("user.disabled")).to_be_hidden()
    await entries.locator("summary", has_text="Details").focus()
    await page.keyboard.press("Enter")
    await expect(entries.get_by_text("user.disabled")).to_be_visible()
    await page.get_by_role("link", name="Export as JSON lines").focus()
    async with page.expect_download() as begun:
        await page.keyboard.press("Enter")
    await (await begun.value).save_as(file := tmp_path / "log")
    (line,) = map(json.loads, file.read_text().splitlines())
    assert (line["actor"], line["subject"]) == ("root", ada.username)
