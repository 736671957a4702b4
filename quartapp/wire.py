"""What hypercorn's WebSocket layer leaves open to a hostile client, closed.

hypercorn has no hook for this, so its stream class is replaced by the subclass below in the modules
that make streams: see docs/adr/0008. Memory held for one client is bounded by what is said here, by
the bounds of the application's own mailbox, and by the kernel's buffers.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

from hypercorn.asyncio import run, tcp_server
from hypercorn.protocol import h2, h11, ws_stream
from hypercorn.protocol.events import Event, StreamClosed
from hypercorn.protocol.ws_stream import FrameTooLargeError
from hypercorn.typing import ASGISendEvent
from wsproto.events import CloseConnection, Message
from wsproto.events import Event as WSProtoEvent
from wsproto.frame_protocol import CloseReason

LINGER_SECONDS = 0.5


class Connection(tcp_server.TCPServer):
    """One that is idle when the worker leaves, and one that was accepted just then, may have a
    request on its way: so each is left open for a moment longer."""

    async def _idle_timeout(self) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(self.config.keep_alive_timeout):
                await self.context.terminated.wait()
                await asyncio.sleep(LINGER_SECONDS)
        await asyncio.shield(self._initiate_server_close())

    async def _close(self) -> None:
        # The kernel cuts off a client that takes nothing in, and that is nobody's error.
        with suppress(OSError):
            await super()._close()


class Handshake(ws_stream.Handshake):
    """Agrees to no extension: half a megabyte of deflated nothing inflates to half a gigabyte.

    Nor to a subprotocol, for we have none. Its list is not even read: hypercorn fails on what is
    not ASCII in one.
    """

    def __init__(self, headers: list[tuple[bytes, bytes]], http_version: str) -> None:
        unread = (b"sec-websocket-extensions", b"sec-websocket-protocol")
        super().__init__(
            [
                (name, value.decode("ascii", "replace").encode("ascii", "replace"))
                for name, value in headers
                if name.lower() not in unread
            ],
            http_version,
        )


class Buffer(ws_stream.WebsocketBuffer):
    """Refuses what is too long before it is kept, not after."""

    def extend(self, event: Message) -> None:
        if self.length + len(event.data) > self.max_length:
            raise FrameTooLargeError
        super().extend(event)


class Stream(ws_stream.WSStream):
    """A socket that is over once we closed it: what the client still says is thrown away."""

    async def handle(self, event: Event) -> None:
        was_closed = self.closed
        await super().handle(event)
        if self.closed and not was_closed and not isinstance(event, StreamClosed):
            # The handshake was refused. Left alone, the line would stay for as long as the client
            # likes, and an application that has begun to serve it would not be told.
            if self.app_put is not None:
                await self.app_put({"type": "websocket.disconnect", "code": 1006})
            await self.send(StreamClosed(stream_id=self.stream_id))

    async def app_send(self, message: ASGISendEvent | None) -> None:
        if message is not None and message["type"] == "websocket.close" and self.app_put:
            self.app_put = _only_disconnect(self.app_put)
        await super().app_send(message)

    async def _send_wsproto_event(self, event: WSProtoEvent) -> None:
        await super()._send_wsproto_event(event)
        if isinstance(event, CloseConnection) and event.code == CloseReason.MESSAGE_TOO_BIG:
            # Left alone, the client could go on sending for as long as it likes, and the
            # application would not even be told.
            await self.send(StreamClosed(stream_id=self.stream_id))


def harden() -> None:
    """Puts the classes above in the place of hypercorn's, for this process."""
    ws_stream.Handshake = Handshake  # type: ignore[misc]
    ws_stream.WebsocketBuffer = Buffer  # type: ignore[misc]
    run.TCPServer = Connection  # type: ignore[misc]
    h11.WSStream = h2.WSStream = Stream  # type: ignore[misc]


def _only_disconnect(put: Callable[[Any], Awaitable[None]]) -> Callable[[Any], Awaitable[None]]:
    async def pass_on(message: Any) -> None:
        if message["type"] == "websocket.disconnect":
            await put(message)

    return pass_on
