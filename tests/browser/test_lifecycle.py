"""Pages that sleep, are offline, or wait in the back/forward cache while their session ends."""

from __future__ import annotations

from playwright.async_api import Page, async_playwright, expect

from tests.browser.conftest import CHROMIUM, expect_locked, is_live, register
from tests.people import Server

ENDED = "An administrator ended your session."


async def test_a_frozen_page_locks_when_it_wakes(server: Server, page: Page, name: str) -> None:
    await is_live(page)
    devtools = await page.context.new_cdp_session(page)
    await devtools.send("Page.setWebLifecycleState", {"state": "frozen"})
    await server.run("user", "end-sessions", name)
    await devtools.send("Page.setWebLifecycleState", {"state": "active"})
    await expect_locked(page, ENDED)


async def test_a_hidden_page_locks_at_once(server: Server, page: Page, name: str) -> None:
    await is_live(page)
    await page.evaluate("Object.defineProperty(document, 'hidden', {get: () => true})")
    await page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")
    await server.run("user", "end-sessions", name)
    await expect_locked(page, ENDED)


async def test_a_page_that_was_offline_locks_when_it_is_online(
    server: Server, page: Page, name: str
) -> None:
    await is_live(page)
    devtools = await page.context.new_cdp_session(page)
    await devtools.send("Network.enable")
    network = {"latency": 0, "downloadThroughput": -1, "uploadThroughput": -1}
    await devtools.send("Network.emulateNetworkConditions", {"offline": True, **network})
    await expect(page.locator("#live")).to_have_attribute("data-state", "offline")
    await page.evaluate("window.same = true")
    await server.run("user", "end-sessions", name)
    await devtools.send("Network.emulateNetworkConditions", {"offline": False, **network})
    await expect_locked(page, ENDED)
    assert await page.evaluate("window.same")


async def test_a_page_from_the_back_forward_cache_locks(
    server: Server, page: Page, name: str
) -> None:
    """Chromium does not keep pages that are sent with `no-store`, as all pages here are, so the
    events of a page that is kept are simulated."""
    await is_live(page)
    await page.evaluate("dispatchEvent(new PageTransitionEvent('pagehide', {persisted: true}))")
    await server.run("user", "end-sessions", name)
    await page.evaluate("dispatchEvent(new PageTransitionEvent('pageshow', {persisted: true}))")
    await expect_locked(page, ENDED)


async def test_going_back_after_the_session_ended_leads_to_the_sign_in_page(
    server: Server, name: str
) -> None:
    """With the back/forward cache on, which Playwright turns off by default."""
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(
            executable_path=CHROMIUM,
            args=["--no-sandbox", "--disable-gpu"],
            ignore_default_args=["--disable-back-forward-cache"],
        )
        page = await (await browser.new_context(base_url=server.url)).new_page()
        await register(page, name)
        await page.goto("/account/profile")
        await is_live(page)
        await page.goto("/livez")
        await server.run("user", "end-sessions", name)
        await page.go_back(wait_until="commit")
        dialog = page.get_by_role("alertdialog")
        sign_in = page.get_by_role("heading", level=1, name="Sign in", exact=True)
        await expect(dialog.or_(sign_in)).to_be_visible()
        await browser.close()
