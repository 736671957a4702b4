"""The walkthrough of the README, in two browsers that are connected to two workers."""

from __future__ import annotations

from pathlib import Path

from playwright.async_api import expect

from tests.browser.conftest import (
    Live,
    NewBrowser,
    fill_account,
    is_live,
    open_on,
    register_by_form,
    sign_in_again,
    submit,
)
from tests.conftest import serving


async def test_the_walkthrough_of_the_readme_from_setup_to_revocation(
    tmp_path: Path, new_browser: NewBrowser
) -> None:
    async with serving(tmp_path) as server:
        link = (await server.process.line(within=10)).split()[-1]
        assert "/setup/" in link

        root = await (await new_browser(server.url)).new_page()
        root_live = Live(root)
        await root.goto(link)
        await fill_account(root, "root")
        await submit(root)
        await root.wait_for_url("**/admin/users")

        other = await (await new_browser(server.url)).new_page()
        await other.goto(link)
        await expect(other.locator("main")).to_contain_text("used")

        ada = await (await new_browser(server.url)).new_page()
        ada_live = Live(ada)
        await register_by_form(ada, "ada")
        await expect(ada.get_by_role("link", name="Users", exact=True)).to_be_hidden()
        await open_on(ada, "/posts/new", ada_live, worker="1")
        await open_on(root, "/admin/users/ada/roles", root_live, worker="0")

        # A grant adds an entry to the menu of the open page, which is not reloaded.
        await ada.get_by_label("Title").fill("Half a thought")
        await root.get_by_label("Role", exact=True).select_option("moderator")
        # The role has management permissions, so the page asks for confirmation.
        await expect(root.get_by_role("button", name="Grant role", exact=True)).to_be_hidden()
        await root.locator(".grant-asks summary").click()
        await root.get_by_role("button", name="Grant role", exact=True).click()
        await expect(ada.get_by_role("link", name="Users", exact=True)).to_be_visible()
        await expect(ada.locator("#toasts")).to_contain_text("root gave you the role moderator.")
        await expect(ada.get_by_label("Title")).to_have_value("Half a thought")
        assert ada_live.worker == "1"

        # A revocation locks the tab, shows the reason and the actor, and keeps the draft.
        await ada.get_by_label("Text").fill("A whole one takes longer.")
        await root.get_by_role("link", name="Revoke role… moderator").click()
        await root.get_by_role("button", name="Revoke role", exact=True).click()
        dialog = ada.get_by_role("alertdialog")
        await expect(dialog).to_be_visible()
        await expect(dialog).to_contain_text("root revoked one of your roles")
        await ada.keyboard.press("Escape")
        await ada.keyboard.press("Escape")
        await expect(dialog).to_be_visible()
        ended = [message for message in ada_live.messages if message["type"] == "session.ended"]
        assert [(m["reason"], m["by"]) for m in ended] == [("role_revoked", "root")]

        # After signing in inside the dialog, the page goes on where it was.
        await sign_in_again(ada, "ada")
        await expect(ada.get_by_label("Title")).to_have_value("Half a thought")
        await expect(ada.get_by_label("Text")).to_have_value("A whole one takes longer.")
        await expect(ada.get_by_role("link", name="Users", exact=True)).to_be_hidden()
        await submit(ada)
        await expect(ada.get_by_role("heading", name="Half a thought")).to_be_visible()

        # The page of the administrator stays open.
        await expect(root.get_by_role("alertdialog")).to_be_hidden()
        await root.goto("/admin/events")
        await is_live(root)
        await expect(root.locator("main")).to_contain_text("role.revoked")
