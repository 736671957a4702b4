"""The menu of notifications in the header, and the number of unread ones in every tab."""

from __future__ import annotations

import asyncio

from playwright.async_api import Page, Route, expect

from tests.browser.conftest import NewBrowser, is_live, page_of
from tests.people import Person


async def commented(ada: Person, bob: Person, *titles: str) -> None:
    """Let Bob comment on new posts of Ada."""
    for title in titles:
        answer = await ada.post("/posts/new", page="/posts/new", title=title, body="Words.")
        path = answer.headers["location"]
        assert (await bob.post(f"{path}/comments", page=path, body="Hm.")).status_code == 303


async def shows_unread(page: Page, count: int) -> None:
    badge = page.locator(".nav-notices > button .badge")
    if count:
        await expect(badge).to_have_text(str(count))
        await expect(badge).to_be_visible()
    else:
        await expect(badge).to_be_hidden()


async def test_reading_in_the_menu_of_one_tab_updates_all(
    ada: Person, bob: Person, new_browser: NewBrowser
) -> None:
    await ada.post("/account/notices/read")
    page = await page_of(ada, new_browser)
    other = await page.context.new_page()
    for tab in (page, other):
        await tab.goto("/posts")
        await is_live(tab)
        await shows_unread(tab, 0)
    await commented(ada, bob, "First", "Second", "Third")
    for tab in (page, other):
        await shows_unread(tab, 3)

    await page.locator(".nav-notices > button").press("Enter")
    rows = page.locator("#notices li")
    await expect(rows.first).to_contain_text("Third")
    await page.get_by_role("button", name="Mark as read").nth(1).press("Enter")
    await expect(page.get_by_role("button", name="Mark as read")).to_have_count(2)
    await expect(rows.nth(1).get_by_role("link")).to_be_focused()
    for tab in (page, other):
        await shows_unread(tab, 2)

    await other.locator(".nav-notices > button").click()
    await other.get_by_role("button", name="Mark all as read").click()
    for tab in (page, other):
        await shows_unread(tab, 0)
    await expect(other.get_by_role("button", name="Mark")).to_have_count(0)

    await rows.nth(1).get_by_role("link").click()
    await expect(page.get_by_role("heading", level=1)).to_have_text("Second")


async def test_a_notification_read_while_the_menu_loads_is_shown_as_read(
    ada: Person, bob: Person, new_browser: NewBrowser
) -> None:
    """The answer to the earlier fetch still has it as unread."""
    await ada.post("/account/notices/read")
    await commented(ada, bob, "First")
    page = await page_of(ada, new_browser)
    await page.goto("/posts")
    await is_live(page)
    await page.locator(".nav-notices > button").press("Enter")
    unread = page.get_by_role("button", name="Mark as read")
    await expect(unread).to_have_count(1)

    fetched, released = asyncio.Event(), asyncio.Event()

    async def hold(route: Route) -> None:
        answer = await route.fetch()
        fetched.set()
        await released.wait()
        await route.fulfill(response=answer)

    await page.route("**/account/notices/latest", hold, times=1)
    await commented(ada, bob, "Second")
    await fetched.wait()
    async with page.expect_response("**/account/notices"):
        await unread.press("Enter")
    await page.wait_for_timeout(200)
    released.set()
    row = page.locator("#notices li").nth(1)
    await expect(row.get_by_role("link")).to_be_focused()
    await expect(row).to_contain_text("First")
    await expect(unread).to_have_count(1)


async def test_the_bell_leads_to_the_notifications_without_javascript(
    ada: Person, bob: Person, new_browser: NewBrowser
) -> None:
    await ada.post("/account/notices/read")
    await commented(ada, bob, "First", "Second")
    page = await page_of(ada, new_browser, java_script_enabled=False)
    await page.goto("/posts")
    await page.locator(".nav-notices > a").click()
    read = page.get_by_role("button", name="Mark as read")
    await expect(read).to_have_count(2)
    await read.first.click()
    await expect(read).to_have_count(1)
    await page.get_by_role("link", name="commented on “First”").click()
    await expect(page.get_by_role("heading", level=1)).to_have_text("First")


async def test_a_page_that_reconnects_shows_what_was_read_meanwhile(
    ada: Person, bob: Person, new_browser: NewBrowser
) -> None:
    await ada.post("/account/notices/read")
    await commented(ada, bob, "First", "Second")
    page = await page_of(ada, new_browser)
    await page.goto("/posts")
    await is_live(page)
    await shows_unread(page, 2)
    await page.context.set_offline(True)
    await expect(page.locator("#live")).to_have_attribute("data-state", "offline")
    await ada.post("/account/notices/read")
    await page.context.set_offline(False)
    await shows_unread(page, 0)
