"""Takes a picture of every page: script/screenshots [FOLDER]

Starts a server with the data of `quartapp demo` in a temporary folder, and writes
FOLDER/<width>-<theme>/<page>.png for phones and desks, light and dark. FOLDER/story.png is the
picture of the README; `--readme` copies it to docs/images.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import re
import shutil
import tempfile
from pathlib import Path
from typing import Literal

from playwright.async_api import Browser, Page, async_playwright, expect

from tests.browser.conftest import CHROMIUM
from tests.browser.test_accessibility import SIGNED_IN, SIGNED_OUT
from tests.conftest import serving
from tests.people import Server

WIDTHS = (390, 1280)
THEMES: tuple[Literal["light", "dark"], ...] = ("light", "dark")
# The administrator of the demo, and a moderator.
USER, MODERATOR = "grace", "ada"
# Pages that need the users and roles of the demo.
OF_THE_DEMO = [
    "/admin/users/ada/grants/moderator/revoke",
    "/admin/users/ada/roles",
    "/admin/users/bulk?users=ada&users=mary&action=revoke&role=moderator",
    "/admin/roles/auditor/delete",
]
# What the buttons of the header open, at the widths at which they are shown.
MENUS = ((390, "menu"), (1280, "notices"), (1280, "account-menu"), (1280, "shortcuts"))
# Shows two pictures side by side.
SIDE_BY_SIDE = """<body style="margin: 0; padding: 10px; background: #c3cdc8">
  <div style="display: flex; gap: 20px"><img src="{}"><img src="{}"></div></body>"""
IMAGES = Path(__file__).parent.parent / "docs/images"


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", nargs="?", type=Path, default=Path("screenshots"))
    parser.add_argument("--readme", action="store_true", help="write docs/images")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        async with serving(Path(temporary) / "data", workers=1) as server:
            told = await server.run("demo")
            password = re.search(rf"^\s+{USER}\s+(\S+)", told, re.MULTILINE)
            assert password, told
            await take(server, password[1], options.folder)
    if options.readme:
        shutil.copy(options.folder / "story.png", IMAGES)


async def take(server: Server, password: str, folder: Path) -> None:
    """Write the pictures of all pages in all views to the folder, which is emptied before."""
    shutil.rmtree(folder, ignore_errors=True)
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"]
        )
        for theme in THEMES:
            await take_theme(browser, server.url, password, theme, folder)
        await take_story(browser, server.url, password, folder)
        await browser.close()


async def take_theme(
    browser: Browser, url: str, password: str, theme: Literal["light", "dark"], folder: Path
) -> None:
    context = await browser.new_context(base_url=url, color_scheme=theme)
    page = await context.new_page()
    for path in SIGNED_OUT:
        await take_page(page, path, folder, theme, prefix="signed-out")
    await sign_in(page, USER, password)
    for path in SIGNED_IN:
        await take_page(page, path.replace("root", USER), folder, theme)
    for path in OF_THE_DEMO:
        await take_page(page, path, folder, theme)
    await page.goto("/posts")
    post = await page.locator("main .row-what a").first.get_attribute("href")
    assert post
    await take_page(page, post, folder, theme, name="post")
    for width, menu in MENUS:
        await take_menu(page, menu, width, folder, theme)
    await context.close()


async def take_story(browser: Browser, url: str, password: str, folder: Path) -> None:
    """Write story.png: the administrator has revoked a role, and the other user's tab says so."""
    pages = []
    for username in (USER, MODERATOR):
        context = await browser.new_context(
            base_url=url, viewport={"width": 760, "height": 820}, reduced_motion="reduce"
        )
        pages.append(await context.new_page())
        await sign_in(pages[-1], username, password)
    console, editor = pages
    await editor.goto("/posts/new")
    await editor.get_by_label("Title").fill("Engines, and what they are for")
    await expect(editor.locator("#live")).to_have_attribute("data-state", "connected")
    await console.goto(f"/admin/users/{MODERATOR}/roles")
    await revoke(console, "moderator")
    await editor.locator("#ended").wait_for()
    sources = []
    for page in pages:
        picture = base64.b64encode(await page.screenshot(animations="disabled")).decode()
        sources.append(f"data:image/png;base64,{picture}")
    both = await (await browser.new_context()).new_page()
    await both.set_viewport_size({"width": 1560, "height": 840})
    await both.set_content(SIDE_BY_SIDE.format(*sources))
    await both.screenshot(path=folder / "story.png")


async def revoke(console: Page, role: str) -> None:
    """Revoke the role from the tab with the roles of a user, which are listed by name."""
    grant = console.locator(".grant", has=console.get_by_role("heading", name=role))
    await grant.get_by_role("link", name="Revoke role").click()
    await console.get_by_role("button", name="Revoke role").click()
    await expect(console.locator(".flash")).to_be_visible()


async def sign_in(page: Page, username: str, password: str) -> None:
    await page.goto("/login")
    await page.fill("[name=login]", username)
    await page.fill("[name=password]", password)
    await page.press("[name=password]", "Enter")
    await page.wait_for_url("**/")


async def take_menu(page: Page, menu: str, width: int, folder: Path, theme: str) -> None:
    await page.set_viewport_size({"width": width, "height": 800})
    await page.goto("/")
    await expect(page.locator("#live")).to_have_attribute("data-state", "connected")
    await page.evaluate("id => document.getElementById(id).showPopover()", menu)
    if menu == "notices":
        await expect(page.locator("#notices li").first).to_be_visible()
    await page.screenshot(path=folder / f"{width}-{theme}" / f"menu-{menu}.png")


async def take_page(
    page: Page, path: str, folder: Path, theme: str, prefix: str = "", name: str = ""
) -> None:
    """Write `<width>-<theme>/<name>.png` for each width. "/admin/users" has the name
    "admin-users"."""
    await page.goto(path)
    name = name or "-".join(filter(None, (prefix, *re.split(r"[/?=&]", path)))) or "home"
    for width in WIDTHS:
        await page.set_viewport_size({"width": width, "height": 800})
        await page.screenshot(
            path=folder / f"{width}-{theme}" / f"{name}.png", full_page=True, animations="disabled"
        )


if __name__ == "__main__":
    asyncio.run(main())
