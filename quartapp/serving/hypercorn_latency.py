"""Subclasses of the classes in `hypercorn_security` that are only faster. `FAST_PATH=off` leaves
them out, and everything behaves the same.

- `DirectChannelStream` writes the last messages of a socket past all queues. `TeardownScheduler`
  postpones the work for sockets that are closed until the others have been told. See docs/adr/0015.
- `FastServerConnection` has one idle task for each connection, where hypercorn has one for each
  request: docs/adr/0013. Its parts let go of each other, so that the garbage collector has nothing
  to find: docs/adr/0014.

bench/README.md says what each gains.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from hypercorn.asyncio import run
from hypercorn.events import Event as HTTPEvent
from hypercorn.events import Updated
from hypercorn.protocol import h2, h11
from hypercorn.protocol.events import Body, Data, Event, Request, StreamClosed
from hypercorn.protocol.ws_stream import ASGIWebsocketState
from wsproto.events import CloseConnection, TextMessage
from wsproto.events import Event as WSProtoEvent
from wsproto.utilities import LocalProtocolError

from quartapp.serving.hypercorn_security import (
    LATE_BYTES,
    LINGER_SECONDS,
    ServerConnection,
    WebSocketStream,
)
from quartapp.ws.fast_path import CUT_SECONDS, DIRECT_CHANNEL

# Keys of the ASGI state, which hypercorn passes from a connection to its streams.
WRITER, TEARDOWN = "quartapp.writer", "quartapp.teardown"
QUIET_SECONDS, LONGEST_WAIT_SECONDS, RELEASED_PER_TURN = 0.1, 3.0, 10


class FastServerConnection(ServerConnection):
    """A connection whose idle task lives as long as it does.

    hypercorn cancels the task with each request and starts another with each answer, which takes a
    tenth of the time of a small answer. Here the task wakes up at the end of `keep_alive_timeout`
    and looks whether the connection was idle all the time.
    """

    def __init__(self, *args: Any) -> None:
        """Note that the connection is idle, and give its streams its writer and the
        TeardownScheduler of the worker, which the first connection creates."""
        super().__init__(*args)
        if TEARDOWN not in self.state:
            # `state` is still the one that all connections of the worker share.
            self.state[TEARDOWN] = TeardownScheduler()
        self.state = {**self.state, WRITER: self.writer}
        self._idle_since: float | None = self.loop.time()
        self._watched = True

    async def protocol_send(self, event: HTTPEvent) -> None:
        """Note since when the connection is idle, and restart the idle task if it has ended. Other
        events are handled by hypercorn."""
        if isinstance(event, Updated):
            self._idle_since = self.loop.time() if event.idle else None
            if event.idle and not self._watched:
                self._watched = True
                await self.idle_task.restart(self._task_group, self._idle_timeout)
        else:
            await super().protocol_send(event)

    async def _idle_timeout(self) -> None:
        """Close the connection once it was idle for `keep_alive_timeout` seconds, or LINGER_SECONDS
        after the worker began to shut down. Returns without closing it if it is busy then."""
        while (since := self._idle_since) is not None:
            try:
                async with asyncio.timeout_at(since + self.config.keep_alive_timeout):
                    await self.context.terminated.wait()
                    await asyncio.sleep(LINGER_SECONDS)
                break
            except TimeoutError:
                if since == self._idle_since:
                    break
        # A connection that is busy now is watched again after its answer, or ends with it.
        self._watched = False
        if self._idle_since is not None:
            await asyncio.shield(self._initiate_server_close())

    async def run(self) -> None:
        """Serve the connection until it ends, and then drop the reference to its protocol."""
        await super().run()
        # The connection and its protocol reference each other.
        vars(self).pop("protocol", None)

    async def _initiate_server_close(self) -> None:
        """Close the connection as hypercorn does, unless `run` has ended."""
        if "protocol" in vars(self):
            await super()._initiate_server_close()


class TeardownScheduler:
    """Postpones the work for closed sockets while end notices are still being sent to others.

    Reading the client's close frame and taking a connection apart costs as much as sending an end
    notice. When thousands of sockets are closed at once, each would wait for the teardown of all
    before it.
    """

    def __init__(self) -> None:
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._quiet_at = self._release_at = 0.0

    def postpone(self) -> None:
        """Postpone all teardowns until QUIET_SECONDS from now. Called for each message sent."""
        self._quiet_at = asyncio.get_running_loop().time() + QUIET_SECONDS

    async def wait(self) -> None:
        """Return when teardown may go on.

        That is at once if nothing was postponed; otherwise when `postpone` was not called for
        QUIET_SECONDS, or LONGEST_WAIT_SECONDS after the first began to wait. Then RELEASED_PER_TURN
        waiters return in each turn of the event loop.
        """
        loop = asyncio.get_running_loop()
        if not self._waiting:
            if loop.time() >= self._quiet_at:
                return
            self._release_at = loop.time() + LONGEST_WAIT_SECONDS
            loop.call_soon(self._release)
        waiter: asyncio.Future[None] = loop.create_future()
        self._waiting.append(waiter)
        await waiter

    def _release(self) -> None:
        """Release the next RELEASED_PER_TURN waiters if it is time. Schedules itself again as long
        as there are more, or for the time at which they are due."""
        loop = asyncio.get_running_loop()
        due = min(self._quiet_at, self._release_at)
        if loop.time() < due:
            loop.call_at(due, self._release)
            return
        for _ in range(min(RELEASED_PER_TURN, len(self._waiting))):
            waiter = self._waiting.popleft()
            if not waiter.done():
                waiter.set_result(None)
        if self._waiting:
            loop.call_soon(self._release)


class DirectChannelStream(WebSocketStream):
    """A WebSocket that offers itself to the application as its direct channel.

    It implements `quartapp.ws.fast_path.Channel` over HTTP/1.1. Both methods write a whole frame to
    the transport, through the same protocol machine as hypercorn, so that a frame falls between
    hypercorn's frames and is sent even while hypercorn waits for a client that does not read.
    """

    _writer: asyncio.StreamWriter
    _teardown: TeardownScheduler
    _on_message: Callable[[str | bytes], None] | None = None
    _in_use = False

    def send_end_notice(self, text: str, on_message: Callable[[str | bytes], None]) -> None:
        """Write the text at once, past all queues. From now on, messages of the client go to
        `on_message` and not to the application. Does nothing if the socket is closed."""
        if self.closed:
            return
        self._in_use = True
        self._on_message = on_message
        self._teardown.postpone()
        self._write(TextMessage(data=text))

    def close(self, code: int, reason: str, *, listen: float = 0.0) -> None:
        """Write the close frame at once, past all queues. The connection is cut after `listen`
        seconds, at least CUT_SECONDS, if the client has not closed it before.

        With `listen`, messages that arrive until then still go to `on_message`; without, all are
        dropped. Does nothing if the socket is closed.
        """
        if self.closed:
            return
        self._in_use = True
        if self.state is not ASGIWebsocketState.CLOSED:
            self._teardown.postpone()
            self._write(CloseConnection(code=code, reason=reason))
            self.state = ASGIWebsocketState.CLOSED
        if not listen:
            self._on_message = None
        self._cut_after(max(listen, CUT_SECONDS))

    def _write(self, event: WSProtoEvent) -> None:
        """Write the frame to the transport, unless the connection is closing."""
        if not self._writer.is_closing():
            # The client may have begun to close the socket.
            with suppress(LocalProtocolError):
                self._writer.write(self.connection.send(event))

    async def handle(self, event: Event) -> None:
        """Handle an event of the connection, in addition to what WebSocketStream does.

        On the request, offers this stream to the application as `DIRECT_CHANNEL` in the ASGI
        extensions (HTTP/1.1 only). Data after the close frame first waits for the
        TeardownScheduler, unless an acknowledgement is waited for. On the end, drops references.
        """
        if self.state is ASGIWebsocketState.CLOSED and isinstance(event, Body | Data):
            # An acknowledgement that is waited for is read at once: it says when the page was
            # locked. A flood is not waited for, since it is dropped unread.
            late = self._late_bytes + len(event.data)
            if self._on_message is None and late <= LATE_BYTES:
                await self._teardown.wait()
        await super().handle(event)
        if isinstance(event, StreamClosed):
            # Without these references the stream is freed at once.
            self.app_put = self._on_message = None
            vars(self).pop("scope", None)
        elif isinstance(event, Request) and self.app_put is not None:
            self._teardown = event.state[TEARDOWN]
            # In HTTP/2 a socket is one of many streams, and cannot write to the transport.
            if event.http_version == "1.1":
                self._writer = event.state[WRITER]
                self.scope["extensions"][DIRECT_CHANNEL] = self  # type: ignore[assignment]

    async def _deliver(self, message: Any) -> None:
        """Pass a message to the application. Once the direct channel is in use, pass it to
        `on_message` instead, or drop it if that is not set. A disconnect always reaches the
        application."""
        if message["type"] == "websocket.disconnect" or not self._in_use:
            await super()._deliver(message)
        elif self._on_message is not None:
            self._on_message(message["text"] or message["bytes"])

    async def _cut(self) -> None:
        """Wait for the TeardownScheduler, then close the connection."""
        await self._teardown.wait()
        await super()._cut()


def install() -> None:
    """Replace hypercorn's classes by these in this process, for connections accepted from now on.

    Call it after `hypercorn_security.install()`, whose other classes stay.
    """
    run.TCPServer = FastServerConnection  # type: ignore[misc]
    h11.WSStream = h2.WSStream = DirectChannelStream  # type: ignore[misc]
