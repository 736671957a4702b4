"""The handshake of sockets: its origin, its session, and sessions that end during it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from urllib.parse import urlsplit

import pytest
import websockets
from websockets.asyncio.client import connect

from tests.people import SECONDS, Person, Server

DEVICES, SOCKETS_EACH = 5, 10


async def shake_hands(person: Person, *origins: str, cookie: str | None = None) -> int:
    """Try a handshake and return its HTTP status."""
    headers = [("Origin", origin) for origin in origins]
    headers.append(("Cookie", person.cookies() if cookie is None else cookie))
    url = person.url.replace("http", "ws", 1) + "/ws"
    try:
        async with connect(url, additional_headers=headers, open_timeout=10):
            return 101
    except websockets.InvalidStatus as refusal:
        return refusal.response.status_code


def origins_of_others(url: str) -> dict[str, list[str]]:
    port = urlsplit(url).port or 0
    return {
        "another site": ["http://evil.example"],
        "no page": [],
        "a sandboxed page": ["null"],
        "an empty one": [""],
        "another port": [f"http://127.0.0.1:{port + 1}"],
        "no port": ["http://127.0.0.1"],
        "another scheme": [f"https://127.0.0.1:{port}"],
        "another name of this host": [f"http://localhost:{port}"],
        "a name that begins like ours": [f"http://127.0.0.1:{port}.evil.example"],
        "a name that ends like ours": [f"http://evil127.0.0.1:{port}"],
        "our name as the user": [f"http://127.0.0.1:{port}@evil.example"],
        "ours with a path": [f"{url}/"],
        "ours in another case": [url.upper()],
        "two": [url, "http://evil.example"],
        "ours twice": [url, url],
    }


@pytest.mark.parametrize("whose", origins_of_others(""))
async def test_a_handshake_from_another_origin_is_refused(ada: Person, whose: str) -> None:
    assert await shake_hands(ada, *origins_of_others(ada.url)[whose]) == 403


async def test_a_handshake_from_the_same_origin_is_accepted(ada: Person) -> None:
    assert await shake_hands(ada, ada.url) == 101


async def test_a_handshake_without_a_valid_cookie_is_refused(ada: Person) -> None:
    name, _, value = ada.cookies().partition("=")
    forged = f"{name}={value[:-2]}xx"
    for cookie in ("", f"{name}=", f"{name}=nonsense", forged):
        assert await shake_hands(ada, ada.url, cookie=cookie) == 401


async def test_a_handshake_after_signing_out_is_refused(ada: Person) -> None:
    cookies = ada.cookies()
    assert (await ada.post("/logout")).status_code == 303
    assert await shake_hands(ada, ada.url, cookie=cookies) == 401


async def test_the_origin_is_checked_before_the_session(ada: Person) -> None:
    assert await shake_hands(ada, "http://evil.example", cookie="") == 403


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
    """Fifty sockets connect at once, and their sessions end when some of them have been greeted.

    This server does not sweep, so a socket that joined too late would stay open.
    """
    fates: list[str] = []
    async with server.database() as database:
        user = await database["users"].find_one({"username": ada.username})
        assert user
        mine = {"user.$id": user["_id"]}
        ended = {"ended_at": user["created_at"], "ended_reason": "ended_by_admin"}
        alive = {"ended_at": None, "ended_reason": None}
        for count in greeted:
            greetings = Greetings()
            sockets = [
                asyncio.create_task(fate(device, greetings))
                for device in devices
                for _ in range(SOCKETS_EACH)
            ]
            await greetings.reach(count)
            await database["sessions"].update_many(mine, {"$set": ended})
            async with asyncio.timeout(SECONDS):
                fates += await asyncio.gather(*sockets)
            await database["sessions"].update_many(mine, {"$set": alive})
    assert set(fates) <= {"refused", "told before hello", "told"}, fates
    # Sessions ended before and after the handshake, so the rounds raced with it.
    assert {"refused", "told"} <= set(fates)


class Greetings:
    """Counts the sockets that have been greeted."""

    def __init__(self) -> None:
        self._count = 0
        self._changed = asyncio.Event()

    def add(self) -> None:
        self._count += 1
        self._changed.set()

    async def reach(self, count: int) -> None:
        """Wait until so many sockets have been greeted."""
        async with asyncio.timeout(SECONDS):
            while self._count < count:
                self._changed.clear()
                await self._changed.wait()


async def fate(person: Person, greetings: Greetings) -> str:
    """Connect, wait for the end of the session, and return what became of the socket."""
    said: list[str] = []
    try:
        async with connect(
            person.url.replace("http", "ws", 1) + "/ws",
            origin=websockets.Origin(person.url),
            additional_headers={"Cookie": person.cookies()},
            compression=None,
        ) as socket:
            while True:
                said.append(json.loads(await socket.recv())["type"])
                if said[-1] == "hello":
                    greetings.add()
    except websockets.InvalidStatus as refusal:
        return "refused" if refusal.response.status_code == 401 else str(refusal)
    except websockets.ConnectionClosed as closed:
        if closed.rcvd is None or closed.rcvd.code != 4401 or said[-1:] != ["session.ended"]:
            return f"{closed} after {said}"
        return "told" if "hello" in said else "told before hello"
