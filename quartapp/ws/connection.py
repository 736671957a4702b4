"""One open socket: a bounded mailbox, one task that writes, one that reads, a quick death."""

from __future__ import annotations

import asyncio
import math
import secrets
from contextlib import suppress
from itertools import count

from beanie import PydanticObjectId

from quartapp import clock, metrics
from quartapp.authority.session_rule import Ended, Principal
from quartapp.db.mongo import Unavailable
from quartapp.log import log
from quartapp.models.notifications.notice import Notice
from quartapp.ws import protocol
from quartapp.ws.fast_path import CUT_SECONDS, Channel, Socket
from quartapp.ws.protocol import Close, Message, SessionEnded

# How long the close frame waits for the acknowledgement of `session.ended`: a browser sends nothing
# after it has received the close frame.
ACK_SECONDS = 1.0
# How long after `session.ended` an acknowledgement still counts.
LISTEN_SECONDS = 10.0
STUCK_SECONDS = 1.0
AGAIN_SECONDS = 1.0
BURST, PER_SECOND = 200, 20
PAGE = 100


class Connection:
    """A socket of a session. The hub talks to it by calls that return at once.

    `told` is what its page was last told of its rights: None until it was greeted. `expires` is
    when the session ends by itself unless it is used, by our own clock.
    """

    def __init__(
        self,
        socket: Socket,
        channel: Channel,
        *,
        session_id: PydanticObjectId,
        user_id: PydanticObjectId,
        address: str | None = None,
        mailbox: int,
        ping_seconds: float,
    ) -> None:
        self.session_id = session_id
        self.user_id = user_id
        self.address = address
        self.told: Principal | None = None
        self.expires = math.inf
        self.changed = asyncio.Event()
        self._socket = socket
        self._channel = channel
        self._mailbox: asyncio.Queue[Message | Notice | None] = asyncio.Queue(mailbox)
        self._ping_seconds = ping_seconds
        self._cursor = 0
        self._unanswered = 0
        self._behind = False
        self._sending_since: float | None = None
        self._name = secrets.token_hex(4)
        self._ids = count(1)
        self._writer: asyncio.Task[None] | None = None
        self._closing: tuple[Close, str] | None = None
        self._gone = asyncio.Event()
        self._end_notice_id: str | None = None
        self._close_timer: asyncio.TimerHandle | None = None
        # The time at which the client acknowledged `session.ended`, by our monotonic clock; None
        # when it is certain that no acknowledgement can come any more.
        self.answer: asyncio.Future[float | None] = asyncio.get_running_loop().create_future()

    # ---- what the hub calls

    def inform(self, principal: Principal) -> bool:
        """Tells the page what it may do now, if that is news.

        False when rights differ under one version: then nobody has numbered the change yet, and
        it is told when somebody has.
        """
        if self.told is None:
            self.changed.set()
            return True
        before = self.told
        if principal.version < before.version:
            return True
        same = principal.permissions == before.permissions and principal.roles == before.roles
        if not same and principal.version == before.version:
            return False
        self._take(principal)
        if not same:
            self._offer(
                protocol.PermissionsChanged(
                    id=self._next_id(),
                    version=principal.version,
                    roles=list(principal.roles),
                    permissions=sorted(principal.permissions),
                    added=sorted(principal.permissions - before.permissions),
                    removed=sorted(before.permissions - principal.permissions),
                    by=principal.changed_by,
                )
            )
        return True

    def _take(self, principal: Principal) -> None:
        self.told = principal
        self.expires = clock.monotonic() + principal.seconds_left

    def announce(self, started: dict[str, str | None]) -> None:
        """Another device of the same user has signed in."""
        if self.told is not None:
            self._offer(protocol.SessionStarted(id=self._next_id(), session=started))

    def notify(self, notice: Notice | None) -> None:
        """Passes a notice on, in order and once; None makes it look in the database."""
        if self.told is not None and (notice is None or notice.seq > self._cursor):
            self._offer(notice)

    def end(self, ended: Ended) -> None:
        """Says why and hangs up, past whatever waits in the mailbox."""
        words = SessionEnded(
            id=self._next_id(),
            reason=ended.reason.value,
            by=ended.by,
            at=protocol.timestamp(ended.at),
            message=ended.told_to(self.user_id),
        )
        # Of many that one event ends, the receipt is the one line in the log.
        self.close(Close.ENDED, ended.reason.value, words, logged=ended.event is None)

    def close(
        self,
        code: Close,
        reason: str = "",
        words: SessionEnded | None = None,
        *,
        logged: bool = True,
    ) -> None:
        """Begin to close; the first call counts.

        With `words`, the close frame waits for their acknowledgement, ACK_SECONDS at most, and the
        connection stays open for a late one, LISTEN_SECONDS at most. The handler is cancelled when
        the client has answered or its time is over, and while thousands are told some seconds
        later.
        """
        if self._closing is not None:
            return
        self._closing = code, reason
        metrics.CLOSES.labels(int(code)).inc()
        if logged:
            log.info("socket_closed", session=str(self.session_id), code=int(code), reason=reason)
        if self._writer is not None and self._sending_since is not None:
            # It may be stuck, for a client that does not read, and hold the way.
            self._writer.cancel()
        if words is None:
            self._hang_up()
        else:
            self._end_notice_id = words.id
            self._channel.send_end_notice(protocol.encode(words), self._hear)
            loop, late = asyncio.get_running_loop(), LISTEN_SECONDS - ACK_SECONDS
            self._close_timer = loop.call_later(ACK_SECONDS, self._hang_up, late)

    def stop_listening(self) -> None:
        """Close without waiting for an acknowledgement any longer. For a socket that is closing."""
        if not self._gone.is_set():
            self._hang_up()

    async def closed(self) -> None:
        """Return when the client has answered the close frame, or has had its second."""
        with suppress(TimeoutError):
            async with asyncio.timeout(1.25 * CUT_SECONDS):
                await self._gone.wait()

    # ---- what the handler calls

    def greet(self, principal: Principal, *, cursor: int | None, worker: str) -> None:
        """The first words. With a cursor, the notices behind it follow."""
        at = principal.cursor if cursor is None else min(cursor, principal.cursor)
        self._cursor = at
        self._take(principal)
        self._offer(
            protocol.Hello(
                session=str(principal.session_id),
                user={"id": str(principal.user_id), "username": principal.username},
                roles=list(principal.roles),
                permissions=sorted(principal.permissions),
                version=principal.version,
                cursor=str(at),
                worker=worker,
            )
        )
        # Also without a cursor: a notice may have come since the principal was read.
        self._offer(None)

    def fail(self, error: BaseException) -> None:
        """For an error that nobody foresaw. Left alone it would close with 1000, as if all were
        well."""
        log.error("socket_failed", session=str(self.session_id), exc_info=error)
        self.close(Close.FAILED, "error")

    async def run(self) -> None:
        """Reads and writes until the socket is closed, from either side: then it is cancelled."""
        try:
            try:
                await self._read_and_write()
            except Exception as error:
                self.fail(error)
            await asyncio.Event().wait()
        finally:
            # A task that was cancelled holds its frames, and they hold us: a circle that only the
            # collector would find.
            self._writer = None
            self._gone.set()
            self._settle_answer(None)

    async def _read_and_write(self) -> None:
        # No TaskGroup: one that is cancelled leaves such a circle in itself.
        if self._closing is None:
            self._writer = asyncio.create_task(self._write())
            self._writer.add_done_callback(self._has_written)
        try:
            await self._read()
        finally:
            if self._writer is not None:
                self._writer.cancel()

    def _has_written(self, writer: asyncio.Task[None]) -> None:
        if not writer.cancelled() and (error := writer.exception()):
            self.fail(error)

    async def _read(self) -> None:
        """Takes in all that comes, for Quart would keep it in memory; listens for life."""
        allowance, last = float(BURST), asyncio.get_running_loop().time()
        while True:
            try:
                async with asyncio.timeout(2 * self._ping_seconds):
                    frame = await self._socket.receive()
            except TimeoutError:
                if self._closing is not None:
                    continue
                return self.close(Close.TOO_SLOW, "no answer")
            if self._closing is not None:
                self._hear(frame)
                continue
            try:
                protocol.acknowledged(frame)
            except protocol.BadMessage:
                return self.close(Close.BAD_MESSAGE, "bad message")
            if self._unanswered:
                # Answers are free: one that missed much acknowledges much, all at once.
                self._unanswered -= 1
                continue
            now = asyncio.get_running_loop().time()
            allowance = min(BURST, allowance + (now - last) * PER_SECOND) - 1
            last = now
            if allowance < 0:
                return self.close(Close.BAD_MESSAGE, "too many messages")

    async def _write(self) -> None:
        loop = asyncio.get_running_loop()
        next_ping = loop.time() + self._ping_seconds
        while True:
            try:
                async with asyncio.timeout_at(next_ping):
                    item = await self._mailbox.get()
            except TimeoutError:
                next_ping = loop.time() + self._ping_seconds
                await self._send(protocol.Ping(at=protocol.timestamp(clock.now())))
                continue
            if item is None:
                await self._catch_up()
            elif isinstance(item, Notice):
                if item.seq > self._cursor + 1:
                    await self._catch_up()
                await self._send_notice(item)
            else:
                await self._send(item)
            if self._behind and self._mailbox.empty():
                self._behind = False
                await self._catch_up()

    async def _catch_up(self) -> None:
        """Asks for as long as it takes: for how long a page is trusted meanwhile, the feed says."""
        while True:
            try:
                missed = await Notice.after(self.user_id, self._cursor, limit=PAGE)
            except Unavailable:
                await asyncio.sleep(AGAIN_SECONDS)
                continue
            if not missed:
                return
            for notice in missed:
                await self._send_notice(notice)

    async def _send_notice(self, notice: Notice) -> None:
        if notice.seq <= self._cursor:
            return
        await self._send(
            protocol.NoticeSent(
                id=str(notice.seq),
                kind=notice.kind.value,
                text=notice.text,
                at=protocol.timestamp(notice.created_at),
            )
        )
        self._cursor = notice.seq

    async def _send(self, message: Message) -> None:
        if self._closing is not None:
            return
        self._unanswered += 1
        self._sending_since = clock.monotonic()
        await self._socket.send(protocol.encode(message))
        self._sending_since = None

    def _offer(self, item: Message | Notice | None) -> None:
        try:
            self._mailbox.put_nowait(item)
        except asyncio.QueueFull:
            # Notices are in the database too. A client that reads gets there what came too fast;
            # for one that does not, nothing is kept.
            if self._is_stuck() or not (item is None or isinstance(item, Notice)):
                self.close(Close.TOO_SLOW, "too slow")
            self._behind = True

    def _is_stuck(self) -> bool:
        began = self._sending_since
        return began is not None and clock.monotonic() - began > STUCK_SECONDS

    def _hear(self, frame: str | bytes) -> None:
        with suppress(protocol.BadMessage):
            message_id = protocol.acknowledged(frame)
            if message_id is not None and message_id == self._end_notice_id:
                self._settle_answer(clock.monotonic())
                self._hang_up()

    def _settle_answer(self, acked_at: float | None) -> None:
        if self._close_timer is not None:
            self._close_timer.cancel()
        if not self.answer.done():
            self.answer.set_result(acked_at)

    def _hang_up(self, listen: float = 0.0) -> None:
        if self._closing is not None:
            self._channel.close(*self._closing, listen=listen)

    def _next_id(self) -> str:
        # Another one in each connection: a client knows by it what it has heard already.
        return f"{self._name}-{next(self._ids)}"
