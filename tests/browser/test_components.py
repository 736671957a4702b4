"""Every component of /dev/components looks as it did when its picture was stored.

Fonts differ between machines, so the pictures have none: before a picture is taken, each word is
replaced by a bar whose size depends on the number of its characters alone. What is left is the
work of app.css: sizes, distances, colours, lines, icons. The picture is reduced to the average
colour of each 8 by 8 pixels, so that smoothed edges count for little, and compared with a
tolerance.

After a change of the look, store the pictures again and review them at /dev/components:

    STORE_COMPONENTS=1 pytest -n 0 tests/browser/test_components.py
"""

from __future__ import annotations

import base64
import json
import os
import zlib
from pathlib import Path
from typing import Any, Literal, NamedTuple

import pytest
from playwright.async_api import Page, expect

from tests.browser.conftest import NewBrowser
from tests.people import Server

STORED = Path(__file__).with_name("components.json")
CELL = 8
# Of the 256 levels of a colour.
LEVELS = 8
# The part of the cells that may differ, and the pixels by which a size may.
PART, PIXELS = 0.001, 3


class View(NamedTuple):
    width: int
    scheme: Literal["light", "dark"]
    language: str = "en"


VIEWS = [
    *(View(390, "light"), View(390, "dark"), View(1280, "light"), View(1280, "dark")),
    *(View(390, "light", "en-XA"), View(1280, "light", "en-XA")),
]
# An object with two functions.
FUNCTIONS = Path(__file__).with_name("components.js").read_text().partition("\n")[2].strip()


@pytest.mark.parametrize("view", VIEWS, ids=lambda view: "-".join(map(str, view)))
async def test_components_look_as_they_did(
    server: Server, new_browser: NewBrowser, view: View
) -> None:
    found = pictures(await reduced(await open_components(server, new_browser, view)))
    name = "-".join(map(str, view))
    stored = json.loads(STORED.read_text()) if STORED.exists() else {}
    if os.environ.get("STORE_COMPONENTS"):
        STORED.write_text(json.dumps({**stored, name: found}, indent=1, sort_keys=True) + "\n")
    else:
        differences = {
            component: difference
            for component in sorted({*found, *stored[name]})
            if (difference := compared(stored[name].get(component), found.get(component)))
        }
        assert not differences, "see the docstring of this module"


async def open_components(server: Server, new_browser: NewBrowser, view: View) -> Page:
    context = await new_browser(
        server.url,
        viewport={"width": view.width, "height": 800},
        color_scheme=view.scheme,
        locale=view.language,
        bypass_csp=True,
    )
    page = await context.new_page()
    await page.goto("/dev/components")
    await expect(page.locator("html")).to_have_attribute("lang", view.language)
    overflow = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
    assert await page.evaluate(overflow) <= 0, "the page scrolls sideways"
    return page


async def reduced(page: Page) -> list[Any]:
    await page.evaluate(f"{FUNCTIONS}.withoutFonts()")
    picture = base64.b64encode(await page.screenshot(full_page=True)).decode()
    result: list[Any] = await page.evaluate(f"args => {FUNCTIONS}.reduced(args)", [picture, CELL])
    return result


def pictures(components: list[Any]) -> dict[str, list[Any]]:
    """Return width, height and compressed cells by the names of the components."""
    return {
        name: [width, height, base64.b85encode(zlib.compress(bytes(cells), 9)).decode()]
        for name, width, height, cells in components
    }


def compared(stored: list[Any] | None, found: list[Any] | None) -> str:
    """Return how two pictures differ, or an empty text if they look the same."""
    if stored is None or found is None:
        return "is new: store it" if found else "is missing"
    if abs(stored[0] - found[0]) > PIXELS or abs(stored[1] - found[1]) > PIXELS:
        return f"was {stored[0]}x{stored[1]} px and is {found[0]}x{found[1]} px"
    before, after = (zlib.decompress(base64.b85decode(each[2])) for each in (stored, found))
    if len(before) != len(after):
        # A size that is a pixel larger can need another row or column of cells.
        return ""
    changed = sum(
        max(abs(a - b) for a, b in zip(before[i : i + 3], after[i : i + 3], strict=True)) > LEVELS
        for i in range(0, len(before), 3)
    )
    part = changed / (len(before) // 3)
    return f"differs in {part:.1%} of its area" if part > PART else ""
