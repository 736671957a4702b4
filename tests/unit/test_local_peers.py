"""What the workers of one server say to each other."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from quartapp.authority.local_peers import LocalPeers


@dataclass
class Street:
    """Where neighbours move in, and what each of them has heard."""

    folder: Path
    stack: AsyncExitStack
    heard: dict[str, list[bytes]] = field(default_factory=dict)
    news: asyncio.Event = field(default_factory=asyncio.Event)

    async def moves_in(self, name: str, folder: Path | None = None) -> LocalPeers:
        heard = self.heard[name] = []

        def hear(message: bytes) -> None:
            heard.append(message)
            self.news.set()

        neighbours = LocalPeers(folder or self.folder, name, hear)
        await neighbours.start()
        self.stack.push_async_callback(neighbours.stop)
        return neighbours

    async def until_heard(self, name: str, count: int) -> list[bytes]:
        async with asyncio.timeout(10):
            while len(self.heard[name]) < count:
                self.news.clear()
                await self.news.wait()
        return self.heard[name]


@pytest.fixture
async def street(tmp_path: Path) -> AsyncIterator[Street]:
    async with AsyncExitStack() as stack:
        yield Street(tmp_path, stack)


async def test_a_word_is_heard_by_whom_it_is_for(street: Street) -> None:
    ada, _, _ = [await street.moves_in(name) for name in ("ada", "bob", "eve")]
    assert ada.send("bob", b"hello")
    assert ada.send("bob", b"are you there?")
    assert await street.until_heard("bob", 2) == [b"hello", b"are you there?"]
    assert street.heard["eve"] == []


async def test_whoever_is_gone_or_was_never_there_is_not_told(street: Street) -> None:
    ada, bob = await street.moves_in("ada"), await street.moves_in("bob")
    assert not ada.send("eve", b"hello")
    await bob.stop()
    assert not ada.send("bob", b"hello")
    assert [path.name for path in street.folder.iterdir()] == ["ada"]


async def test_whoever_died_without_a_word_is_not_told(street: Street) -> None:
    ada = await street.moves_in("ada")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as bob:
        bob.bind(str(street.folder / "bob"))
        assert ada.send("bob", b"hello")
    assert not ada.send("bob", b"hello")


async def test_whoever_does_not_listen_gets_so_many_words_and_no_more(street: Street) -> None:
    ada = await street.moves_in("ada")
    await street.moves_in("bob")
    # Nobody listens for as long as the loop does not turn.
    said = 0
    while ada.send("bob", b"x" * 100):
        said += 1
        assert said < 100_000
    assert len(await street.until_heard("bob", said)) == said
    assert ada.send("bob", b"again")


async def test_where_no_socket_can_be_one_does_without(
    street: Street, capsys: pytest.CaptureFixture[str]
) -> None:
    deep = street.folder / ("long" * 30)
    deep.mkdir()
    ada = await street.moves_in("ada", deep)
    assert not ada.send("ada", b"hello")
    alone = LocalPeers(None, "ada", lambda message: None)
    await alone.start()
    assert not alone.send("ada", b"hello")
    await alone.stop()
