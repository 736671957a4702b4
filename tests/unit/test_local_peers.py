"""Messages between the workers of one server."""

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
class PeerGroup:
    """Starts peers in a folder, and collects the messages that each of them receives."""

    folder: Path
    stack: AsyncExitStack
    received: dict[str, list[bytes]] = field(default_factory=dict)
    arrived: asyncio.Event = field(default_factory=asyncio.Event)

    async def start(self, name: str, folder: Path | None = None) -> LocalPeers:
        received = self.received[name] = []

        def receive(message: bytes) -> None:
            received.append(message)
            self.arrived.set()

        peer = LocalPeers(folder or self.folder, name, receive)
        await peer.start()
        self.stack.push_async_callback(peer.stop)
        return peer

    async def wait_for(self, name: str, count: int) -> list[bytes]:
        async with asyncio.timeout(10):
            while len(self.received[name]) < count:
                self.arrived.clear()
                await self.arrived.wait()
        return self.received[name]


@pytest.fixture
async def peers(tmp_path: Path) -> AsyncIterator[PeerGroup]:
    async with AsyncExitStack() as stack:
        yield PeerGroup(tmp_path, stack)


async def test_a_message_is_received_by_its_recipient_only(peers: PeerGroup) -> None:
    ada, _, _ = [await peers.start(name) for name in ("ada", "bob", "eve")]
    assert ada.send("bob", b"hello")
    assert ada.send("bob", b"are you there?")
    assert await peers.wait_for("bob", 2) == [b"hello", b"are you there?"]
    assert peers.received["eve"] == []


async def test_sending_to_a_stopped_or_unknown_peer_fails(peers: PeerGroup) -> None:
    ada, bob = await peers.start("ada"), await peers.start("bob")
    assert not ada.send("eve", b"hello")
    await bob.stop()
    assert not ada.send("bob", b"hello")
    assert [path.name for path in peers.folder.iterdir()] == ["ada"]


async def test_sending_to_a_crashed_peer_fails(peers: PeerGroup) -> None:
    ada = await peers.start("ada")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as bob:
        bob.bind(str(peers.folder / "bob"))
        assert ada.send("bob", b"hello")
    assert not ada.send("bob", b"hello")


async def test_the_queue_of_a_peer_that_does_not_read_is_bounded(peers: PeerGroup) -> None:
    ada = await peers.start("ada")
    await peers.start("bob")
    # Bob does not read while the loop does not turn.
    sent = 0
    while ada.send("bob", b"x" * 100):
        sent += 1
        assert sent < 100_000
    assert len(await peers.wait_for("bob", sent)) == sent
    assert ada.send("bob", b"again")


async def test_a_worker_runs_without_peers_where_no_socket_can_be_created(
    peers: PeerGroup, capsys: pytest.CaptureFixture[str]
) -> None:
    deep = peers.folder / ("long" * 30)
    deep.mkdir()
    ada = await peers.start("ada", deep)
    assert not ada.send("ada", b"hello")
    alone = LocalPeers(None, "ada", lambda message: None)
    await alone.start()
    assert not alone.send("ada", b"hello")
    await alone.stop()
