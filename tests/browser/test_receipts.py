"""Receipts as an administrator's page shows them, and what a page does when its session ends."""

from __future__ import annotations

import asyncio
import re

from playwright.async_api import expect

from tests.browser.conftest import NewBrowser, expect_locked, is_live, page_of
from tests.integration.flows.test_receipts import through
from tests.networks import network
from tests.people import Person, Server, until

ACKNOWLEDGED = re.compile(r"1 tab on 1 worker acknowledged, slowest \d+ ms\.$")


async def test_the_receipt_on_the_page_shows_a_late_acknowledgement(
    server: Server, root: Person, ada: Person, new_browser: NewBrowser
) -> None:
    """With a delay of 2.5 s each way, the response comes before the acknowledgement."""
    admin = await page_of(root, new_browser)
    async with network(server.url) as slow, through(slow.url, ada).tab() as tab:
        listening = asyncio.create_task(tab.closed())
        await admin.goto(f"/admin/users/{ada.username}/roles")
        await admin.get_by_role("link", name="Revoke role… member").click()
        revoke = admin.get_by_role("button", name="Revoke role", exact=True)
        await expect(revoke).to_be_visible()
        # Not earlier, because the server closes a socket that is silent for four seconds.
        slow.delay = 2.5
        await revoke.click()
        receipt = admin.locator(".flash .receipt")
        await expect(receipt).to_contain_text("1 tab not acknowledged yet.")
        await expect(receipt.get_by_role("link", name="Refresh")).to_be_visible()
        await expect(receipt).to_have_text(ACKNOWLEDGED)
        await expect(receipt.get_by_role("link")).to_have_count(0)
        assert await listening == 4401
    await admin.get_by_role("link", name="Activity", exact=True).click()
    await expect(admin.locator(".log-entries .receipt").first).to_have_text(ACKNOWLEDGED)


async def test_a_slow_and_busy_page_still_acknowledges(
    server: Server, ada: Person, new_browser: NewBrowser
) -> None:
    """A browser sends nothing after the close frame, so that frame must not come too soon."""
    async with network(server.url, delay=0.16) as slow:
        page = await page_of(through(slow.url, ada), new_browser)
        await page.goto("/posts")
        await is_live(page)
        await page.evaluate(
            "setInterval(() => { const end = Date.now() + 500; while (Date.now() < end); }, 520)"
        )
        await server.run("user", "disable", ada.username)
        await expect_locked(page, "disabled your account")
        await is_acknowledged(server, ada)


async def is_acknowledged(server: Server, person: Person) -> None:
    """Wait until the only tab of the user has acknowledged that the account is disabled."""

    async def is_acknowledged_once() -> bool:
        receipts = (await server.last_event(person.username, "user.disabled"))["receipts"]
        assert not any(receipt["missed"] for receipt in receipts), receipts
        return [receipt["acked"] for receipt in receipts] == [1]

    await until(is_acknowledged_once)


async def test_going_offline_and_online_is_shown_at_once(
    ada: Person, new_browser: NewBrowser
) -> None:
    page = await page_of(ada, new_browser)
    await page.clock.install()
    await page.goto("/")
    await is_live(page)
    await page.clock.pause_at(await page.evaluate("Date.now() + 1000"))
    state, text = page.locator("#live"), page.locator(".live-text")
    await page.context.set_offline(True)
    await page.clock.run_for(0)
    await expect(state).to_have_attribute("data-state", "offline")
    await page.clock.run_for(10)
    await expect(text).to_have_text("Offline")
    sockets: list[object] = []
    page.on("websocket", lambda socket: sockets.append(socket))
    await page.context.set_offline(False)
    await is_live(page)
    assert len(sockets) == 1
    await page.clock.run_for(10)
    await expect(text).to_have_text("")


SUBMIT = "document.forms[0].dispatchEvent(new SubmitEvent('submit', {bubbles: true}))"
SHOW_AGAIN = """() => {
  dispatchEvent(new PageTransitionEvent("pageshow", {persisted: true}))
  return document.getElementById("ended").open
}"""


async def test_a_page_that_is_submitting_locks_at_once_and_explains_later(
    server: Server, ada: Person, new_browser: NewBrowser
) -> None:
    page = await page_of(ada, new_browser)
    await page.clock.install()
    await page.goto("/posts/new")
    await is_live(page)
    await page.clock.pause_at(await page.evaluate("Date.now() + 1000"))
    await page.evaluate(SUBMIT)
    await server.run("user", "disable", ada.username)
    await is_acknowledged(server, ada)
    await expect(page.locator("body[data-locked]")).to_have_count(1)
    await expect(page.locator("#main")).to_have_attribute("inert", "")
    await expect(page.get_by_role("alertdialog")).to_be_hidden()
    await page.clock.run_for(3_100)
    await expect_locked(page, "disabled your account")


async def test_a_download_does_not_delay_the_dialog(
    server: Server, ada: Person, new_browser: NewBrowser
) -> None:
    page = await page_of(ada, new_browser)
    await page.clock.install()
    await page.goto("/account/export")
    await is_live(page)
    async with page.expect_download():
        await page.get_by_role("button", name="Download").click()
    await page.clock.pause_at(await page.evaluate("Date.now() + 100"))
    await server.run("user", "disable", ada.username)
    await expect_locked(page, "disabled your account")


async def test_a_page_restored_from_the_cache_shows_that_it_is_locked(
    server: Server, ada: Person, new_browser: NewBrowser
) -> None:
    """The page returns from the back/forward cache, in which timers do not run."""
    page = await page_of(ada, new_browser)
    await page.clock.install()
    await page.goto("/posts")
    await is_live(page)
    await page.clock.pause_at(await page.evaluate("Date.now() + 100"))
    await page.evaluate(SUBMIT)
    await server.run("user", "disable", ada.username)
    await expect(page.locator("body[data-locked]")).to_have_count(1)
    await expect(page.get_by_role("alertdialog")).to_be_hidden()
    assert await page.evaluate(SHOW_AGAIN)
