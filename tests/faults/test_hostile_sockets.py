"""Clients that violate the WebSocket protocol or flood the server: what they cost is bounded."""

from __future__ import annotations

import asyncio
import base64
import os
import re
import socket
import struct
import zlib
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Self
from urllib.parse import urlsplit

import pytest
import websockets

from tests.conftest import PASSWORD, serving
from tests.integration.flows.conftest import ERROR_SIGNS
from tests.integration.flows.test_socket_limits import (
    more_than_buffers_hold,
    stalled_client,
    store_notifications,
)
from tests.people import Person, Server, until

PING, PER_SESSION = 2, 100
MEGABYTE = 1_000_000
PUSHED = 60 * MEGABYTE
# What the kernel buffers at both ends of a connection hold before it is read.
IN_BUFFERS = 25 * MEGABYTE
ALLOWED = 10 * MEGABYTE

CONTINUATION, TEXT, BINARY, CLOSE, PING_FRAME = 0x0, 0x1, 0x2, 0x8, 0x9
FIN, RSV1 = 0x80, 0x40


@pytest.fixture(scope="module")
async def server(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Server]:
    async with serving(
        tmp_path_factory.mktemp("hostile"),
        workers=1,
        LIVE_PING_SECONDS=str(PING),
        LIVE_SWEEP_SECONDS="3600",
        SOCKETS_PER_SESSION=str(PER_SESSION),
        SOCKETS_PER_USER=str(PER_SESSION),
    ) as server:
        async with Person(server.url, "eve", PASSWORD) as eve:
            await eve.register()
            # Load what is loaded at first use, so that it is not counted as a leak.
            await asyncio.gather(*(warm_up(eve) for _ in range(20)))
        yield server


async def warm_up(person: Person) -> None:
    async with RawSocket.upgraded(person) as client:
        await client.send(frame(b"x" * 4000))
        assert await client.closed() == 4400


@pytest.fixture(autouse=True)
def no_errors_logged(server: Server) -> Iterator[None]:
    """Check that each test logs no error and leaves the worker running."""
    worker, before = server.worker("0"), len(server.stderr())
    yield
    log = server.stderr()[before:]
    assert not [line for line in log.splitlines() if any(s in line for s in ERROR_SIGNS)], log
    assert server.worker("0") == worker


# ---- raw frames


def frame(payload: bytes, *, first: int = FIN | TEXT, length: int | None = None) -> bytes:
    """Return a frame of a client, masked with zeros. The header may announce another length."""
    size = len(payload) if length is None else length
    if size < 126:
        head = bytes([first, 0x80 | size])
    elif size < 65_536:
        head = bytes([first, 0x80 | 126]) + struct.pack("!H", size)
    else:
        head = bytes([first, 0x80 | 127]) + struct.pack("!Q", size)
    return head + bytes(4) + payload


@dataclass
class RawSocket:
    """A TCP connection that has sent a handshake. It reads only in the methods that return data."""

    socket: socket.socket
    head: bytes = b""

    @classmethod
    @asynccontextmanager
    async def open(
        cls, person: Person, *, headers: dict[str, str] | None = None, after: bytes = b""
    ) -> AsyncIterator[Self]:
        """Send the handshake with these headers in addition, and these bytes after it."""
        address = urlsplit(person.url)
        lines = {
            "Host": address.netloc,
            "Origin": person.url,
            "Cookie": person.cookies(),
            "Upgrade": "websocket",
            "Connection": "Upgrade",
            "Sec-WebSocket-Version": "13",
            "Sec-WebSocket-Key": base64.b64encode(os.urandom(16)).decode(),
        } | (headers or {})
        head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
        with socket.socket() as sock:
            sock.setblocking(False)
            loop = asyncio.get_running_loop()
            await loop.sock_connect(sock, (address.hostname, address.port))
            await loop.sock_sendall(sock, f"GET /ws HTTP/1.1\r\n{head}\r\n".encode() + after)
            yield cls(sock)

    @classmethod
    @asynccontextmanager
    async def upgraded(cls, person: Person, **headers: str) -> AsyncIterator[Self]:
        async with cls.open(person, headers=headers) as client:
            await client.read_response_head()
            assert client.head.startswith(b"HTTP/1.1 101"), client.head
            yield client

    async def read_response_head(self) -> None:
        """Read the answer byte by byte, so that the frames after it are not consumed."""
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(10):
            while not self.head.endswith(b"\r\n\r\n"):
                byte = await loop.sock_recv(self.socket, 1)
                if not byte:
                    break
                self.head += byte

    async def send(self, data: bytes) -> None:
        async with asyncio.timeout(20):
            await asyncio.get_running_loop().sock_sendall(self.socket, data)

    async def send_repeatedly(self, chunk: bytes, *, most: int = PUSHED) -> int:
        """Send the chunk repeatedly until the connection is closed, and return the bytes sent."""
        pushed = 0
        with suppress(ConnectionError):
            while pushed < most:
                await self.send(chunk)
                pushed += len(chunk)
        return pushed

    async def read_to_end(self) -> bytes:
        """Read all data until the server closes the connection, and return it."""
        received, loop = b"", asyncio.get_running_loop()
        async with asyncio.timeout(10):
            with suppress(ConnectionError):
                while chunk := await loop.sock_recv(self.socket, 65_536):
                    received += chunk
        return received

    async def closed(self) -> int | None:
        """Return the code of the close frame before the end of the connection, None without one."""
        return close_code(await self.read_to_end())

    def reset(self) -> None:
        """Reset the connection without a close frame."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()


def close_code(data: bytes) -> int | None:
    while len(data) >= 2:
        opcode, size, start = data[0] & 0x0F, data[1], 2
        if size == 126:
            (size,), start = struct.unpack("!H", data[2:4]), 4
        if opcode == CLOSE:
            return int.from_bytes(data[start : start + 2], "big")
        data = data[start + size :]
    return None


# ---- measurements


def resident(pid: int, field: str = "VmRSS") -> int:
    found = re.search(rf"{field}:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert found
    return 1024 * int(found[1])


@contextmanager
def bounded_memory(server: Server) -> Iterator[None]:
    """Check that the peak memory of the worker grows by less than `ALLOWED` meanwhile."""
    worker = server.worker("0")
    # This resets the peak that the kernel reports as VmHWM.
    Path(f"/proc/{worker}/clear_refs").write_text("5")
    before = resident(worker)
    yield
    grown = resident(worker, "VmHWM") - before
    assert grown < ALLOWED, f"{grown / MEGABYTE:.1f} MB more"


async def sockets(person: Person) -> int:
    """Return how many sockets the server counts as open."""
    found = re.search(r"^quartapp_sockets (\d+)", (await person.get("/metrics")).text, re.M)
    assert found
    return int(found[1])


async def wait_for_open_sockets(person: Person, before: int) -> None:
    async def as_before() -> bool:
        return await sockets(person) == before

    await until(as_before, within=2 * PING + 8)


# ---- compression


async def test_the_server_declines_compression(ada: Person) -> None:
    offer = {"Sec-WebSocket-Extensions": "permessage-deflate; client_max_window_bits"}
    async with RawSocket.upgraded(ada, **offer) as client:
        assert b"sec-websocket-extensions" not in client.head.lower()


async def test_a_compressed_frame_closes_the_socket_and_is_not_inflated(
    server: Server, ada: Person
) -> None:
    packer = zlib.compressobj(wbits=-15)
    bomb = packer.compress(bytes(PUSHED)) + packer.flush(zlib.Z_SYNC_FLUSH)[:-4]
    offer = {"Sec-WebSocket-Extensions": "permessage-deflate"}
    with bounded_memory(server):
        async with RawSocket.upgraded(ada, **offer) as client:
            with suppress(ConnectionError):
                await client.send(frame(bomb, first=FIN | RSV1 | TEXT))
            # 1009, "too long", would mean that the frame had been inflated.
            assert await client.closed() != 1009
    assert await ada.status("/api/me") == 200


# ---- floods


async def flood_repeatedly(
    person: Person, start: bytes, chunk: bytes, *, codes: set[int | None]
) -> None:
    """Send tens of megabytes, over as many connections as that takes, since each is closed."""
    pushed = 0
    while pushed < PUSHED:
        async with RawSocket.upgraded(person) as client:
            with suppress(ConnectionError):
                await client.send(start)
            taken = await client.send_repeatedly(chunk)
            assert taken < IN_BUFFERS, "the server did not close the connection"
            assert await client.closed() in codes
            pushed += max(taken, len(chunk))


@pytest.mark.parametrize("opcode", [TEXT, BINARY], ids=["text", "binary"])
async def test_a_frame_that_is_too_long_closes_the_socket_and_is_not_kept(
    server: Server, ada: Person, opcode: int
) -> None:
    start = frame(b"", first=FIN | opcode, length=1 << 40)
    with bounded_memory(server):
        await flood_repeatedly(ada, start, b"x" * MEGABYTE, codes={1009})


async def test_an_endless_fragmented_message_closes_the_socket(server: Server, ada: Person) -> None:
    start = frame(b"x", first=TEXT)
    with bounded_memory(server):
        chunk = frame(b"x" * 1000, first=CONTINUATION) * 1000
        await flood_repeatedly(ada, start, chunk, codes={1009})


async def test_a_message_of_endless_empty_fragments_is_closed_as_silent(
    server: Server, ada: Person
) -> None:
    """It never becomes too long, but a client without a complete message counts as silent."""
    before = await sockets(ada)
    with bounded_memory(server):
        async with RawSocket.upgraded(ada) as client:
            await client.send(frame(b"x", first=TEXT))
            pushing = asyncio.create_task(
                send_forever(client, frame(b"", first=CONTINUATION) * 100)
            )
            try:
                await wait_for_open_sockets(ada, before)
            finally:
                pushing.cancel()
                await asyncio.wait([pushing])


async def send_forever(client: RawSocket, chunk: bytes) -> None:
    with suppress(ConnectionError):
        while True:
            await client.send(chunk)
            await asyncio.sleep(0.01)


@pytest.mark.parametrize(
    "data",
    [
        b'{"type":"pong","at":"' + b"x" * 4000 + b'"}',
        b'{"type":"pong"}',
        b'{"type":"ack","id":"17"}',
        b"x" * 4000,
        b"{" * 60_000,
    ],
    ids=["long pongs", "pongs", "acknowledgements", "junk", "long junk"],
)
async def test_a_flood_of_messages_is_closed_and_delays_no_other_socket(
    server: Server, ada: Person, bob: Person, data: bytes
) -> None:
    chunk = frame(data) * max(1, MEGABYTE // 10 // len(frame(data)))
    async with bob.tab() as tab:
        with bounded_memory(server):
            flood = asyncio.create_task(flood_until_closed(ada, chunk))
            try:
                trips = 0
                while not flood.done():
                    # This makes a round trip, during which the tab also answers pings.
                    assert await tab.received("session.ended") == []
                    trips += 1
                    await asyncio.wait([flood], timeout=0.05)
            finally:
                flood.cancel()
                await asyncio.wait([flood])
            flood.result()
        assert trips > 1
        assert await tab.is_open(), tab.socket.close_code


async def flood_until_closed(person: Person, chunk: bytes) -> None:
    async with RawSocket.upgraded(person) as client:
        # The server continues to read for a second, and discards the data.
        async with asyncio.timeout(10):
            await client.send_repeatedly(chunk, most=1000 * PUSHED)
        assert await client.closed() == 4400


async def test_a_client_that_pings_and_does_not_read_is_closed(
    server: Server, ada: Person, bob: Person
) -> None:
    """hypercorn answers each ping, and the answers are not read."""
    before = await sockets(ada)
    chunk = frame(b"p" * 125, first=FIN | PING_FRAME) * 500
    with bounded_memory(server):
        async with RawSocket.upgraded(ada) as client:
            pushing = asyncio.create_task(send_forever(client, chunk))
            try:
                async with bob.tab() as tab:
                    await tab.next("ping")
                    assert await tab.is_open()
                await wait_for_open_sockets(ada, before)
            finally:
                pushing.cancel()
                await asyncio.wait([pushing])
    assert await ada.status("/api/me") == 200


# ---- protocol errors


@pytest.mark.parametrize(
    ("sent", "code"),
    [
        (frame(b"", first=FIN | BINARY), 4400),
        (frame(b""), 4400),
        (frame(b"\x03", first=FIN | CLOSE), None),
        (frame(b"\x00\x01", first=FIN | CLOSE), None),
        (frame(b"\x03\xe8\xff\xfe", first=FIN | CLOSE), None),
        (frame(b"x", first=FIN | 0x3), None),
        (frame(b"x", first=FIN | 0xB), None),
        (frame(b"\xff\xfe"), None),
        (frame(b"\xc3"), None),
        (frame(b"x", first=FIN | CONTINUATION), None),
        (frame(b"x", first=TEXT) + frame(b"x", first=FIN | TEXT), None),
        (frame(b"x", first=PING_FRAME), None),
        (frame(b"x" * 126, first=FIN | PING_FRAME), None),
        (bytes([FIN | TEXT, 1]) + b"x", None),
        (bytes([FIN | TEXT, 0xFF]) + b"\xff" * 8 + bytes(4), None),
        (bytes([FIN | TEXT, 0xFE]) + b"\x00\x01" + bytes(4) + b"x", None),
        (b"GET / HTTP/1.1\r\n\r\n", None),
    ],
    ids=[
        "empty binary",
        "empty text",
        "close of one byte",
        "close with an invalid code",
        "close with an invalid reason",
        "reserved opcode",
        "reserved control opcode",
        "invalid UTF-8",
        "half a character",
        "continuation without a start",
        "start inside a message",
        "fragmented ping",
        "ping that is too long",
        "unmasked frame",
        "largest length",
        "length in too many bytes",
        "another HTTP request",
    ],
)
async def test_a_protocol_error_ends_only_its_own_socket(
    server: Server, ada: Person, bob: Person, sent: bytes, code: int | None
) -> None:
    before = await sockets(ada)
    async with RawSocket.upgraded(ada) as client:
        await client.send(sent)
        assert await client.closed() == code
    await wait_for_open_sockets(ada, before)
    assert await ada.status("/api/me") == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"Sec-WebSocket-Protocol": "chat"},
        {"Sec-WebSocket-Protocol": "chät"},
        {"Sec-WebSocket-Extensions": "däflate"},
        {"Connection": "Upgrade, Ü"},
        {"Sec-WebSocket-Key": "ü"},
        {"Sec-WebSocket-Key": ""},
        {"Sec-WebSocket-Version": "ü"},
        {"Origin": "ü"},
        {"Cookie": "ü=ü"},
    ],
    ids=lambda headers: "{}: {!a}".format(*next(iter(headers.items()))),
)
async def test_a_malformed_handshake_is_answered_and_the_worker_lives(
    ada: Person, headers: dict[str, str]
) -> None:
    async with RawSocket.open(ada, headers=headers) as client:
        await client.read_response_head()
        assert re.match(rb"HTTP/1.1 (101|40[0-9]) ", client.head), client.head
    assert await ada.status("/api/me") == 200


# ---- handshakes and disconnects


async def test_bytes_sent_right_after_the_handshake_leak_no_socket(
    server: Server, ada: Person
) -> None:
    """hypercorn refuses the connection, but the application has already started to serve it."""
    before = await sockets(ada)
    for _ in range(20):
        await asyncio.gather(*(send_after_handshake(ada) for _ in range(10)))
    await until(lambda: can_connect(ada), within=2 * PING + 8)
    await wait_for_open_sockets(ada, before)


async def send_after_handshake(person: Person) -> None:
    async with RawSocket.open(person, after=b"x") as client:
        await client.read_response_head()
        assert b" 400 " in client.head.splitlines()[0]


async def can_connect(person: Person) -> bool:
    try:
        async with person.tab() as tab:
            return await tab.is_open()
    except websockets.InvalidStatus:
        return False


@pytest.mark.parametrize(
    ("headers", "after"),
    [({}, b"x"), ({"Sec-WebSocket-Version": "12"}, b"")],
    ids=["bytes after it", "another version"],
)
async def test_a_refused_handshake_closes_the_connection(
    server: Server, ada: Person, headers: dict[str, str], after: bytes
) -> None:
    async with RawSocket.open(ada, headers=headers, after=after) as client:
        await client.read_response_head()
        assert b" 400 " in client.head.splitlines()[0]
        async with asyncio.timeout(5):
            assert await client.read_to_end() == b""


@pytest.mark.parametrize("rounds", [4, pytest.param(10, marks=pytest.mark.long)])
async def test_sockets_that_are_reset_leak_no_place_and_no_memory(
    server: Server, ada: Person, rounds: int
) -> None:
    before = await sockets(ada)
    worker = server.worker("0")

    async def come_and_go() -> None:
        async with RawSocket.upgraded(ada) as client:
            client.reset()

    async def round_of_them() -> int:
        for _ in range(10):
            await asyncio.gather(*(come_and_go() for _ in range(10)))
        await wait_for_open_sockets(ada, before)
        return resident(worker)

    first = await round_of_them()
    later = [await round_of_them() for _ in range(rounds - 1)]
    assert later[-1] <= 1.05 * first + 2 * MEGABYTE, (first, later)


@pytest.mark.long
@pytest.mark.timeout(150)
async def test_the_kernel_closes_a_client_that_does_not_receive(
    server: Server, ada: Person
) -> None:
    """The handler has ended long before, but the connection waits for its data to be received."""
    await store_notifications(server, ada, more_than_buffers_hold())
    with stalled_client(ada) as client:
        theirs, ours = client.getsockname()[1], client.getpeername()[1]
        assert is_connected(server, ours, theirs)
        await wait_for_open_sockets(ada, 0)
        assert is_connected(server, ours, theirs)

        async def is_cut() -> bool:
            return not is_connected(server, ours, theirs)

        await until(is_cut, within=60)


def is_connected(server: Server, local: int, remote: int) -> bool:
    """Return whether the kernel still has the server's end of this connection."""
    worker = Path(f"/proc/{server.worker('0')}")
    for row in (worker / "net/tcp").read_text().splitlines()[1:]:
        _, here, there, *_ = row.split()
        if int(here.split(":")[1], 16) == local and int(there.split(":")[1], 16) == remote:
            return True
    return False
