"""Pages in background tabs, asleep, offline, or kept by the browser while their session ends."""

from __future__ import annotations

import itertools
import json
import shutil
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from playwright.async_api import Browser, Page, async_playwright, expect
from websockets.asyncio.client import ClientConnection, connect

from tests.browser.conftest import expect_locked, is_live, register
from tests.people import Person, Server, http_client, until

ENDED = "An administrator ended your session."
# The headless shell shows every tab as visible, and has no back/forward cache.
FULL_CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "google-chrome"))), None)
needs_full_chromium = pytest.mark.skipif(FULL_CHROMIUM is None, reason="there is no full chromium")
KEPT = """
addEventListener("pageshow", event => {
  if (event.persisted) window.restored = document.querySelector("main").checkVisibility({
    visibilityProperty: true
  }) ? "shown" : "hidden"
})
"""


class RealBrowser:
    """A full Chromium that throttles background tabs and has a back/forward cache."""

    def __init__(self, browser: Browser, port: int) -> None:
        self.browser = browser
        self._debugger = f"http://127.0.0.1:{port}"

    @asynccontextmanager
    async def tab(self) -> AsyncIterator[RealTab]:
        """Open a tab in front of the others, which Playwright does not control: it makes the pages
        of its own visible and focused at all times."""
        async with http_client(self._debugger) as client:
            target = (await client.put("/json/new")).json()
            async with connect(target["webSocketDebuggerUrl"], max_size=None) as connection:
                yield RealTab(connection)
            await client.get(f"/json/close/{target['id']}")


class RealTab:
    """A tab, by the DevTools protocol."""

    def __init__(self, connection: ClientConnection) -> None:
        self._connection = connection
        self._ids = itertools.count(1)

    async def send(self, method: str, **parameters: Any) -> dict[str, Any]:
        number = next(self._ids)
        await self._connection.send(
            json.dumps({"id": number, "method": method, "params": parameters})
        )
        async for text in self._connection:
            message = json.loads(text)
            if message.get("id") == number:
                return message["result"]
        raise AssertionError("the tab was closed")

    async def evaluate(self, expression: str) -> Any:
        answer = await self.send("Runtime.evaluate", expression=expression, returnByValue=True)
        return answer["result"].get("value")

    async def shows(self, expression: str) -> None:
        """Wait until the expression is true in the tab."""
        await until(lambda: self.evaluate(expression))


@pytest.fixture(scope="module")
async def real_browser() -> AsyncIterator[RealBrowser]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(
            executable_path=FULL_CHROMIUM,
            args=["--no-sandbox", "--disable-gpu", f"--remote-debugging-port={port}"],
            ignore_default_args=[
                "--disable-back-forward-cache",
                "--disable-background-timer-throttling",
                "--disable-backgrounding-occluded-windows",
                "--disable-renderer-backgrounding",
            ],
        )
        yield RealBrowser(browser, port)
        await browser.close()


@needs_full_chromium
async def test_a_background_tab_locks_and_acknowledges_at_once(
    server: Server, ada: Person, real_browser: RealBrowser
) -> None:
    async with real_browser.tab() as page, real_browser.tab() as other:
        for name, value in ada.client.cookies.items():
            await page.send("Network.setCookie", name=name, value=value, url=ada.url)
        await page.send("Page.navigate", url=f"{ada.url}/posts/new")
        await page.shows("document.querySelector('#live')?.dataset.state === 'connected'")
        await other.send("Page.bringToFront")
        await page.shows("document.visibilityState === 'hidden'")
        await server.run("user", "disable", ada.username)

        async def is_acknowledged() -> bool:
            receipts = (await server.last_event(ada.username, "user.disabled"))["receipts"]
            assert not any(receipt["missed"] for receipt in receipts), receipts
            return [receipt["acked"] for receipt in receipts] == [1]

        await until(is_acknowledged)
        assert await page.evaluate("document.visibilityState") == "hidden"
        assert await page.evaluate("'locked' in document.body.dataset")
        await page.send("Page.bringToFront")
        await page.shows("document.querySelector('#ended[open]')?.checkVisibility()")
        assert "disabled your account" in await page.evaluate("ended.textContent")


async def test_a_frozen_page_locks_when_it_wakes(server: Server, page: Page, name: str) -> None:
    await is_live(page)
    devtools = await page.context.new_cdp_session(page)
    await devtools.send("Page.setWebLifecycleState", {"state": "frozen"})
    await server.run("user", "end-sessions", name)
    await devtools.send("Page.setWebLifecycleState", {"state": "active"})
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


@needs_full_chromium
@pytest.mark.parametrize("kept", [True, False], ids=["kept", "loaded again"])
async def test_going_back_after_the_session_ended_shows_why(
    server: Server, real_browser: RealBrowser, name: str, kept: bool
) -> None:
    """Chromium keeps no page that was sent with `no-store`. Other browsers may, so one form of the
    test takes the header out of the answer."""
    context = await real_browser.browser.new_context(base_url=server.url)
    await context.add_init_script(KEPT)
    page = await context.new_page()
    await register(page, name)
    devtools = await context.new_cdp_session(page)
    refusals: list[str] = []

    async def answer_without_no_store(event: dict[str, Any]) -> None:
        headers = [each for each in event["responseHeaders"] if each["name"] != "cache-control"]
        answer = {"requestId": event["requestId"], "responseCode": event["responseStatusCode"]}
        await devtools.send("Fetch.continueResponse", {**answer, "responseHeaders": headers})

    def record_refusal(event: dict[str, Any]) -> None:
        refusals.extend(each["reason"] for each in event["notRestoredExplanations"])

    devtools.on("Fetch.requestPaused", answer_without_no_store)
    devtools.on("Page.backForwardCacheNotUsed", record_refusal)
    await devtools.send("Page.enable")
    if kept:
        pattern = {"urlPattern": "*/account/profile", "requestStage": "Response"}
        await devtools.send("Fetch.enable", {"patterns": [pattern]})
    await page.goto("/account/profile")
    await is_live(page)
    await devtools.send("Fetch.disable")
    if kept:
        await page.goto("/livez")
        await page.evaluate("history.back()")
        await page.wait_for_function("window.restored === 'hidden'")
        await expect(page.get_by_role("main")).to_be_visible()
        await page.evaluate("window.restored = ''")
    await page.goto("/livez")
    await server.run("user", "end-sessions", name)
    await page.evaluate("history.back()")
    await page.wait_for_url("**/login**" if not kept else "**/account/profile", wait_until="commit")
    if kept:
        await page.wait_for_function("window.restored === 'hidden'")
        await expect_locked(page, ENDED)
        await expect(page.get_by_role("main")).to_be_hidden()
    else:
        await expect(page.get_by_role("heading", level=1, name="Sign in")).to_be_visible()
        assert "MainResourceHasCacheControlNoStore" in refusals
    await context.close()
