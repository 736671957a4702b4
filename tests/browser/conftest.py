"""Chromium, headless, with a context for each person: a browser of their own."""

from __future__ import annotations

import json
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
from playwright.async_api import Browser, BrowserContext, Page, WebSocket, async_playwright, expect

from tests.conftest import PASSWORD

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
NewBrowser = Callable[..., Awaitable[BrowserContext]]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if CHROMIUM is None:
        for item in items:
            if "browser" in item.path.parts:
                item.add_marker(pytest.mark.skip(reason="there is no chromium on this machine"))


@pytest.fixture(scope="session")
async def chromium() -> AsyncIterator[Browser]:
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(
            executable_path=CHROMIUM,
            args=[
                "--no-sandbox",
                "--disable-gpu",
                "--disable-background-networking",
                "--disable-component-update",
                "--no-first-run",
            ],
        )
        yield browser
        await browser.close()


@pytest.fixture
async def new_browser(chromium: Browser) -> AsyncIterator[NewBrowser]:
    """Makes browsers that share nothing. A script error, or a resource that the policy refuses,
    fails the test."""
    contexts: list[BrowserContext] = []
    complaints: list[str] = []

    async def make(url: str, **options: Any) -> BrowserContext:
        context = await chromium.new_context(base_url=url, **options)
        context.set_default_timeout(30_000)
        context.on("weberror", lambda error: complaints.append(str(error.error)))
        context.on("console", lambda message: complain(message.text))
        contexts.append(context)
        return context

    def complain(text: str) -> None:
        if "Content Security Policy" in text:
            complaints.append(text)

    yield make
    for context in contexts:
        await context.close()
    assert complaints == []


class Live:
    """What the sockets of a page were told. Make it before the page is opened."""

    def __init__(self, page: Page) -> None:
        self.said: list[dict[str, Any]] = []
        page.on("websocket", self._listen)

    @property
    def worker(self) -> str | None:
        """The worker that greeted the page last."""
        return next((m["worker"] for m in reversed(self.said) if m["type"] == "hello"), None)

    def _listen(self, socket: WebSocket) -> None:
        socket.on("framereceived", lambda frame: self.said.append(json.loads(frame)))


async def open_on(page: Page, path: str, live: Live, worker: str) -> None:
    """Opens the page until its socket is with the worker."""
    for _ in range(60):
        await page.goto(path)
        await is_live(page)
        if live.worker == worker:
            return
    raise AssertionError(f"no page reached worker {worker}")


async def is_live(page: Page) -> None:
    """Waits until the page's socket was greeted."""
    await expect(page.locator("#live")).to_have_attribute("data-state", "connected")


async def sign_in(page: Page, username: str) -> None:
    """Signs in, on the sign-in page that is open or else on a new one."""
    if "/login" not in page.url:
        await page.goto("/login")
    await page.get_by_label("Username or email address").fill(username)
    await page.get_by_label("Password").fill(PASSWORD)
    await submit(page)
    await page.wait_for_url(lambda url: "/login" not in url)


async def register(page: Page, username: str) -> None:
    await page.goto("/register")
    await fill_account(page, username)
    await submit(page)
    await page.wait_for_url(lambda url: "/register" not in url)


async def fill_account(page: Page, username: str) -> None:
    await page.get_by_label("Username").fill(username)
    await page.get_by_label("Email address").fill(f"{username}@example.org")
    await page.get_by_label("Password", exact=True).fill(PASSWORD)
    await page.get_by_label("Repeat password").fill(PASSWORD)


async def submit(page: Page) -> None:
    await page.locator("main form.form button[type=submit]").click()


async def expect_locked(page: Page, words: str) -> None:
    """Waits until the page is locked, and says this."""
    dialog = page.get_by_role("alertdialog")
    await expect(dialog).to_be_visible()
    await expect(dialog).to_contain_text(words)
