"""Clients that speak the protocol of sockets by hand, and badly: what they cost is bounded."""

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
from tests.flows.conftest import ERROR_SIGNS
from tests.flows.test_socket_limits import (
    more_than_buffers_hold,
    stalled_client,
    store_notifications,
)
from tests.people import Person, Server, until

PING, PER_SESSION = 2, 100
MEGABYTE = 1_000_000
PUSHED = 60 * MEGABYTE
# What the kernel's buffers on both ends of one connection take before anybody looks at it.
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
        async with Person(server.url, "somebody", PASSWORD) as somebody:
            await somebody.register()
            # What is loaded at the first use is loaded.
            await asyncio.gather(*(warm_up(somebody) for _ in range(20)))
        yield server


async def warm_up(person: Person) -> None:
    async with Line.upgraded(person) as line:
        await line.send(frame(b"x" * 4000))
        assert await line.closed() == 4400


@pytest.fixture(autouse=True)
def no_errors_logged(server: Server) -> Iterator[None]:
    """Nothing that a client sends is worth a traceback, and none ends the worker."""
    worker, before = server.worker("0"), len(server.stderr())
    yield
    said = server.stderr()[before:]
    assert not [line for line in said.splitlines() if any(s in line for s in ERROR_SIGNS)], said
    assert server.worker("0") == worker


# ---- frames by hand


def frame(payload: bytes, *, first: int = FIN | TEXT, length: int | None = None) -> bytes:
    """As a client sends it, masked with zeros; the header may announce another length."""
    size = len(payload) if length is None else length
    if size < 126:
        head = bytes([first, 0x80 | size])
    elif size < 65_536:
        head = bytes([first, 0x80 | 126]) + struct.pack("!H", size)
    else:
        head = bytes([first, 0x80 | 127]) + struct.pack("!Q", size)
    return head + bytes(4) + payload


@dataclass
class Line:
    """A connection after, or instead of, a handshake. It reads only when it is asked to."""

    socket: socket.socket
    head: bytes = b""

    @classmethod
    @asynccontextmanager
    async def open(
        cls, person: Person, *, more: dict[str, str] | None = None, behind: bytes = b""
    ) -> AsyncIterator[Self]:
        """Sends the request to upgrade, with more headers and with something right behind it."""
        address = urlsplit(person.url)
        lines = {
            "Host": address.netloc,
            "Origin": person.url,
            "Cookie": person.cookies(),
            "Upgrade": "websocket",
            "Connection": "Upgrade",
            "Sec-WebSocket-Version": "13",
            "Sec-WebSocket-Key": base64.b64encode(os.urandom(16)).decode(),
        } | (more or {})
        head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
        with socket.socket() as sock:
            sock.setblocking(False)
            loop = asyncio.get_running_loop()
            await loop.sock_connect(sock, (address.hostname, address.port))
            await loop.sock_sendall(sock, f"GET /ws HTTP/1.1\r\n{head}\r\n".encode() + behind)
            yield cls(sock)

    @classmethod
    @asynccontextmanager
    async def upgraded(cls, person: Person, **more: str) -> AsyncIterator[Self]:
        async with cls.open(person, more=more) as line:
            await line.read_head()
            assert line.head.startswith(b"HTTP/1.1 101"), line.head
            yield line

    async def read_head(self) -> None:
        """A byte at a time, so that nothing of the frames behind it is taken."""
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

    async def push(self, chunk: bytes, *, most: int = PUSHED) -> int:
        """Sends it again and again until the line is cut; how many bytes were taken."""
        pushed = 0
        with suppress(ConnectionError):
            while pushed < most:
                await self.send(chunk)
                pushed += len(chunk)
        return pushed

    async def rest(self) -> bytes:
        """All that is still said, until the server has cut the line."""
        received, loop = b"", asyncio.get_running_loop()
        async with asyncio.timeout(10):
            with suppress(ConnectionError):
                while chunk := await loop.sock_recv(self.socket, 65_536):
                    received += chunk
        return received

    async def closed(self) -> int | None:
        """The code with which the server closed before it cut the line; None if it said none."""
        return close_code(await self.rest())

    def kill(self) -> None:
        """Is gone without a word: the server's end is reset."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()


def close_code(said: bytes) -> int | None:
    while len(said) >= 2:
        opcode, size, start = said[0] & 0x0F, said[1], 2
        if size == 126:
            (size,), start = struct.unpack("!H", said[2:4]), 4
        if opcode == CLOSE:
            return int.from_bytes(said[start : start + 2], "big")
        said = said[start + size :]
    return None


# ---- what is measured


def resident(pid: int, field: str = "VmRSS") -> int:
    found = re.search(rf"{field}:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert found
    return 1024 * int(found[1])


@contextmanager
def little_memory(server: Server) -> Iterator[None]:
    """The worker takes hardly more than before, at no moment of what is done in here."""
    worker = server.worker("0")
    # From here on the kernel notes the most that it had.
    Path(f"/proc/{worker}/clear_refs").write_text("5")
    before = resident(worker)
    yield
    grown = resident(worker, "VmHWM") - before
    assert grown < ALLOWED, f"{grown / MEGABYTE:.1f} MB more"


async def sockets(person: Person) -> int:
    """How many the server counts as open."""
    found = re.search(r"^quartapp_sockets (\d+)", (await person.get("/metrics")).text, re.M)
    assert found
    return int(found[1])


async def all_left(person: Person, before: int) -> None:
    async def as_before() -> bool:
        return await sockets(person) == before

    await until(as_before, within=2 * PING + 8)


# ---- compression


async def test_the_server_declines_compression(ada: Person) -> None:
    offer = {"Sec-WebSocket-Extensions": "permessage-deflate; client_max_window_bits"}
    async with Line.upgraded(ada, **offer) as line:
        assert b"sec-websocket-extensions" not in line.head.lower()


async def test_a_compressed_frame_closes_the_socket_and_is_not_inflated(
    server: Server, ada: Person
) -> None:
    packer = zlib.compressobj(wbits=-15)
    bomb = packer.compress(bytes(PUSHED)) + packer.flush(zlib.Z_SYNC_FLUSH)[:-4]
    offer = {"Sec-WebSocket-Extensions": "permessage-deflate"}
    with little_memory(server):
        async with Line.upgraded(ada, **offer) as line:
            with suppress(ConnectionError):
                await line.send(frame(bomb, first=FIN | RSV1 | TEXT))
            # Not of the sizes that are too long, but of the compression.
            assert await line.closed() != 1009
    assert await ada.status("/api/me") == 200


# ---- too much


async def again_and_again(
    person: Person, start: bytes, chunk: bytes, *, codes: set[int | None]
) -> None:
    """Pushes tens of megabytes, on as many lines as it takes for each is cut."""
    pushed = 0
    while pushed < PUSHED:
        async with Line.upgraded(person) as line:
            with suppress(ConnectionError):
                await line.send(start)
            taken = await line.push(chunk)
            assert taken < IN_BUFFERS, "nobody cut the line"
            assert await line.closed() in codes
            pushed += max(taken, len(chunk))


@pytest.mark.parametrize("opcode", [TEXT, BINARY], ids=["text", "binary"])
async def test_a_frame_that_is_too_long_closes_the_socket_and_is_not_kept(
    server: Server, ada: Person, opcode: int
) -> None:
    start = frame(b"", first=FIN | opcode, length=1 << 40)
    with little_memory(server):
        await again_and_again(ada, start, b"x" * MEGABYTE, codes={1009})


async def test_an_endless_fragmented_message_closes_the_socket(server: Server, ada: Person) -> None:
    start = frame(b"x", first=TEXT)
    with little_memory(server):
        chunk = frame(b"x" * 1000, first=CONTINUATION) * 1000
        await again_and_again(ada, start, chunk, codes={1009})


async def test_a_message_of_endless_empty_fragments_is_closed_as_silent(
    server: Server, ada: Person
) -> None:
    """It never grows too long. But whoever says nothing whole is silent."""
    before = await sockets(ada)
    with little_memory(server):
        async with Line.upgraded(ada) as line:
            await line.send(frame(b"x", first=TEXT))
            pushing = asyncio.create_task(forever(line, frame(b"", first=CONTINUATION) * 100))
            try:
                await all_left(ada, before)
            finally:
                pushing.cancel()
                await asyncio.wait([pushing])


async def forever(line: Line, chunk: bytes) -> None:
    with suppress(ConnectionError):
        while True:
            await line.send(chunk)
            await asyncio.sleep(0.01)


@pytest.mark.parametrize(
    "said",
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
    server: Server, ada: Person, bob: Person, said: bytes
) -> None:
    chunk = frame(said) * max(1, MEGABYTE // 10 // len(frame(said)))
    async with bob.tab() as tab:
        with little_memory(server):
            flood = asyncio.create_task(floods(ada, chunk))
            try:
                trips = 0
                while not flood.done():
                    # Reads, and answers, and has its own answer come back.
                    assert await tab.received("session.ended") == []
                    trips += 1
                    await asyncio.wait([flood], timeout=0.05)
            finally:
                flood.cancel()
                await asyncio.wait([flood])
            flood.result()
        assert trips > 1
        assert await tab.is_open(), tab.socket.close_code


async def floods(person: Person, chunk: bytes) -> None:
    async with Line.upgraded(person) as line:
        # The server reads on for a second, and throws away what it reads.
        async with asyncio.timeout(10):
            await line.push(chunk, most=1000 * PUSHED)
        assert await line.closed() == 4400


async def test_a_client_that_pings_and_does_not_read_is_closed(
    server: Server, ada: Person, bob: Person
) -> None:
    """Each ping is answered below the application, and nobody takes the answers."""
    before = await sockets(ada)
    chunk = frame(b"p" * 125, first=FIN | PING_FRAME) * 500
    with little_memory(server):
        async with Line.upgraded(ada) as line:
            pushing = asyncio.create_task(forever(line, chunk))
            try:
                async with bob.tab() as tab:
                    await tab.next("ping")
                    assert await tab.is_open()
                await all_left(ada, before)
            finally:
                pushing.cancel()
                await asyncio.wait([pushing])
    assert await ada.status("/api/me") == 200


# ---- what is no protocol


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
        "close with no such code",
        "close with a reason that is no text",
        "reserved opcode",
        "reserved opcode of a control frame",
        "no UTF-8",
        "half a character",
        "the end of nothing",
        "a beginning in the middle",
        "a piece of a ping",
        "a ping that is too long",
        "without a mask",
        "the longest of lengths",
        "a length that is too long to say",
        "another request",
    ],
)
async def test_a_protocol_error_ends_only_its_own_socket(
    server: Server, ada: Person, bob: Person, sent: bytes, code: int | None
) -> None:
    before = await sockets(ada)
    async with Line.upgraded(ada) as line:
        await line.send(sent)
        assert await line.closed() == code
    await all_left(ada, before)
    assert await ada.status("/api/me") == 200


@pytest.mark.parametrize(
    "more",
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
    ids=str,
)
async def test_a_malformed_handshake_is_answered_and_the_worker_lives(
    ada: Person, more: dict[str, str]
) -> None:
    async with Line.open(ada, more=more) as line:
        await line.read_head()
        assert re.match(rb"HTTP/1.1 (101|40[0-9]) ", line.head), line.head
    assert await ada.status("/api/me") == 200


# ---- those who come and go


async def test_bytes_sent_right_after_the_handshake_leak_no_socket(
    server: Server, ada: Person
) -> None:
    """hypercorn refuses it and does not tell the application, which has begun to serve it."""
    before = await sockets(ada)
    for _ in range(20):
        await asyncio.gather(*(too_early(ada) for _ in range(10)))
    await until(lambda: there_is_room(ada), within=2 * PING + 8)
    await all_left(ada, before)


async def too_early(person: Person) -> None:
    async with Line.open(person, behind=b"x") as line:
        await line.read_head()
        assert b" 400 " in line.head.splitlines()[0]


async def there_is_room(person: Person) -> bool:
    try:
        async with person.tab() as tab:
            return await tab.is_open()
    except websockets.InvalidStatus:
        return False


@pytest.mark.parametrize(
    ("more", "behind"),
    [({}, b"x"), ({"Sec-WebSocket-Version": "12"}, b"")],
    ids=["something behind it", "another version"],
)
async def test_a_refused_handshake_closes_the_connection(
    server: Server, ada: Person, more: dict[str, str], behind: bytes
) -> None:
    async with Line.open(ada, more=more, behind=behind) as line:
        await line.read_head()
        assert b" 400 " in line.head.splitlines()[0]
        async with asyncio.timeout(5):
            assert await line.rest() == b""


@pytest.mark.parametrize("rounds", [4, pytest.param(10, marks=pytest.mark.long)])
async def test_sockets_that_are_reset_leak_no_place_and_no_memory(
    server: Server, ada: Person, rounds: int
) -> None:
    before = await sockets(ada)
    worker = server.worker("0")

    async def come_and_go() -> None:
        async with Line.upgraded(ada) as line:
            line.kill()

    async def round_of_them() -> int:
        for _ in range(10):
            await asyncio.gather(*(come_and_go() for _ in range(10)))
        await all_left(ada, before)
        return resident(worker)

    first = await round_of_them()
    later = [await round_of_them() for _ in range(rounds - 1)]
    assert later[-1] <= 1.05 * first + 2 * MEGABYTE, (first, later)


@pytest.mark.long
@pytest.mark.timeout(150)
async def test_the_kernel_closes_a_client_that_does_not_receive(
    server: Server, ada: Person
) -> None:
    """Its handler is over long before. But the line waits for what it was sent to be taken."""
    await store_notifications(server, ada, more_than_buffers_hold())
    with stalled_client(ada) as line:
        theirs, ours = line.getsockname()[1], line.getpeername()[1]
        assert is_connected(server, ours, theirs)
        await all_left(ada, 0)
        assert is_connected(server, ours, theirs)

        async def is_cut() -> bool:
            return not is_connected(server, ours, theirs)

        await until(is_cut, within=60)


def is_connected(server: Server, local: int, remote: int) -> bool:
    """Whether the kernel still has the server's end of this connection."""
    worker = Path(f"/proc/{server.worker('0')}")
    for row in (worker / "net/tcp").read_text().splitlines()[1:]:
        _, here, there, *_ = row.split()
        if int(here.split(":")[1], 16) == local and int(there.split(":")[1], 16) == remote:
            return True
    return False
