"""Issues that users of other projects reported, each as a test of the behaviour they ask for.

Each docstring names the project and its issue.
"""

from __future__ import annotations

import asyncio
import json
import re
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
import websockets
from bson import ObjectId
from playwright.async_api import Page, expect

from quartapp import clock
from tests.browser import conftest as browser
from tests.browser.conftest import (
    NewBrowser,
    expect_locked,
    is_live,
    register,
    sign_in,
    sign_in_again,
    submit,
)
from tests.conftest import PASSWORD, long, serving
from tests.people import SECONDS, Person, Server, Tab, flood_change_stream, until

chromium, new_browser = browser.chromium, browser.new_browser
needs_chromium = pytest.mark.skipif(
    browser.CHROMIUM is None, reason="there is no chromium on this machine"
)

# Enough connections for both workers to get some of them.
CONNECTIONS = 12


@dataclass
class OpenPage:
    """The only page of a new user, signed in and connected, and their username."""

    page: Page
    name: str


@pytest.fixture
async def open_page(server: Server, new_browser: NewBrowser) -> OpenPage:
    name = f"eve-{secrets.token_hex(4)}"
    page = await (await new_browser(server.url)).new_page()
    await register(page, name)
    await is_live(page)
    return OpenPage(page, name)


@asynccontextmanager
async def without_a_reload(page: Page) -> AsyncIterator[None]:
    """Check that the page is not reloaded or left meanwhile: that would reset its variables."""
    await page.evaluate("window.remembers = true")
    yield
    assert await page.evaluate("window.remembers === true"), "the page was reloaded"


Release = Callable[[], Awaitable[list[tuple[int, Any]]]]


@asynccontextmanager
async def prepared_requests(person: Person, count: int = CONNECTIONS) -> AsyncIterator[Release]:
    """Open connections with an unfinished request each, to workers that have cached the session.

    The function that is yielded sends the last line of all requests at once, without a new TCP
    handshake, and returns the status and the JSON of each answer.
    """
    address = urlsplit(person.url)
    head = f"GET /api/me HTTP/1.1\r\nHost: {address.netloc}\r\nCookie: {person.cookies()}\r\n"
    lines = [await asyncio.open_connection(address.hostname, address.port) for _ in range(count)]

    async def release() -> list[tuple[int, Any]]:
        for _, writer in lines:
            writer.write(b"\r\n")
        async with asyncio.timeout(SECONDS):
            return [await answer(reader) for reader, _ in lines]

    try:
        for _, writer in lines:
            writer.write(head.encode())
        assert {status for status, _ in await release()} == {200}
        for _, writer in lines:
            writer.write(head.encode())
            await writer.drain()
        yield release
    finally:
        for _, writer in lines:
            writer.close()


async def answer(reader: asyncio.StreamReader) -> tuple[int, Any]:
    head = (await reader.readuntil(b"\r\n\r\n")).decode()
    length = re.search(r"content-length: (\d+)", head, re.IGNORECASE)
    assert length, head
    return int(head.split()[1]), json.loads(await reader.readexactly(int(length[1])))


async def succeeds(answer: Awaitable[httpx.Response]) -> None:
    """Check that the form was accepted."""
    response = await answer
    assert response.status_code == 303, response.text


async def assert_sockets_refused(person: Person, times: int = 6) -> None:
    for _ in range(times):
        with pytest.raises(websockets.InvalidStatus) as refusal:
            async with person.tab():
                pass
        assert refusal.value.response.status_code == 401


async def assert_all_open(tabs: list[Tab], root: Person, username: str) -> None:
    """Grant a role, and check that each tab receives that and no end of its session before it."""
    await succeeds(root.post(f"/admin/users/{username}/grants", role="moderator"))
    for tab in tabs:
        await tab.next("permissions.changed")
        assert await tab.received("session.ended") == []


# ---- an open page shows that its session has ended


@needs_chromium
async def test_exceeding_the_session_limit_locks_the_oldest_page_at_once(
    tmp_path: Path, new_browser: NewBrowser
) -> None:
    """Keycloak issue 26340: with one session allowed to each user, a second sign-in ends the first
    session. "Is it possible for the user of the oldest session to be automatically logged out
    without requiring a page refresh?"
    """
    async with serving(tmp_path, SESSIONS_PER_USER="1", LIVE_SWEEP_SECONDS="3600") as server:
        oldest = await (await new_browser(server.url)).new_page()
        await register(oldest, "usera")
        await is_live(oldest)
        latest = await (await new_browser(server.url)).new_page()
        async with without_a_reload(oldest):
            await sign_in(latest, "usera")
            await expect_locked(oldest, "You ended this session from another device.")
        await is_live(latest)
        await expect(latest.get_by_role("alertdialog")).to_be_hidden()


ENDINGS = {
    "ended by an administrator": ("sessions/end", "root ended your session."),
    "disabled": ("disable", "root disabled your account."),
    "role revoked": ("grants/member/revoke", "root revoked one of your roles."),
    "password changed": (None, "Your password was changed."),
    "expired": (None, "Your session expired."),
}


@needs_chromium
@pytest.mark.parametrize(
    "ending",
    [
        *("role revoked", "expired"),
        # tests/browser/test_live_pages.py shows these reasons on a locked page.
        *(long(each) for each in ("ended by an administrator", "disabled", "password changed")),
    ],
)
async def test_the_locked_page_and_the_sign_in_page_show_the_reason(
    server: Server, root: Person, open_page: OpenPage, ending: str
) -> None:
    """Firezone issue 3329: a client whose session ends should show a notification with a button to
    open the sign-in again. "This prevents the usability issue of being silently signed out with
    no alert or warning."
    """
    page, name = open_page.page, open_page.name
    path, words = ENDINGS[ending]
    if path:
        await succeeds(root.post(f"/admin/users/{name}/{path}"))
    elif ending == "expired":
        async with server.database() as database:
            session = ObjectId(await page.locator("body").get_attribute("data-session"))
            await database.sessions.update_one(
                {"_id": session}, {"$set": {"expires_at": clock.now()}}
            )
    else:
        async with Person(server.url, name, PASSWORD) as elsewhere:
            await elsewhere.sign_in()
            await change_password(elsewhere)
    await expect_locked(page, words)
    await page.goto(await page.locator("#ended-action").get_attribute("href") or "")
    await expect(page.get_by_role("heading", level=1)).to_have_text("Sign in")
    await expect(page.get_by_role("main").get_by_role("status")).to_contain_text(words)


async def change_password(person: Person) -> None:
    new = person.password[::-1]
    await succeeds(
        person.post(
            "/account/password",
            page="/account/password",
            current_password=person.password,
            password=new,
            confirm=new,
        )
    )
    person.password = new


@needs_chromium
# tests/browser/test_drafts.py does the same with a new post.
@pytest.mark.parametrize("place", ["{post}", long("/posts/new"), long("{post}/edit")])
async def test_unsaved_text_survives_a_forced_sign_out(
    root: Person, open_page: OpenPage, place: str
) -> None:
    """PHP-Auth issue 52: when a live session is killed from an administrator's page, "the user
    could be right in the middle of doing something, then for no apparent reason [...] they're
    suddenly logged out and all their session data is lost".
    """
    page, name = open_page.page, open_page.name
    await page.goto("/posts/new")
    await page.get_by_label("Title").fill("A title")
    await page.get_by_label("Text").fill("What stands there")
    await submit(page)
    await page.wait_for_url(lambda url: not url.endswith("/new"))
    path = place.format(post=httpx.URL(page.url).path)
    label = "Your comment" if path == httpx.URL(page.url).path else "Text"
    words = f"Half a thought {secrets.token_hex(4)}"

    await page.goto(path)
    await is_live(page)
    if place == "/posts/new":
        await page.get_by_label("Title").fill("Another title")
    await page.get_by_label(label).fill(words)
    await page.get_by_label(label).press("End")
    await page.keyboard.type(" and then")
    await succeeds(root.post(f"/admin/users/{name}/sessions/end"))
    await expect_locked(page, "Your unsaved text is kept in this tab")

    await sign_in_again(page, name)
    await page.wait_for_url(f"**{path}")
    await expect(page.get_by_label(label)).to_have_value(f"{words} and then")
    if place == "/posts/new":
        await expect(page.get_by_label("Title")).to_have_value("Another title")
    await submit(page)
    await expect(page.locator(".prose, .comment").last).to_contain_text(f"{words} and then")


# ---- an open page follows changes of permissions


@needs_chromium
async def test_controls_of_an_open_tab_follow_the_roles_without_a_reload(
    root: Person, open_page: OpenPage
) -> None:
    """Mattermost issue 6645: "User's role does not update in their client until the page is
    refreshed", neither when a role is gained nor when it is lost. Chatwoot issue 15549: any tab
    that is open "keeps showing the old role's UI (missing/incorrect admin-only menu items,
    settings sections, etc.) until they manually reload the page or log out and back in".
    """
    page, name = open_page.page, open_page.name
    role = f"reader-{secrets.token_hex(4)}"
    menu = page.get_by_role("navigation", name="Main")
    users = menu.get_by_role("link", name="Users", exact=True)
    events = menu.get_by_role("link", name="Audit log", exact=True)
    await succeeds(root.post("/admin/roles/new", name=role, permissions=["users.read"]))
    await page.goto("/posts/new")
    await is_live(page)
    await expect(users).to_be_hidden()
    await page.get_by_label("Title").fill("I was typing this")
    async with without_a_reload(page):
        await succeeds(root.post(f"/admin/users/{name}/grants", role=role))
        await expect(users).to_be_visible()
        await expect(events).to_be_hidden()
        # The permissions of a role change: the tab loses one control and gains another.
        await succeeds(root.post(f"/admin/roles/{role}", name=role, permissions=["events.read"]))
        await expect(events).to_be_visible()
        await expect(users).to_be_hidden()
        await expect(page.get_by_label("Title")).to_have_value("I was typing this")
        # Revoking a role ends the session, which locks the page.
        await succeeds(root.post(f"/admin/users/{name}/grants/{role}/revoke"))
        await expect_locked(page, "root revoked one of your roles.")


# ---- a revoked session can do nothing more

STEPS = {
    "disabled": ("disable", 302),
    "role revoked": ("grants/member/revoke", 403),
    "all sessions ended": ("sessions/end", 200),
}


@pytest.mark.parametrize("step", ["role revoked", long("disabled"), long("all sessions ended")])
async def test_a_revoked_session_is_refused_on_every_page_and_form(
    server: Server, root: Person, ada: Person, bob: Person, step: str
) -> None:
    """Keycloak issue 14420, of a user who is signed in and is then disabled, has a role changed, or
    has all sessions logged out by the administrator: "Check if 'rahul' is able to perform any
    action on its current logged in session. The user can do all actions. This is a security
    issue."
    """
    path, then = STEPS[step]
    wrote = await ada.post("/posts/new", page="/posts/new", title="Before", body="As it was.")
    post = wrote.headers["location"]
    token = await ada.csrf_token("/posts/new")
    forms: dict[str, dict[str, str]] = {
        "/posts/new": {"title": "After", "body": "No."},
        f"{post}/edit": {"title": "After", "body": "No."},
        f"{post}/comments": {"body": "After"},
        f"{post}/delete": {},
        "/account/sessions/end-others": {},
        "/logout": {},
        "/account/password": {
            "current_password": PASSWORD,
            "password": PASSWORD[::-1],
            "confirm": PASSWORD[::-1],
        },
    }
    pages = ["/account", "/account/sessions", "/account/notices", "/posts/new", f"{post}/edit"]
    async with prepared_requests(ada) as release:
        await flood_change_stream(server, bob)
        await succeeds(root.post(f"/admin/users/{ada.username}/{path}"))
        assert {status for status, _ in await release()} == {401}
    for form, fields in forms.items():
        assert_redirected_to_sign_in(
            await ada.client.post(form, data={"csrf_token": token, **fields})
        )
    for page in pages:
        assert_redirected_to_sign_in(await ada.get(page))
    await assert_sockets_refused(ada)

    # None of the forms has changed anything.
    profile = await root.get(f"/users/{ada.username}")
    assert "Before" in profile.text
    assert "After" not in profile.text
    assert "After" not in (await root.get(post)).text
    async with ada.another_device() as new_device:
        await new_device.post("/login", page="/login", login=new_device.username, password=PASSWORD)
        assert (await new_device.get("/posts/new")).status_code == then


async def test_ending_other_sessions_leaves_no_cached_session_valid(
    server: Server, ada: Person, bob: Person
) -> None:
    """Better Auth issue 6893: "After calling authClient.revokeOtherSessions(), the sessions of
    other devices remain valid within the cache period." Workers cache sessions here too, but none
    uses a cached one after the form has been answered.
    """
    async with ada.another_device() as phone:
        await phone.sign_in()
        async with prepared_requests(ada) as release:
            await flood_change_stream(server, bob)
            await succeeds(phone.post("/account/sessions/end-others"))
            answers = await release()
        assert [status for status, _ in answers] == [401] * CONNECTIONS
        assert {body["ended"]["reason"] for _, body in answers} == {"ended_by_user"}
        await assert_sockets_refused(ada)
        assert await phone.is_signed_in()


def assert_redirected_to_sign_in(answer: httpx.Response) -> None:
    assert answer.status_code == 302, f"{answer.request.url}: {answer.status_code}"
    assert httpx.URL(answer.headers["location"]).path == "/login"


# ---- an account can be disabled in several ways


async def by_page(server: Server, root: Person, name: str) -> None:
    await succeeds(root.post(f"/admin/users/{name}/disable"))


async def by_command(server: Server, root: Person, name: str) -> None:
    await server.run("user", "disable", name)


async def by_an_update(server: Server, root: Person, name: str) -> None:
    async with server.database() as database:
        await database.users.update_one({"username": name}, {"$set": {"disabled_at": clock.now()}})


async def by_a_replacement(server: Server, root: Person, name: str) -> None:
    async with server.database() as database:
        user = await database.users.find_one({"username": name})
        assert user
        await database.users.replace_one({"_id": user["_id"]}, user | {"disabled_at": clock.now()})


async def by_a_bulk_write(server: Server, root: Person, name: str) -> None:
    async with server.database() as database:
        await database.users.update_many(
            {"username": {"$in": [name, "nobody"]}}, [{"$set": {"disabled_at": "$$NOW"}}]
        )


Deactivate = Callable[[Server, Person, str], Awaitable[None]]


@pytest.mark.parametrize(
    "deactivate",
    [by_command, by_an_update, by_a_replacement, long(by_page), long(by_a_bulk_write)],
)
async def test_disabling_an_account_by_any_path_ends_all_its_sessions(
    server: Server, root: Person, ada: Person, deactivate: Deactivate
) -> None:
    """Authentik issue 25081: a user who is deactivated by a directory, a blueprint or "a put
    request instead of patch" keeps their session. "At any point a user is deactivated, we should
    delete all their sessions."
    """
    async with ada.another_device() as phone, server.database() as database:
        await phone.sign_in()  # without an open page
        user = await database.users.find_one({"username": ada.username})
        assert user

        async def open_sessions() -> list[dict[str, Any]]:
            return await database.sessions.find(
                {"user.$id": user["_id"], "ended_at": None}
            ).to_list(None)

        assert len(await open_sessions()) == 2
        async with ada.tabs() as tabs:
            await deactivate(server, root, ada.username)
            for tab in tabs:
                assert await tab.closed() == 4401
                (ended,) = await tab.received("session.ended")
                assert ended["reason"] == "account_disabled"

        # This includes the session without an open page, which has sent no request since.
        async def all_over() -> bool:
            return not await open_sessions()

        await until(all_over)
        await until(ada.is_refused)
        await until(phone.is_refused)
        # Enabling the account again does not revive them.
        await server.run("user", "enable", ada.username)
        async with ada.another_device() as new_device:
            await new_device.sign_in()
            assert await new_device.is_signed_in()
        for person in (ada, phone):
            refused = await asyncio.gather(*(person.status("/api/me") for _ in range(CONNECTIONS)))
            assert set(refused) == {401}


# ---- exactly the intended sessions end


async def test_ending_one_of_several_sessions_keeps_the_others(root: Person, ada: Person) -> None:
    """Flask-Security issue 1289 would like "a backing store that maintains active sessions and can
    be used to query if an incoming request has a valid/non expired session ID"; without one a
    single session cannot be taken back. And where it can be, in Keycloak issue 52927, signing out
    one session of a user signed out a second one: "Only Browser A's session is terminated;
    Browser B remains logged in" was expected.
    """
    async with AsyncExitStack() as stack:
        devices = [ada]
        for _ in range(3):
            device = await stack.enter_async_context(ada.another_device())
            await device.sign_in()
            devices.append(device)
        tabs = [await stack.enter_async_context(device.tab()) for device in devices]
        lost, kept = tabs.pop(2), tabs
        assert (await ada.get("/account/sessions")).text.count('/end"') == 4
        await succeeds(ada.post(f"/account/sessions/{lost.hello['session']}/end"))
        refused = await asyncio.gather(*(devices[2].status("/api/me") for _ in range(CONNECTIONS)))
        assert set(refused) == {401}
        assert await lost.closed() == 4401
        await assert_all_open(kept, root, ada.username)
        for device in (devices[0], devices[1], devices[3]):
            assert await device.is_signed_in()
        assert (await ada.get("/account/sessions")).text.count('/end"') == 3


async def test_signing_out_closes_the_sockets_of_the_session(root: Person, ada: Person) -> None:
    """Channels issue 1324: "I log out by HTTP [...] but the socket continues working (sees the old
    user and lets working with the connection)". Warpgate issue 2106: "When a user logs out in a
    separate tab [...] the websocket is not terminated".
    """
    async with ada.another_device() as phone:
        await phone.sign_in()
        async with phone.tab() as other, ada.tabs() as tabs:
            await succeeds(ada.post("/logout"))
            for tab in tabs:
                assert await tab.closed() == 4401
                (ended,) = await tab.received("session.ended")
                assert ended["reason"] == "signed_out"
                assert tab.messages[-1] == ended
                assert not await tab.is_open()
            await assert_all_open([other], root, ada.username)


async def test_replacing_the_session_token_keeps_the_session_open(
    root: Person, ada: Person
) -> None:
    """Klangk pull request 3160, which closes sockets when a token is revoked, spares the rotation
    of a token: "kicking there would drop every user's socket on every token refresh". Here a
    session gets a new token when its user has authenticated again, as by changing the password: the
    old token becomes invalid, and the pages of the session stay open.
    """
    async with ada.tabs() as tabs, ada.another_device() as thief:
        thief.client.cookies = httpx.Cookies(ada.client.cookies)
        assert await thief.is_signed_in()
        await change_password(ada)
        assert ada.cookies() != thief.cookies()
        refused = await asyncio.gather(*(thief.status("/api/me") for _ in range(CONNECTIONS)))
        assert set(refused) == {401}
        await assert_sockets_refused(thief)
        await assert_all_open(tabs, root, ada.username)
        async with ada.tab() as another:
            assert another.hello["session"] == tabs[0].hello["session"]


# ---- an ended session cannot reconnect


async def test_a_client_that_reconnects_with_an_ended_session_is_refused(
    root: Person, ada: Person
) -> None:
    """Wings pull request 289: what there was before "did correctly disconnect the user from the
    websocket, but missed blocking re-connecting with the same token".
    """
    cookies = ada.cookies()
    async with ada.tabs() as tabs:
        await succeeds(root.post(f"/admin/users/{ada.username}/sessions/end"))
        await assert_sockets_refused(ada)
        assert [await tab.closed() for tab in tabs] == [4401, 4401]
    await assert_sockets_refused(ada)
    # Only the sessions were ended: the user can sign in again and gets another session.
    async with ada.another_device() as new_device:
        await new_device.sign_in()
        async with new_device.tab() as tab:
            assert await tab.is_open()
    assert ada.cookies() == cookies
    await assert_sockets_refused(ada)


# Hides the end of the session from a page, as a proxy does that drops the connection silently.
IGNORES_THE_END = """
window.WebSocket = class extends WebSocket {
  set onmessage(listen) {
    super.onmessage = event => JSON.parse(event.data).type === "session.ended" || listen(event)
  }
  set onclose(listen) {
    super.onclose = event => event.code === 4401 || listen(event)
  }
}
"""


@needs_chromium
@pytest.mark.parametrize("notified", [True, False], ids=["notified", "not notified"])
async def test_a_page_with_an_ended_session_does_not_reconnect_in_a_loop(
    server: Server, root: Person, new_browser: NewBrowser, notified: bool
) -> None:
    """Pterodactyl panel pull request 5464, the page's side of Wings: "Don't endlessly poll
    websocket when disconnected due to suspension". Here a page that was notified does not
    reconnect. One that missed the end tries once, learns from `/api/me` why it was refused, and
    does not try again within ten minutes.
    """
    name = f"eve-{secrets.token_hex(4)}"
    page = await (await new_browser(server.url)).new_page()
    calls: list[str] = []
    page.on("websocket", lambda socket: calls.append(socket.url))
    if not notified:
        await page.add_init_script(IGNORES_THE_END)
    await page.clock.install()
    await register(page, name)
    await is_live(page)
    calls.clear()
    await succeeds(root.post(f"/admin/users/{name}/sessions/end"))
    if not notified:
        await page.evaluate("dispatchEvent(new Event('online'))")
    await expect_locked(page, "root ended your session.")

    await page.evaluate("dispatchEvent(new Event('online'))")
    await page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")
    await page.clock.run_for(10 * 60 * 1000)
    # This request comes after all that the page has sent by now.
    assert await page.evaluate("fetch('/api/me').then(answer => answer.status)") == 401
    assert len(calls) == (0 if notified else 1)
