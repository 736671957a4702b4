"""What hypercorn leaves open to a hostile client, closed.

hypercorn has no hook for this, so its classes are replaced by the subclasses below in the modules
that make them: see docs/adr/0008, 0015 and 0060. Memory held for one client is bounded by what is
said here, by the bounds of the application's own mailbox, and by the kernel's buffers.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

import h11 as http1
from hypercorn import protocol
from hypercorn.asyncio import run, tcp_server
from hypercorn.events import Closed, RawData, Updated
from hypercorn.events import Event as HTTPEvent
from hypercorn.protocol import h2, h11, ws_stream
from hypercorn.protocol.events import Body, Data, Event, Request, StreamClosed
from hypercorn.protocol.ws_stream import ASGIWebsocketState, FrameTooLargeError
from wsproto.events import CloseConnection, Message, TextMessage
from wsproto.events import Event as WSProtoEvent
from wsproto.frame_protocol import CloseReason
from wsproto.utilities import LocalProtocolError

from quartapp.middleware.request_bounds import HEADERS
from quartapp.ws.line import CUT_SECONDS, LINE

WRITER, LULL = "quartapp.writer", "quartapp.lull"
LINGER_SECONDS = 0.5
BREATH = 50
PIECES = 100
LATE_BYTES = 64 * 1024
QUIET_SECONDS, AT_LAST_SECONDS, AT_ONCE = 0.1, 3.0, 10


class Connection(tcp_server.TCPServer):
    """One that is idle when the worker leaves, and one that was accepted just then, may have a
    request on its way: so each is left open for a moment longer.

    hypercorn ends a task when a request comes and starts one with each answer, which takes it a
    tenth of all that a small answer costs. Here one task looks again when its time has come.
    """

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        if LULL not in self.state:
            # There is one such state for a worker.
            self.state[LULL] = Lull()
        # hypercorn passes this down to the streams, and nothing else of ours.
        self.state = {**self.state, WRITER: self.writer}
        self._idle_since: float | None = self.loop.time()
        self._watched = True
        self._closing = False

    async def protocol_send(self, event: HTTPEvent) -> None:
        if isinstance(event, Updated):
            self._idle_since = self.loop.time() if event.idle else None
            if event.idle and not self._watched:
                self._watched = True
                await self.idle_task.restart(self._task_group, self._idle_timeout)
        else:
            await super().protocol_send(event)

    async def _idle_timeout(self) -> None:
        while (since := self._idle_since) is not None:
            try:
                async with asyncio.timeout_at(since + self.config.keep_alive_timeout):
                    await self.context.terminated.wait()
                    await asyncio.sleep(LINGER_SECONDS)
                break
            except TimeoutError:
                if since == self._idle_since:
                    break
        # Whoever is busy is watched again with the answer, or ends with it.
        self._watched = False
        if self._idle_since is not None:
            await asyncio.shield(self._initiate_server_close())

    async def _read_data(self) -> None:
        await super()._read_data()
        # The client is gone. Left alone, its connection would be kept until its idle time is over.
        await self.idle_task.stop()

    async def run(self) -> None:
        await super().run()
        # The parts of a connection hold each other. Left so, the collector would have to find them.
        vars(self).pop("protocol", None)

    async def _initiate_server_close(self) -> None:
        if "protocol" in vars(self):
            await super()._initiate_server_close()

    async def _close(self) -> None:
        # The kernel cuts off a client that takes nothing in, and that is nobody's error.
        with suppress(OSError):
            if self._closing:
                # hypercorn says it up to four times of each connection.
                await self.writer.wait_closed()
            else:
                self._closing = True
                await super()._close()


class Http1(http1.Connection):
    """Refuses a body in more pieces than any network makes of 64 KB.

    Each piece costs as much as a small request, and hypercorn takes all that have come without a
    pause: 64 KB in chunks of one byte held the event loop for 600 ms. Also refuses a head of too
    many lines before it is parsed, which takes time for each line.
    """

    _pieces = _lines = 0

    def receive_data(self, data: bytes) -> None:
        if self.their_state is http1.IDLE:
            self._lines += data.partition(b"\r\n\r\n")[0].count(b"\n")
        super().receive_data(data)

    def next_event(self) -> Any:
        # The line of the request is one more.
        if self._lines > HEADERS + 1 and self.their_state is http1.IDLE:
            self._process_error(self.their_role)
            raise http1.RemoteProtocolError("too many headers", error_status_hint=431)
        event = super().next_event()
        if isinstance(event, http1.Request):
            self._pieces = self._lines = 0
        elif isinstance(event, http1.Data):
            self._pieces += 1
            if self._pieces > PIECES:
                # As for errors that h11 finds: what the application answers later is dropped.
                self._process_error(self.their_role)
                raise http1.RemoteProtocolError("too many pieces", error_status_hint=413)
        return event


class Requests(h11.H11Protocol):
    """Speaks HTTP/1.1 alone, for behind a proxy a change to HTTP/2 is a way around what it checks.
    And takes no request of whose end the headers leave two readings: a proxy may have the other.

    What comes and goes on a socket is passed on as it is, where hypercorn first looks, for each
    frame, whether it is any of seven other things.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        most = self.config.h11_max_incomplete_size
        self.connection = Http1(http1.SERVER, max_incomplete_event_size=most)

    async def handle(self, event: HTTPEvent) -> None:
        on_a_socket = isinstance(self.connection, h11.H11WSConnection)
        # The end of what comes is said by what is empty.
        if on_a_socket and isinstance(event, RawData) and event.data and self.stream is not None:
            await self.stream.handle(Data(stream_id=h11.STREAM_ID, data=event.data))
        else:
            await super().handle(event)

    async def stream_send(self, event: Event) -> None:
        if isinstance(event, Data):
            await self.send(RawData(data=event.data))
        else:
            await super().stream_send(event)

    async def _check_protocol(self, event: http1.Request) -> None:
        """hypercorn would change to HTTP/2 here."""

    async def _create_stream(self, request: http1.Request) -> None:
        names = {name for name, _ in request.headers}
        doubtful = {b"content-length", b"transfer-encoding"} <= names
        if doubtful or request.http_version not in (b"1.0", b"1.1"):
            await self._refuse(400)
        elif len(request.headers) > HEADERS:
            await self._refuse(431)
        else:
            await super()._create_stream(request)

    async def _refuse(self, status: int) -> None:
        await self._send_error_response(status)
        await self.send(Closed())


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


class Lull:
    """Puts off what is left to do for sockets that are over while others are still to be told that
    theirs is: it is as much as the telling, and when thousands are told, each would wait for it."""

    def __init__(self) -> None:
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._quiet_at = self._at_last = 0.0

    def put_off(self) -> None:
        """Somebody is told."""
        self._quiet_at = asyncio.get_running_loop().time() + QUIET_SECONDS

    async def come(self) -> None:
        """Returns when nobody was told for a moment, or when it is high time; a few return at
        once, and whatever else there is to do has its turn."""
        loop = asyncio.get_running_loop()
        if not self._waiting:
            if loop.time() >= self._quiet_at:
                return
            self._at_last = loop.time() + AT_LAST_SECONDS
            loop.call_soon(self._look)
        here: asyncio.Future[None] = loop.create_future()
        self._waiting.append(here)
        await here

    def _look(self) -> None:
        loop = asyncio.get_running_loop()
        due = min(self._quiet_at, self._at_last)
        if loop.time() < due:
            loop.call_at(due, self._look)
            return
        for _ in range(min(AT_ONCE, len(self._waiting))):
            here = self._waiting.popleft()
            if not here.done():
                here.set_result(None)
        if self._waiting:
            loop.call_soon(self._look)


class Stream(ws_stream.WSStream):
    """A socket that is over once we closed it: what the client still says is thrown away, unless
    somebody listens for an answer.

    It is a Line too (ws/line.py): what it says so goes past hypercorn's queues and Quart's, at
    once, and what is answered comes back so.
    """

    _put: Callable[[Any], Awaitable[None]]
    _writer: asyncio.StreamWriter
    _lull: Lull
    _hear: Callable[[str | bytes], None] | None = None
    _patience: asyncio.TimerHandle | None = None
    _passed = _late = 0

    def say(self, text: str, hear: Callable[[str | bytes], None]) -> None:
        if self.closed:
            return
        self._hear = hear
        self._lull.put_off()
        self._write(TextMessage(data=text))

    def hang_up(self, code: int, reason: str, *, listen: float = 0.0) -> None:
        if self.closed:
            return
        if self.state is not ASGIWebsocketState.CLOSED:
            self._lull.put_off()
            self._write(CloseConnection(code=code, reason=reason))
            self.state = ASGIWebsocketState.CLOSED
        if not listen:
            self._hear = None
        self._cut_after(max(listen, CUT_SECONDS))

    def _cut_after(self, seconds: float) -> None:
        if self._patience is not None:
            self._patience.cancel()
        loop = asyncio.get_running_loop()
        self._patience = loop.call_later(seconds, self.task_group.spawn, self._cut)

    async def _cut(self) -> None:
        await self._lull.come()
        await self.send(StreamClosed(stream_id=self.stream_id))

    def _write(self, event: WSProtoEvent) -> None:
        if not self._writer.is_closing():
            # As hypercorn does: the client may have begun to close.
            with suppress(LocalProtocolError):
                self._writer.write(self.connection.send(event))

    async def handle(self, event: Event) -> None:
        if self.state is ASGIWebsocketState.CLOSED and isinstance(event, Body | Data):
            # Whoever answers our close has little to say before that. Of a flood it would take more
            # to look at each frame than to have it come.
            self._late += len(event.data)
            if self._late > LATE_BYTES:
                if self._hear is not None:
                    self._hear = None
                    self._cut_after(CUT_SECONDS)
                return
            # Where somebody listens, the answer is read at once: it says when a page was locked.
            if self._hear is None:
                await self._lull.come()
        was_closed = self.closed
        await super().handle(event)
        if isinstance(event, StreamClosed):
            self._let_go()
        elif self.closed and not was_closed:
            # The handshake was refused. Left alone, the line would stay for as long as the client
            # likes, and an application that has begun to serve it would not be told.
            if self.app_put is not None:
                await self.app_put({"type": "websocket.disconnect", "code": 1006})
            await self.send(StreamClosed(stream_id=self.stream_id))
        elif isinstance(event, Request) and self.app_put is not None:
            self._put, self.app_put = self.app_put, self._pass_on
            self._lull = event.state[LULL]
            # In HTTP/2 a socket is one of many streams, and cannot write as it likes.
            if event.http_version == "1.1":
                self._writer = event.state[WRITER]
                self.scope["extensions"][LINE] = self  # type: ignore[assignment]

    def _let_go(self) -> None:
        """Of what holds each other, for the collector would have to find it."""
        self.app_put = self._hear = None
        if self._patience is not None:
            self._patience.cancel()
        vars(self).pop("scope", None)

    async def _pass_on(self, message: Any) -> None:
        if message["type"] == "websocket.disconnect":
            await self._put(message)
        elif self._hear is not None:
            self._hear(message["text"] or message["bytes"])
        elif self.state is not ASGIWebsocketState.CLOSED:
            await self._put(message)
        # Thousands of messages can come in one piece. Whoever is to be cut off for that, and
        # everybody else, has their turn in between.
        self._passed += 1
        if self._passed % BREATH == 0:
            await asyncio.sleep(0)

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
    protocol.H11Protocol = Requests  # type: ignore[misc]
    h11.WSStream = h2.WSStream = Stream  # type: ignore[misc]
