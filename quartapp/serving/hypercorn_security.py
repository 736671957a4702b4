"""Subclasses of hypercorn's classes that bound what a hostile client can do.

hypercorn 0.18 has no setting or hook for what is changed here, so `install()` replaces its classes
by these subclasses. With them, a client

- cannot negotiate compression, a subprotocol or HTTP/2 in clear text,
- cannot send a request whose end two programs may read differently,
- cannot send a head of too many lines, a body in too many chunks or a message that is too long,
- cannot keep a connection that was refused, closed or left.

See docs/adr/0008 and 0060, and docs/upstream.md for what hypercorn would have to change. Nothing
here is for speed: see `hypercorn_latency`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

import h11 as http1
from hypercorn import protocol
from hypercorn.asyncio import run, tcp_server
from hypercorn.events import Closed
from hypercorn.protocol import h2, h11, ws_stream
from hypercorn.protocol.events import Body, Data, Event, Request, StreamClosed
from hypercorn.protocol.ws_stream import ASGIWebsocketState, FrameTooLargeError
from wsproto.events import CloseConnection, Message
from wsproto.events import Event as WSProtoEvent
from wsproto.frame_protocol import CloseReason

from quartapp.middleware.request_bounds import HEADERS
from quartapp.ws.fast_path import CUT_SECONDS

# How long an idle connection is kept when the worker shuts down: its next request may be on its
# way, and so may the first request of a connection that was just accepted.
LINGER_SECONDS = 0.5
BODY_CHUNKS = 100
# What a client may send after the close frame: a few acknowledgements and its own close frame.
LATE_BYTES = 64 * 1024
# After this many messages of one socket, everything else has its turn on the event loop.
MESSAGES_PER_TURN = 50


class ServerConnection(tcp_server.TCPServer):
    """A TCP connection that is closed when the client has gone or the worker has shut down.

    A connection that the client resets is not an error.
    """

    async def _idle_timeout(self) -> None:
        """Close the connection after `keep_alive_timeout` seconds, or LINGER_SECONDS after the
        worker began to shut down."""
        with suppress(TimeoutError):
            async with asyncio.timeout(self.config.keep_alive_timeout):
                await self.context.terminated.wait()
                await asyncio.sleep(LINGER_SECONDS)
        await asyncio.shield(self._initiate_server_close())

    async def _read_data(self) -> None:
        """Read until the client has gone, and then stop the idle task."""
        await super()._read_data()
        # The client has gone. hypercorn would keep the connection until its idle timeout.
        await self.idle_task.stop()

    async def _close(self) -> None:
        """Close the connection. Errors of a connection that was reset are ignored."""
        # The kernel resets a connection whose client reads nothing (TCP_USER_TIMEOUT).
        with suppress(OSError):
            await super()._close()


class H11Connection(http1.Connection):
    """Refuses a body in more than BODY_CHUNKS chunks (413) and a head of too many lines (431).

    hypercorn handles all chunks that have arrived without yielding, and each costs as much as a
    small request: 64 KB in chunks of one byte held the event loop for 600 ms. A head is refused
    before it is parsed, because parsing takes time for each line.
    """

    _chunks = _lines = 0

    def receive_data(self, data: bytes) -> None:
        """Buffer the data, and count the lines of a head that has not been parsed yet."""
        if self.their_state is http1.IDLE:
            self._lines += data.partition(b"\r\n\r\n")[0].count(b"\n")
        super().receive_data(data)

    def next_event(self) -> Any:
        """Return the next event.

        Raises `h11.RemoteProtocolError` with the hint 431 for a head of more than HEADERS lines,
        and 413 for a body in more than BODY_CHUNKS chunks.
        """
        # The request line is one more.
        if self._lines > HEADERS + 1 and self.their_state is http1.IDLE:
            self._refuse("too many headers", 431)
        event = super().next_event()
        if isinstance(event, http1.Request):
            self._chunks = self._lines = 0
        elif isinstance(event, http1.Data):
            self._chunks += 1
            if self._chunks > BODY_CHUNKS:
                self._refuse("too many chunks", 413)
        return event

    def _refuse(self, reason: str, status: int) -> None:
        """Put the connection into its error state, and raise `h11.RemoteProtocolError`."""
        # As h11 does for its own errors: what the application still answers is dropped.
        self._process_error(self.their_role)
        raise http1.RemoteProtocolError(reason, error_status_hint=status)


class H11Protocol(h11.H11Protocol):
    """Speaks HTTP/1.1 (and 1.0) alone, and refuses requests whose end is ambiguous.

    Behind a proxy, an upgrade to HTTP/2 would bypass what the proxy checks, and a request with both
    Content-Length and Transfer-Encoding may end elsewhere for the proxy than for us.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        most = self.config.h11_max_incomplete_size
        self.connection = H11Connection(http1.SERVER, max_incomplete_event_size=most)

    async def _check_protocol(self, event: http1.Request) -> None:
        """Do nothing, where hypercorn would change to HTTP/2."""

    async def _create_stream(self, request: http1.Request) -> None:
        """Start handling a request. Answers 400 to one of ambiguous length or another version of
        HTTP, and 431 to one with more than HEADERS headers, and closes the connection."""
        names = {name for name, _ in request.headers}
        ambiguous = {b"content-length", b"transfer-encoding"} <= names
        if ambiguous or request.http_version not in (b"1.0", b"1.1"):
            await self._refuse(400)
        elif len(request.headers) > HEADERS:
            await self._refuse(431)
        else:
            await super()._create_stream(request)

    async def _refuse(self, status: int) -> None:
        """Answer with an empty response of this status, and close the connection."""
        await self._send_error_response(status)
        await self.send(Closed())


class Handshake(ws_stream.Handshake):
    """Accepts no extension: half a megabyte of compressed zeros inflates to half a gigabyte.

    Accepts no subprotocol either, since there is none, and does not read the client's list:
    hypercorn fails on one that is not ASCII.
    """

    def __init__(self, headers: list[tuple[bytes, bytes]], http_version: str) -> None:
        """Read the headers without those for extensions and subprotocols, and with characters that
        are not ASCII replaced."""
        ignored = (b"sec-websocket-extensions", b"sec-websocket-protocol")
        super().__init__(
            [
                (name, value.decode("ascii", "replace").encode("ascii", "replace"))
                for name, value in headers
                if name.lower() not in ignored
            ],
            http_version,
        )


class WebSocketBuffer(ws_stream.WebsocketBuffer):
    """Refuses a message that is too long before it is stored, not after."""

    def extend(self, event: Message) -> None:
        """Store the next part of a message. Raises FrameTooLargeError, before storing it, if the
        message is then longer than the maximum."""
        if self.length + len(event.data) > self.max_length:
            raise FrameTooLargeError
        super().extend(event)


class WebSocketStream(ws_stream.WSStream):
    """A WebSocket that a client cannot keep open after it was refused or closed.

    After our close frame the client may send LATE_BYTES more. If it sends more than that, its data
    is dropped unread and the connection is closed CUT_SECONDS later. A refused handshake and a
    message that is too long close the connection, and the application is told.
    """

    _put: Callable[[Any], Awaitable[None]]
    _cut_timer: asyncio.TimerHandle | None = None
    _messages = _late_bytes = 0

    async def handle(self, event: Event) -> None:
        """Handle an event of the connection as hypercorn does, with these changes.

        Data after the close frame is counted; beyond LATE_BYTES it is dropped, and the connection
        is cut within CUT_SECONDS. When the handshake was refused, an application that has begun to
        handle it is told (`websocket.disconnect`, 1006), and the connection is closed.
        """
        if self.state is ASGIWebsocketState.CLOSED and isinstance(event, Body | Data):
            self._late_bytes += len(event.data)
            if self._late_bytes > LATE_BYTES:
                self._cut_soon()
                return
        was_closed = self.closed
        await super().handle(event)
        if isinstance(event, StreamClosed):
            if self._cut_timer is not None:
                self._cut_timer.cancel()
        elif self.closed and not was_closed:
            # The handshake was refused. hypercorn would leave the connection open for as long as
            # the client likes, and not tell an application that has begun to handle it.
            if self.app_put is not None:
                await self.app_put({"type": "websocket.disconnect", "code": 1006})
            await self.send(StreamClosed(stream_id=self.stream_id))
        elif isinstance(event, Request) and self.app_put is not None:
            self._put, self.app_put = self.app_put, self._put_in_turn

    async def _put_in_turn(self, message: Any) -> None:
        """Pass a message to the application. Yields to the event loop now and then, since one read
        from the network can hold thousands of messages."""
        await self._deliver(message)
        self._messages += 1
        if self._messages % MESSAGES_PER_TURN == 0:
            await asyncio.sleep(0)

    async def _deliver(self, message: Any) -> None:
        await self._put(message)

    async def _send_wsproto_event(self, event: WSProtoEvent) -> None:
        """Send a frame. After a close frame for a message that is too big, closes the connection
        too, of which the application is told."""
        await super()._send_wsproto_event(event)
        if isinstance(event, CloseConnection) and event.code == CloseReason.MESSAGE_TOO_BIG:
            # hypercorn would go on reading, and not tell the application.
            await self.send(StreamClosed(stream_id=self.stream_id))

    def _cut_soon(self) -> None:
        """Close the connection within CUT_SECONDS."""
        soon = asyncio.get_running_loop().time() + CUT_SECONDS
        if self._cut_timer is None or self._cut_timer.when() > soon:
            self._cut_after(CUT_SECONDS)

    def _cut_after(self, seconds: float) -> None:
        """Close the connection after that time. Replaces the time of an earlier call."""
        if self._cut_timer is not None:
            self._cut_timer.cancel()
        loop = asyncio.get_running_loop()
        self._cut_timer = loop.call_later(seconds, self.task_group.spawn, self._cut)

    async def _cut(self) -> None:
        await self.send(StreamClosed(stream_id=self.stream_id))


def install() -> None:
    """Make hypercorn use these classes in this process, for connections accepted from now on."""
    ws_stream.Handshake = Handshake  # type: ignore[misc]
    ws_stream.WebsocketBuffer = WebSocketBuffer  # type: ignore[misc]
    run.TCPServer = ServerConnection  # type: ignore[misc]
    protocol.H11Protocol = H11Protocol  # type: ignore[misc]
    h11.WSStream = h2.WSStream = WebSocketStream  # type: ignore[misc]
