"""Channels for the last messages of a WebSocket: the end notice and the close frame.

When a session ends, each of its sockets is sent one more message (`session.ended`), and then the
close frame. Two channels do that with the same effect:

- A direct channel writes to the connection at once, past every queue between the application and
  the network. Our worker offers one for each WebSocket, unless `FAST_PATH` is off: see
  `quartapp.serving.hypercorn_latency`.
- `QueuedChannel` works on every ASGI server, through Quart's and the server's queues.
"""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import Callable
from contextlib import suppress
from typing import Protocol, cast

# The key of `scope["extensions"]` under which a server offers its direct channel.
DIRECT_CHANNEL = "quartapp.direct_channel"
# How long a client has to answer the close frame before the connection is closed.
CUT_SECONDS = 1.0


class Channel(Protocol):
    """Sends the end notice and the close frame of one WebSocket.

    Both methods return at once and raise nothing, also when the client has gone. After the first
    call the application must not send anything else on the socket.
    """

    def send_end_notice(self, text: str, on_message: Callable[[str | bytes], None]) -> None:
        """Send a text frame.

        A direct channel passes each message that arrives from then on to `on_message`, and the
        application's `receive()` no longer returns them. `QueuedChannel` ignores `on_message`: the
        application receives messages as before.
        """

    def close(self, code: int, reason: str, *, listen: float = 0.0) -> None:
        """Send the close frame if it was not sent yet, and limit the time the client has left.

        The connection is closed when the client answers the close frame, and at the latest after
        `listen` seconds, or CUT_SECONDS if that is longer: closing a connection while the client
        still sends resets it, and the close frame may be lost. Messages that arrive in the first
        `listen` seconds are still delivered.

        A second call can shorten the time that is left, not extend it.
        """


class Socket(Protocol):
    """The methods of Quart's `websocket` that a connection uses."""

    async def send(self, data: str, /) -> None: ...
    async def receive(self) -> str | bytes: ...
    async def close(self, code: int, reason: str = "") -> None: ...


class QueuedChannel:
    """A `Channel` that sends through Quart.

    Create it in the task that handles the socket: when the client's time is over, this task is
    cancelled, and the ASGI server closes the connection.
    """

    def __init__(self, socket: Socket) -> None:
        self._socket = socket
        # A cancelled task references its frames, and these reference this object.
        self._handler = weakref.ref(cast("asyncio.Task[None]", asyncio.current_task()))
        self._sending: asyncio.Task[None] | None = None
        self._closing: asyncio.Task[None] | None = None
        self._wait = CUT_SECONDS
        self._cut_timer: asyncio.TimerHandle | None = None

    def send_end_notice(self, text: str, on_message: Callable[[str | bytes], None]) -> None:
        """Start a task that sends the text, for CUT_SECONDS at most. `on_message` is never
        called."""
        self._sending = asyncio.create_task(self._send(text))

    def close(self, code: int, reason: str, *, listen: float = 0.0) -> None:
        """Start a task that sends the close frame after the end notice. If that was sent already,
        only start the time that the client has left again."""
        self._wait = max(listen, CUT_SECONDS)
        if self._closing is None:
            self._closing = asyncio.create_task(self._close(code, reason))
        elif self._closing.done():
            self._start_cut_timer()

    async def _send(self, text: str) -> None:
        """Send the text, for CUT_SECONDS at most. Errors are ignored."""
        with suppress(Exception):
            async with asyncio.timeout(CUT_SECONDS):
                await self._socket.send(text)

    async def _close(self, code: int, reason: str) -> None:
        """Wait until the end notice is sent, send the close frame, and start the timer that cancels
        the handler. If the close frame cannot be sent within CUT_SECONDS, cancel the handler at
        once."""
        if self._sending is not None:
            # The close frame has CUT_SECONDS of its own: when thousands of sockets are closed at
            # once, sending the end notice may take as long.
            await asyncio.wait([self._sending])
        try:
            async with asyncio.timeout(CUT_SECONDS):
                await self._socket.close(code, reason)
        except Exception:
            self._cancel_handler()
        else:
            self._start_cut_timer()

    def _start_cut_timer(self) -> None:
        """Cancel the handler's task after the time that the client has left, counted from now.
        Replaces an earlier timer."""
        if self._cut_timer is not None:
            self._cut_timer.cancel()
        loop = asyncio.get_running_loop()
        self._cut_timer = loop.call_later(self._wait, self._cancel_handler)

    def _cancel_handler(self) -> None:
        """Cancel the task that handles the socket, if it still exists."""
        if (handler := self._handler()) is not None:
            handler.cancel()
