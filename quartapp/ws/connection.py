"""One open socket: a bounded mailbox, a task that writes, a task that reads, and how it closes."""

from __future__ import annotations

import asyncio
import math
import secrets
from collections.abc import Iterable
from contextlib import suppress
from itertools import count
from typing import Literal

from beanie import PydanticObjectId

from quartapp import clock, metrics
from quartapp.authority import versions
from quartapp.authority.session_rule import EndedSession, Principal
from quartapp.db.mongo import Unavailable
from quartapp.i18n import current_locale, use_locale
from quartapp.i18n.devices import device_name
from quartapp.log import log
from quartapp.models.notifications.notice import Notice
from quartapp.ws import protocol, topics
from quartapp.ws.fast_path import CUT_SECONDS, Channel, Socket
from quartapp.ws.protocol import CloseCode, Message, SessionEnded

# How long the close frame waits for the acknowledgement of `session.ended`: a browser sends nothing
# after it has received the close frame.
ACK_SECONDS = 1.0
# How long after `session.ended` an acknowledgement is still accepted.
LATE_ACK_SECONDS = 10.0
# A client whose last message took longer than this to send does not read.
STUCK_SECONDS = 1.0
RETRY_SECONDS = 1.0
MESSAGE_BURST, MESSAGES_PER_SECOND = 200, 20
PAGE_SIZE = 100
# In the mailbox: only wakes the writer.
WAKE: Literal["wake"] = "wake"


class Connection:
    """A socket of a session. The hub uses methods that return at once and never raise.

    `role_ids` are the roles of the session's user, as last read; `roles` are those that the
    handshake was authorized with. `page` is the path of the page, if it is known. `sent_principal`
    is the session's state as last sent to the client: None until `send_hello`. Texts are sent in
    the language that is current when the object is created.
    `expires_at` is the session's expiry by `clock.monotonic`. `state_changed` is set when a change
    arrives before `send_hello`. `mailbox` is the largest number of messages that wait to be sent.
    """

    def __init__(
        self,
        socket: Socket,
        channel: Channel,
        *,
        session_id: PydanticObjectId,
        user_id: PydanticObjectId,
        roles: Iterable[PydanticObjectId] = (),
        address: str | None = None,
        page: str | None = None,
        mailbox: int,
        ping_seconds: float,
    ) -> None:
        self.session_id = session_id
        self.user_id = user_id
        self.address = address
        self.page = page
        # The language of the page, for the texts that other tasks send.
        self._locale = current_locale()
        self.role_ids = frozenset(roles)
        self.sent_principal: Principal | None = None
        self.expires_at = math.inf
        self.state_changed = asyncio.Event()
        self._socket = socket
        self._channel = channel
        self._mailbox: asyncio.Queue[Message | Notice | Literal["wake"] | None]
        self._mailbox = asyncio.Queue(mailbox)
        self._changed_topics: set[str] = set()
        self._ping_seconds = ping_seconds
        self._cursor = 0
        self._unacknowledged = 0
        self._missed_notices = False
        self._sending_since: float | None = None
        self._id_prefix = secrets.token_hex(4)
        self._id_numbers = count(1)
        self._writer: asyncio.Task[None] | None = None
        self._closing: tuple[CloseCode, str] | None = None
        self._handler_ended = asyncio.Event()
        self._end_notice_id: str | None = None
        self._close_timer: asyncio.TimerHandle | None = None
        # The time at which the client acknowledged `session.ended`, by `clock.monotonic`; None if
        # the socket was closed without an acknowledgement.
        self.end_ack: asyncio.Future[float | None] = asyncio.get_running_loop().create_future()

    # ---- called by the hub

    def update_principal(self, principal: Principal) -> bool:
        """Take over the session's new state: queue `notices.read` if the user has read
        notifications, and `permissions.changed` if roles or permissions differ from those sent
        before.

        Return False, and do nothing, if they differ although no version was raised, or because a
        role was replaced by one with a lower version: the version has to be raised first, so that
        clients can order the changes. Otherwise return True. A state with an older version is
        ignored. Before `send_hello` it only sets `state_changed`.
        """
        if self.sent_principal is None:
            self.state_changed.set()
            return True
        before = self.sent_principal
        same = principal.permissions == before.permissions and principal.roles == before.roles
        if principal.version < before.version:
            # Another program may have replaced the role with one that has a lower version.
            return same or not versions.has_lowered_role(before, principal)
        if not same and not versions.is_raised(before, principal):
            return False
        self._set_principal(principal)
        arrived = principal.cursor - before.cursor
        if principal.unread != before.unread + arrived:
            self._send_unread(principal)
        if not same:
            self._enqueue(
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

    def _send_unread(self, principal: Principal) -> None:
        """Queue `notices.read`: how many notifications up to the newest are unread."""
        self._enqueue(
            protocol.NoticesRead(
                id=self._next_id(), unread=principal.unread, cursor=str(principal.cursor)
            )
        )

    def _set_principal(self, principal: Principal) -> None:
        """Keep the state as the one that was sent, with its expiry."""
        self.sent_principal = principal
        self.role_ids = frozenset(role.id for role in principal.held)
        self.expires_at = clock.monotonic() + principal.seconds_left

    def announce_session(self, started: dict[str, str | None]) -> None:
        """Queue `session.started`: the user has signed in on another device. Before `send_hello` it
        does nothing."""
        if self.sent_principal is None:
            return
        if device := started.get("device"):
            with use_locale(self._locale):
                started = {**started, "device": device_name(device)}
        self._enqueue(protocol.SessionStarted(id=self._next_id(), session=started))

    def deliver_notice(self, notice: Notice | None) -> None:
        """Queue the notification, unless it was sent already.

        None queues a look into the database for notifications that were not sent. Before
        `send_hello` it does nothing.
        """
        if self.sent_principal is not None and (notice is None or notice.seq > self._cursor):
            self._enqueue(notice)

    def announce_topics(self, names: Iterable[str]) -> None:
        """Let the writer send `topics.changed` when it has sent all other messages.

        Topics whose permission the user lacks at that time are left out. Announcements that wait
        are sent as one message.
        """
        if not self._changed_topics:
            # If the mailbox is full, the writer is awake.
            with suppress(asyncio.QueueFull):
                self._mailbox.put_nowait(WAKE)
        self._changed_topics.update(names)

    def end(self, ended: EndedSession) -> None:
        """Send `session.ended` at once, without the messages in the mailbox, and close with 4401.

        See `close` for how it waits for the acknowledgement.
        """
        with use_locale(self._locale):
            text = ended.message
        message = SessionEnded(
            id=self._next_id(),
            reason=ended.reason.value,
            by=ended.by,
            at=protocol.format_time(ended.at),
            message=text,
        )
        # An event may end thousands of sessions; the receipt logs them in one line.
        self.close(CloseCode.ENDED, ended.reason.value, message, logged=ended.event is None)

    def close(
        self,
        code: CloseCode,
        reason: str = "",
        end_notice: SessionEnded | None = None,
        *,
        logged: bool = True,
    ) -> None:
        """Begin to close, with this code and reason; later calls do nothing. Return at once.

        Counts the code in the metrics, and logs `socket_closed` if `logged`. Without `end_notice`,
        the close frame is sent now. With it, the notice is sent now and the close frame when the
        client has acknowledged it, after ACK_SECONDS at most; a later acknowledgement counts until
        LATE_ACK_SECONDS after the notice. A message that is being sent is given up. The handler is
        cancelled when the client has answered the close frame or its time is over.
        """
        if self._closing is not None:
            return
        self._closing = code, reason
        metrics.SOCKET_CLOSES.labels(int(code)).inc()
        if logged:
            log.info("socket_closed", session=str(self.session_id), code=int(code), reason=reason)
        if self._writer is not None and self._sending_since is not None:
            # A client that does not read blocks the writer, which would delay the end notice.
            self._writer.cancel()
        if end_notice is None:
            self._send_close_frame()
        else:
            self._end_notice_id = end_notice.id
            self._channel.send_end_notice(protocol.encode(end_notice), self._on_message_after_end)
            loop, late = asyncio.get_running_loop(), LATE_ACK_SECONDS - ACK_SECONDS
            self._close_timer = loop.call_later(ACK_SECONDS, self._send_close_frame, late)

    def stop_waiting_for_ack(self) -> None:
        """Send the close frame of a socket that is closing now, and accept no acknowledgement."""
        if not self._handler_ended.is_set():
            self._send_close_frame()

    async def wait_closed(self) -> None:
        """Return when the handler has ended, after 1.25 times CUT_SECONDS at most."""
        with suppress(TimeoutError):
            async with asyncio.timeout(1.25 * CUT_SECONDS):
                await self._handler_ended.wait()

    # ---- called by the handler

    def send_hello(
        self,
        principal: Principal,
        *,
        cursor: int | None,
        unread: int | None = None,
        worker: str,
    ) -> None:
        """Queue `hello`, and notifications behind the cursor, or only new ones without a cursor.

        Also queues `notices.read` if the client shows another number of unread notifications.
        From now on, changes of the session's state are sent.
        """
        at = principal.cursor if cursor is None else min(cursor, principal.cursor)
        self._cursor = at
        self._set_principal(principal)
        self._enqueue(
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
        if unread is not None and unread != principal.unread:
            self._send_unread(principal)
        # Also without a cursor: a notification may have been stored since the state was read.
        self._enqueue(None)

    def close_after_error(self, error: BaseException) -> None:
        """Log `socket_failed` with the traceback, and close with 1011.

        Without this, the server would close with 1000, which means success.
        """
        log.error("socket_failed", session=str(self.session_id), exc_info=error)
        self.close(CloseCode.FAILED, "error")

    async def run(self) -> None:
        """Read and write until either side closes the socket; then the server cancels this task, so
        this never returns normally.

        An error is logged and closes the socket with 1011. Afterwards `end_ack` has a result: None
        unless the client acknowledged the end of its session before.
        """
        try:
            try:
                await self._read_and_write()
            except Exception as error:
                self.close_after_error(error)
            await asyncio.Event().wait()
        finally:
            # A cancelled task references its frames, and these reference this object: a cycle that
            # only the garbage collector would free.
            self._writer = None
            self._handler_ended.set()
            self._resolve_end_ack(None)

    async def _read_and_write(self) -> None:
        """Read messages until the socket closes. Meanwhile a task of its own writes, unless the
        socket is closing already; it is cancelled at the end."""
        # No TaskGroup: a cancelled one contains such a cycle.
        if self._closing is None:
            self._writer = asyncio.create_task(self._write())
            self._writer.add_done_callback(self._on_writer_done)
        try:
            await self._read()
        finally:
            if self._writer is not None:
                self._writer.cancel()

    def _on_writer_done(self, writer: asyncio.Task[None]) -> None:
        """Log an error of the writing task, and close with 1011. A cancelled task is no error."""
        if not writer.cancelled() and (error := writer.exception()):
            self.close_after_error(error)

    async def _read(self) -> None:
        """Receive messages until the socket closes; Quart would keep unread ones in memory.

        Closes the socket with 4408 and returns if no message arrives for two ping intervals, and
        with 4400 after an invalid message or too many that answer none of ours. The messages have
        no other effect. While the socket is closing, only looks for the acknowledgement of the end
        notice.
        """
        allowance, last = float(MESSAGE_BURST), asyncio.get_running_loop().time()
        while True:
            try:
                async with asyncio.timeout(2 * self._ping_seconds):
                    frame = await self._socket.receive()
            except TimeoutError:
                if self._closing is not None:
                    continue
                return self.close(CloseCode.TOO_SLOW, "no answer")
            if self._closing is not None:
                self._on_message_after_end(frame)
                continue
            try:
                protocol.parse_client_message(frame)
            except protocol.InvalidMessage:
                return self.close(CloseCode.BAD_MESSAGE, "bad message")
            if self._unacknowledged:
                # Only messages that answer none of ours count against the limit: a client that has
                # reconnected may acknowledge hundreds at once.
                self._unacknowledged -= 1
                continue
            now = asyncio.get_running_loop().time()
            allowance = min(MESSAGE_BURST, allowance + (now - last) * MESSAGES_PER_SECOND) - 1
            last = now
            if allowance < 0:
                return self.close(CloseCode.BAD_MESSAGE, "too many messages")

    async def _write(self) -> None:
        """Send the messages and notifications in the mailbox, and a ping every `ping_seconds`,
        forever.

        Notifications that the mailbox lacks, because it was full or they were never queued, are
        read from the database and sent in order.
        """
        loop = asyncio.get_running_loop()
        next_ping = loop.time() + self._ping_seconds
        while True:
            try:
                async with asyncio.timeout_at(next_ping):
                    item = await self._mailbox.get()
            except TimeoutError:
                next_ping = loop.time() + self._ping_seconds
                await self._send(protocol.Ping(at=protocol.format_time(clock.now())))
                continue
            if item is None:
                await self._send_missed_notices()
            elif isinstance(item, Notice):
                if item.seq > self._cursor + 1:
                    await self._send_missed_notices()
                await self._send_notice(item)
            elif item != WAKE:
                await self._send(item)
            if self._changed_topics and self._mailbox.empty():
                await self._send_changed_topics()
            if self._missed_notices and self._mailbox.empty():
                self._missed_notices = False
                await self._send_missed_notices()

    async def _send_missed_notices(self) -> None:
        """Send all stored notifications behind the cursor, in order.

        While the database is away it retries every RETRY_SECONDS, without limit: the dispatcher
        closes the sockets if that lasts too long.
        """
        while True:
            try:
                missed = await Notice.after(self.user_id, self._cursor, limit=PAGE_SIZE)
            except Unavailable:
                await asyncio.sleep(RETRY_SECONDS)
                continue
            if not missed:
                return
            for notice in missed:
                await self._send_notice(notice)

    async def _send_notice(self, notice: Notice) -> None:
        """Send the notification and move the cursor, unless it was sent already."""
        if notice.seq <= self._cursor:
            return
        await self._send(
            protocol.NoticeSent(
                id=str(notice.seq),
                kind=notice.kind,
                text=notice.text,
                at=protocol.format_time(notice.created_at),
            )
        )
        self._cursor = notice.seq

    async def _send_changed_topics(self) -> None:
        """Send the topics that have changed and that the user may follow now, if there are any."""
        changed, self._changed_topics = self._changed_topics, set()
        state = self.sent_principal
        names = [each for each in changed if state and topics.may_follow(each, state.permissions)]
        if names:
            await self._send(protocol.TopicsChanged(id=self._next_id(), topics=sorted(names)))

    async def _send(self, message: Message) -> None:
        """Send the message and wait until it is written; send nothing while closing."""
        if self._closing is not None:
            return
        self._unacknowledged += 1
        self._sending_since = clock.monotonic()
        await self._socket.send(protocol.encode(message))
        self._sending_since = None

    def _enqueue(self, item: Message | Notice | None) -> None:
        """Put the item into the mailbox. Never waits.

        If it is full, a notification is dropped and read from the database later. For any other
        message, and if the client has not read for STUCK_SECONDS, the socket is closed with 4408.
        """
        try:
            self._mailbox.put_nowait(item)
        except asyncio.QueueFull:
            if self._is_stuck() or not (item is None or isinstance(item, Notice)):
                self.close(CloseCode.TOO_SLOW, "too slow")
            self._missed_notices = True

    def _is_stuck(self) -> bool:
        """Return whether one message has been waiting to be written for more than STUCK_SECONDS."""
        began = self._sending_since
        return began is not None and clock.monotonic() - began > STUCK_SECONDS

    def _on_message_after_end(self, frame: str | bytes) -> None:
        """Note the acknowledgement of the end notice, and send the close frame. Ignore the rest."""
        with suppress(protocol.InvalidMessage):
            message_id = protocol.parse_client_message(frame)
            if message_id is not None and message_id == self._end_notice_id:
                self._resolve_end_ack(clock.monotonic())
                self._send_close_frame()

    def _resolve_end_ack(self, acked_at: float | None) -> None:
        """Stop the timer for the close frame, and set the result of `end_ack` if it has none."""
        if self._close_timer is not None:
            self._close_timer.cancel()
        if not self.end_ack.done():
            self.end_ack.set_result(acked_at)

    def _send_close_frame(self, listen: float = 0.0) -> None:
        """Send the close frame, and accept messages for `listen` more seconds."""
        if self._closing is not None:
            self._channel.close(*self._closing, listen=listen)

    def _next_id(self) -> str:
        # The prefix differs between connections, so that ids are unique for a client.
        return f"{self._id_prefix}-{next(self._id_numbers)}"
