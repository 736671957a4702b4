"""The WebSocket handshake: its origin, its session, and sessions that end during it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from html import escape
from urllib.parse import urlsplit

import pytest
import websockets
from websockets.asyncio.client import connect

from tests.people import SECONDS, Person, Server, until

DEVICES, SOCKETS_EACH = 5, 10


async def handshake_status(person: Person, *origins: str, cookie: str | None = None) -> int:
    """Try a handshake and return its HTTP status."""
    headers = [("Origin", origin) for origin in origins]
    headers.append(("Cookie", person.cookies() if cookie is None else cookie))
    url = person.url.replace("http", "ws", 1) + "/ws"
    try:
        async with connect(url, additional_headers=headers, open_timeout=10):
            return 101
    except websockets.InvalidStatus as refusal:
        return refusal.response.status_code


def refused_origins(url: str) -> dict[str, list[str]]:
    port = urlsplit(url).port or 0
    return {
        "another site": ["http://evil.example"],
        "no origin": [],
        "a sandboxed page": ["null"],
        "an empty origin": [""],
        "another port": [f"http://127.0.0.1:{port + 1}"],
        "no port": ["http://127.0.0.1"],
        "another scheme": [f"https://127.0.0.1:{port}"],
        "another name of the host": [f"http://localhost:{port}"],
        "the host as a prefix": [f"http://127.0.0.1:{port}.evil.example"],
        "the host as a suffix": [f"http://evil127.0.0.1:{port}"],
        "the host as user name": [f"http://127.0.0.1:{port}@evil.example"],
        "the origin with a path": [f"{url}/"],
        "the origin in upper case": [url.upper()],
        "two origins": [url, "http://evil.example"],
        "the origin twice": [url, url],
    }


@pytest.mark.parametrize("origin", refused_origins(""))
async def test_a_handshake_from_another_origin_is_refused(ada: Person, origin: str) -> None:
    assert await handshake_status(ada, *refused_origins(ada.url)[origin]) == 403


async def test_a_handshake_from_the_same_origin_is_accepted(ada: Person) -> None:
    assert await handshake_status(ada, ada.url) == 101


async def test_a_handshake_without_a_valid_cookie_is_refused(ada: Person) -> None:
    name, _, value = ada.cookies().partition("=")
    forged = f"{name}={value[:-2]}xx"
    for cookie in ("", f"{name}=", f"{name}=nonsense", forged):
        assert await handshake_status(ada, ada.url, cookie=cookie) == 401


async def test_a_handshake_after_signing_out_is_refused(ada: Person) -> None:
    cookies = ada.cookies()
    assert (await ada.post("/logout")).status_code == 303
    assert await handshake_status(ada, ada.url, cookie=cookies) == 401


async def test_the_origin_is_checked_before_the_session(ada: Person) -> None:
    assert await handshake_status(ada, "http://evil.example", cookie="") == 403


async def test_hello_has_the_same_user_and_permissions_as_api_me(ada: Person) -> None:
    me = await ada.me()
    assert me
    async with ada.tab() as tab:
        hello = dict(tab.hello)
    user = hello.pop("user")
    assert user["username"] == me.pop("username")
    assert hello.pop("type") == "hello"
    assert hello.pop("worker") in ("0", "1")
    assert hello.pop("cursor") == "1"
    assert hello == me


@pytest.fixture
async def devices(ada: Person) -> AsyncIterator[list[Person]]:
    async with AsyncExitStack() as stack:
        devices = [await stack.enter_async_context(ada.another_device()) for _ in range(DEVICES)]
        for device in devices:
            await device.sign_in()
        yield devices


@pytest.mark.parametrize(
    "greeted",
    [(0, 1, 10, 25, 45), pytest.param((0, 1, 2, 3, *range(5, 50, 3)) * 2, marks=pytest.mark.long)],
    ids=["5 rounds", "38 rounds"],
)
async def test_a_session_that_ends_during_the_handshake_leaves_no_socket_open(
    server: Server, ada: Person, devices: list[Person], greeted: tuple[int, ...]
) -> None:
    """Fifty sockets connect at once, and their sessions end when some have received `hello`.

    This server does not sweep, so a socket that joined too late would stay open.
    """
    outcomes: list[str] = []
    async with server.database() as database:
        user = await database["users"].find_one({"username": ada.username})
        assert user
        mine = {"user.$id": user["_id"]}
        ended = {"ended_at": user["created_at"], "ended_reason": "ended_by_admin"}
        alive = {"ended_at": None, "ended_reason": None}
        for count in greeted:
            hellos = HelloCounter()
            sockets = [
                asyncio.create_task(outcome(device, hellos))
                for device in devices
                for _ in range(SOCKETS_EACH)
            ]
            await hellos.reach(count)
            await database["sessions"].update_many(mine, {"$set": ended})
            async with asyncio.timeout(SECONDS):
                outcomes += await asyncio.gather(*sockets)
            await database["sessions"].update_many(mine, {"$set": alive})
    assert set(outcomes) <= {"refused", "notified before hello", "notified"}, outcomes
    # Sessions ended before and after the handshake, so the rounds raced with it.
    assert {"refused", "notified"} <= set(outcomes)


class HelloCounter:
    """Counts the sockets that have received `hello`."""

    def __init__(self) -> None:
        self._count = 0
        self._changed = asyncio.Event()

    def add(self) -> None:
        self._count += 1
        self._changed.set()

    async def reach(self, count: int) -> None:
        """Wait until that many sockets have received `hello`."""
        async with asyncio.timeout(SECONDS):
            while self._count < count:
                self._changed.clear()
                await self._changed.wait()


async def outcome(person: Person, hellos: HelloCounter) -> str:
    """Connect, wait for the end of the session, and return how the socket ended."""
    received: list[str] = []
    try:
        async with connect(
            person.url.replace("http", "ws", 1) + "/ws",
            origin=websockets.Origin(person.url),
            additional_headers={"Cookie": person.cookies()},
            compression=None,
        ) as socket:
            while True:
                received.append(json.loads(await socket.recv())["type"])
                if received[-1] == "hello":
                    hellos.add()
    except websockets.InvalidStatus as refusal:
        return "refused" if refusal.response.status_code == 401 else str(refusal)
    except websockets.ConnectionClosed as closed:
        if closed.rcvd is None or closed.rcvd.code != 4401 or received[-1:] != ["session.ended"]:
            return f"{closed} after {received}"
        return "notified" if "hello" in received else "notified before hello"


@pytest.mark.parametrize(
    ("page", "shown"),
    [
        ("/posts", "/posts"),
        ("/reset/a-secret-token", "/reset/<token>"),
        ("/no/such/page", "\N{EN DASH}"),
        ("//evil.example/", "\N{EN DASH}"),
    ],
)
async def test_administrators_see_the_page_that_is_open(
    ada: Person, root: Person, page: str, shown: str
) -> None:
    async with ada.tab(page=page):

        async def listed() -> bool:
            answer = await root.get(f"/admin/sessions?person={ada.username}")
            return (
                f'data-label="Page, IP address" class="mono">{escape(shown)}\n' in answer.text
                and ("online" in answer.text.partition("<tbody")[2])
            )

        await until(listed)
    assert "a-secret-token" not in (await root.get("/admin/sessions")).text
