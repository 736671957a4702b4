"""The list of users in a browser: search as you type, and an action on several users."""

from __future__ import annotations

import asyncio
import re

from playwright.async_api import expect

from tests.browser.conftest import NewBrowser, page_of
from tests.people import Person, Server

ACKNOWLEDGED = re.compile(r"2 tabs on \d workers? acknowledged, slowest \d+ ms\.$")


async def test_revoking_a_role_of_selected_users_closes_their_tabs(
    server: Server, root: Person, ada: Person, bob: Person, new_browser: NewBrowser
) -> None:
    admin = await page_of(root, new_browser)
    await admin.goto("/admin/users?sort=created")
    async with ada.tab() as first, bob.tab() as second:
        closing = asyncio.gather(first.closed(), second.closed())
        for person in (ada, bob):
            await admin.get_by_label(f"Select {person.username}").check()
        await expect(admin.get_by_text("selected", exact=True)).to_be_visible()
        await admin.get_by_label("Action").select_option("revoke")
        await admin.locator("#bulk-role").select_option("member")
        await admin.get_by_role("button", name="Preview").click()
        await expect(admin.locator("main")).to_contain_text("2 users are affected.")
        await expect(admin.locator("main")).to_contain_text("with 2 open tabs.")
        await admin.get_by_role("button", name="Revoke role").click()
        await expect(admin.locator("main .receipt")).to_have_text(ACKNOWLEDGED)
        assert await closing == [4401, 4401]
    await expect(admin.locator("main")).to_contain_text("Done for 2 of 2 users.")


async def test_the_list_follows_what_is_typed(
    root: Person, ada: Person, new_browser: NewBrowser
) -> None:
    admin = await page_of(root, new_browser)
    await admin.goto("/admin/users?sort=created")
    await admin.get_by_label("Search", exact=True).press_sequentially(ada.username)
    await expect(admin.locator("tbody tr")).to_have_count(1)
    await expect(admin).to_have_url(re.compile(rf"q={ada.username}.*sort=created"))
    await expect(admin.get_by_label("Search", exact=True)).to_be_focused()
