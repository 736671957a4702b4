"""A page reconnects after its socket is closed, and ignores messages that are out of date."""

from __future__ import annotations

import json
import re
import secrets
import signal
from typing import Any

import pytest
from playwright.async_api import Page, WebSocketRoute, expect

from tests.browser.conftest import NewBrowser, is_live, page_of
from tests.people import Person, Server, until

# Fixes the random numbers, and records each socket that the page opens and closes.
RECORD_SOCKETS = """
Math.random = () => 0.5
window.opened = []
window.WebSocket = class extends WebSocket {
  constructor(url) {
    super(url)
    opened.push(new URL(this.url).searchParams.get("cursor"))
    this.addEventListener("close", () => document.documentElement.dataset.closed = opened.length)
  }
}
"""


class SimulatedServer:
    """A page with a paused clock, whose socket server is the test."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self.sockets: list[WebSocketRoute] = []

    async def open(self) -> None:
        await self.page.route_web_socket(
            re.compile(r"/ws(\?|$)"), lambda socket: self.sockets.append(socket)
        )
        await self.page.add_init_script(RECORD_SOCKETS)
        await self.page.clock.install(time=0)
        await self.page.goto("/")
        await self.page.clock.pause_at(60_000)
        await self.wait_for_socket()

    async def opened(self) -> list[str]:
        """Return the cursor of each socket that the page has opened."""
        return await self.page.evaluate("opened")

    async def wait_for_socket(self) -> None:
        """Wait until the test has received the newest socket."""

        async def is_received() -> bool:
            return len(self.sockets) == len(await self.opened())

        await until(is_received)

    async def send(self, **message: Any) -> None:
        self.sockets[-1].send(json.dumps(message))

    async def close(self, code: int, reason: str = "") -> None:
        """Close the newest socket, and wait until the page has handled that."""
        await self.sockets[-1].close(code=code, reason=reason)
        await expect(self.page.locator(f"html[data-closed='{len(self.sockets)}']")).to_have_count(1)

    async def assert_reconnects_after(self, seconds: float) -> None:
        before = len(await self.opened())
        await self.page.clock.run_for(round(seconds * 1000) - 1)
        assert len(await self.opened()) == before, f"came back before {seconds} s"
        await self.page.clock.run_for(1)
        assert len(await self.opened()) == before + 1, f"did not come back after {seconds} s"
        await self.wait_for_socket()


@pytest.fixture
async def simulated(ada: Person, new_browser: NewBrowser) -> SimulatedServer:
    simulated = SimulatedServer(await page_of(ada, new_browser))
    await simulated.open()
    return simulated


async def test_a_message_with_an_older_version_is_ignored(simulated: SimulatedServer) -> None:
    users = simulated.page.locator("[data-needs='users.read']").first
    toasts = simulated.page.locator(".toast p")

    async def change(version: int, *permissions: str, **fields: Any) -> None:
        await simulated.send(
            type="permissions.changed",
            id=secrets.token_hex(4),
            version=version,
            roles=[],
            permissions=permissions,
            **fields,
        )

    await expect(users).to_be_hidden()
    await change(100, "users.read", added=["users.read"])
    await expect(users).to_be_visible()
    await change(99, removed=["users.read"])
    await change(101, "users.read", "posts.write", added=["posts.write"])
    await expect(toasts).to_have_text(["You now have: users.read.", "You now have: posts.write."])
    await expect(users).to_be_visible()
    await change(102, removed=["users.read", "posts.write"])
    await expect(users).to_be_hidden()


async def test_a_page_reconnects_at_the_requested_time_with_its_cursor(
    simulated: SimulatedServer,
) -> None:
    async def notice(number: int) -> None:
        await simulated.send(
            type="notice", id=str(number), kind="k", text=f"No. {number}", at="now"
        )

    toasts = simulated.page.locator(".toast p")
    await notice(7)
    await notice(8)
    await expect(toasts).to_have_text(["No. 7", "No. 8"])
    await simulated.close(1012, "come back in 7.3 s")
    await simulated.assert_reconnects_after(7.3)
    assert (await simulated.opened())[-1] == "8"
    for number in (6, 8, 9):
        await notice(number)
    await expect(toasts).to_have_text(["No. 7", "No. 8", "No. 9"])


async def test_a_page_that_hears_nothing_for_30_seconds_says_so(
    simulated: SimulatedServer,
) -> None:
    text = simulated.page.locator(".live-text")
    for _ in range(2):
        await simulated.send(type="ping", at="now")
        await expect(simulated.page.locator("#live")).to_have_attribute("data-state", "connected")
        await simulated.page.clock.run_for(29_900)
        await expect(text).to_have_text("")
    await simulated.page.clock.run_for(200)
    await expect(text).to_have_text("No answer for 30 seconds")
    await simulated.send(type="ping", at="now")
    await expect(simulated.page.locator("#live")).to_have_attribute("data-state", "connected")


async def test_a_page_that_hears_nothing_for_the_set_time_is_covered(
    simulated: SimulatedServer,
) -> None:
    page = simulated.page
    simulated.sockets.clear()
    await page.goto("/posts/new")
    await simulated.wait_for_socket()
    title, cover = page.get_by_label("Title"), page.get_by_role("alertdialog")
    await title.fill("What I was writing")
    await page.clock.fast_forward(3_599_000)
    await expect(title).to_be_visible()
    await page.clock.fast_forward(2_000)
    await expect(cover).to_contain_text("has not heard from the server for 1 hour")
    for part in (title, page.locator(".account-button")):
        await expect(part).to_be_hidden()
    await page.keyboard.press("Escape")
    await page.keyboard.press("Escape")
    await expect(cover).to_be_visible()
    await simulated.wait_for_socket()
    await simulated.send(type="ping", at="now")
    await expect(cover).to_be_hidden()
    await expect(title).to_have_value("What I was writing")
    await expect(title).to_be_focused()

    # While a computer sleeps its clock goes on, and no timer runs.
    await page.clock.set_system_time(await page.evaluate("Date.now() / 1000 + 3_601"))
    await page.evaluate("dispatchEvent(new Event('visibilitychange'))")
    await expect(cover).to_be_visible()
    await simulated.send(type="ping", at="now")
    await expect(title).to_be_focused()


async def test_a_form_keeps_its_text_until_its_permission_returns(
    simulated: SimulatedServer,
) -> None:
    page = simulated.page
    simulated.sockets.clear()
    await page.goto("/posts/new")
    await simulated.wait_for_socket()
    title, publish = page.get_by_label("Title"), page.locator("main form.form [type=submit]").first
    await title.fill("What I was writing")
    change = {"type": "permissions.changed", "roles": [], "added": [], "by": "root"}
    await simulated.send(**change, id="a", version=100, permissions=[], removed=["posts.write"])
    await expect(page.locator("main")).to_contain_text("which root removed from your roles")
    await expect(page.locator("main")).to_contain_text("This form can no longer be sent.")
    await expect(title).to_have_value("What I was writing")
    await expect(publish).to_be_disabled()
    await simulated.send(**change, id="b", version=101, permissions=["posts.write"], removed=[])
    await expect(publish).to_be_enabled()
    await expect(title).to_have_value("What I was writing")


async def test_reconnecting_backs_off_while_the_server_fails(
    simulated: SimulatedServer,
) -> None:
    for longest in (1, 2, 4, 8, 16, 30, 30):
        await simulated.close(1011)
        await simulated.assert_reconnects_after(longest / 2)
    await simulated.page.clock.run_for(10_001)
    await simulated.close(1011)
    await simulated.assert_reconnects_after(0.5)
    # After 1013, which a server without a database sends, the wait is longer.
    await simulated.close(1013)
    await simulated.assert_reconnects_after(4)


async def test_a_page_that_never_reconnects_is_loaded_when_it_is_restored(
    simulated: SimulatedServer,
) -> None:
    main = simulated.page.locator("main")
    await simulated.close(4400)
    await expect(simulated.page.locator("#live")).to_have_attribute("data-state", "stopped")
    await simulated.page.evaluate("dispatchEvent(new PageTransitionEvent('pagehide'))")
    await expect(main).to_be_hidden()
    async with simulated.page.expect_navigation():
        await simulated.page.evaluate(
            "dispatchEvent(new PageTransitionEvent('pageshow', {persisted: true}))"
        )
    await expect(main).to_be_visible()


async def test_notifications_during_a_restart_arrive_once_and_in_order(
    server: Server, ada: Person, bob: Person, new_browser: NewBrowser
) -> None:
    posts = []
    for title in ("First", "Second"):
        answer = await ada.post("/posts/new", page="/posts/new", title=title, body="Words.")
        posts.append(answer.headers["location"])
    page = await page_of(ada, new_browser)
    await page.clock.install()
    await page.goto("/account")
    await is_live(page)
    await page.clock.pause_at(await page.evaluate("Date.now() / 1000 + 1"))

    before = server.stderr().count("renewal_done")
    server.process.send_signal(signal.SIGHUP)
    # The worker of the page may be the second one that is restarted.
    live = page.locator("#live")
    await expect(live).to_have_attribute("data-state", "reconnecting", timeout=60_000)
    for path in posts:
        assert (await bob.post(f"{path}/comments", page=path, body="Hm.")).status_code == 303

    async def is_renewed() -> bool:
        return server.stderr().count("renewal_done") > before

    await until(is_renewed, within=60)
    await page.clock.run_for(2_000)
    await is_live(page)
    titles = [re.compile(title) for title in ("First", "Second")]
    await expect(page.locator(".toast p")).to_have_text(titles)
