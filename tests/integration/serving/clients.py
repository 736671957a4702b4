"""hypercorn in this process with our classes, and clients that control each frame."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from wsproto import ConnectionType, WSConnection
from wsproto.events import AcceptConnection
from wsproto.events import Request as WSRequest

from quartapp.ws.fast_path import DIRECT_CHANNEL
from tests.conftest import serving_in_process
from tests.people import SECONDS


@dataclass
class RawClient:
    """A TCP connection to the server."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    def send(self, data: bytes) -> None:
        self.writer.write(data)

    async def response_head(self) -> bytes:
        async with asyncio.timeout(SECONDS):
            return await self.reader.readuntil(b"\r\n\r\n")

    async def closed(self) -> float:
        """Wait until the server closes the connection, without data, and return the loop's time."""
        async with asyncio.timeout(SECONDS):
            assert await self.reader.read() == b""
        return asyncio.get_running_loop().time()


class WebSocketClient:
    """A WebSocket whose client answers nothing by itself, not even a close frame."""

    def __init__(self, client: RawClient) -> None:
        self._client, self._protocol = client, WSConnection(ConnectionType.CLIENT)

    async def next(self) -> Any:
        """Return the next event of the connection."""
        while True:
            for event in self._protocol.events():
                return event
            async with asyncio.timeout(SECONDS):
                self._protocol.receive_data(await self._client.reader.read(1024))

    def send(self, *events: Any) -> None:
        self._client.send(b"".join(self._protocol.send(event) for event in events))

    async def closed(self) -> None:
        await self._client.closed()


@dataclass
class WebSocketApplication:
    """Accepts every socket and records what it receives."""

    channels: list[Any] = field(default_factory=list)
    sends: list[Any] = field(default_factory=list)
    accepted: asyncio.Queue[None] = field(default_factory=asyncio.Queue)
    disconnected: asyncio.Queue[int] = field(default_factory=asyncio.Queue)
    received: asyncio.Queue[str] = field(default_factory=asyncio.Queue)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        assert scope["type"] == "websocket"
        assert (await receive())["type"] == "websocket.connect"
        await send({"type": "websocket.accept", "subprotocol": None, "headers": []})
        number = len(self.channels)
        self.channels.append(scope["extensions"].get(DIRECT_CHANNEL))
        self.sends.append(send)
        self.accepted.put_nowait(None)
        while (message := await receive())["type"] != "websocket.disconnect":
            self.received.put_nowait(message["text"])
        self.disconnected.put_nowait(number)

    async def next_disconnected(self) -> int:
        """Wait until a socket has disconnected, and return its number."""
        async with asyncio.timeout(SECONDS):
            return await self.disconnected.get()

    async def next_received(self) -> str:
        async with asyncio.timeout(SECONDS):
            return await self.received.get()


@asynccontextmanager
async def websockets(
    count: int, **settings: Any
) -> AsyncIterator[tuple[WebSocketApplication, list[WebSocketClient]]]:
    """Run a WebSocketApplication, and yield it with that many connected clients."""
    application = WebSocketApplication()
    async with AsyncExitStack() as stack:
        serving = serving_in_process(
            application, over=asyncio.Event(), errorlog=None, max_app_queue_size=0, **settings
        )
        address = await stack.enter_async_context(serving)
        clients = []
        for _ in range(count):
            raw = RawClient(*await asyncio.open_connection(*address))
            stack.callback(raw.writer.close)
            client = WebSocketClient(raw)
            client.send(WSRequest(host="here", target="/"))
            assert isinstance(await client.next(), AcceptConnection)
            await application.accepted.get()
            clients.append(client)
        yield application, clients
