"""The lease: until when a worker may answer requests from its cache.

Every HEARTBEAT_SECONDS a worker writes a heartbeat to its `Worker` document and receives it on its
own change stream. Everything that was committed before the heartbeat is on the stream before it.
The worker may use its cache for LEASE_SECONDS from the time at which it *sent* the newest heartbeat
that it has received. So it never uses an entry that was revoked more than LEASE_SECONDS ago, even
if its stream is late or has failed.

Only durations by one machine's clock are compared, never the clocks of two machines.
"""

from __future__ import annotations

import asyncio
import secrets
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

from quartapp import clock
from quartapp.authority.change_stream import Change
from quartapp.background import BackgroundTask
from quartapp.log import log
from quartapp.models import Worker

LEASE_SECONDS = 2.0
HEARTBEAT_SECONDS = 0.5


class Lease(BackgroundTask):
    """Sends this worker's heartbeats, and receives them back.

    `name` is shown to people; `worker_id` identifies this process, by default a random one.
    `sockets` returns the number of open sockets, which is stored with each heartbeat.
    """

    def __init__(
        self, name: str, worker_id: str | None = None, *, sockets: Callable[[], int] = int
    ) -> None:
        self.worker_id = worker_id or secrets.token_hex(8)
        self._name = name
        self._sockets = sockets
        # How long the last received heartbeat took, and when the oldest that is still under way was
        # sent.
        self._last_lag: float | None = None
        self._unheard_since: float | None = None
        self._sent_at: deque[tuple[int, float]] = deque(maxlen=16)
        self._valid_until = 0.0
        self._received = asyncio.Event()
        self._write: asyncio.Future[None] | None = None

    @property
    def valid(self) -> bool:
        """Whether cached states may be used for a request that starts now."""
        return clock.monotonic() < self._valid_until

    @property
    def lag(self) -> float | None:
        """By how many seconds the change stream is late: how long the last heartbeat took from here
        to the database and back on the stream, or how long one has been missing, whichever is more.
        None before the first."""
        if self._unheard_since is None:
            return self._last_lag
        return max(clock.monotonic() - self._unheard_since, self._last_lag or 0.0)

    async def start(self) -> None:
        """Start the heartbeats, and return when the first one has been received.

        Call it when the change stream is open. Waits at most LEASE_SECONDS, and logs `lease_late`
        if none has been received until then.
        """
        self._start_task(self._send_heartbeats(), "heartbeat")
        try:
            async with asyncio.timeout(LEASE_SECONDS):
                await self._received.wait()
        except TimeoutError:
            log.warning("lease_late")

    async def stop(self) -> None:
        """End the lease and the heartbeats, and delete this worker's document.

        Other workers' barriers do not wait for this worker any more. A database error is logged as
        `worker_left_without_a_word`; the others then wait until the lease has run out.
        """
        self._release()
        await super().stop()
        if self._write is not None:
            # Cancelling the task does not stop the driver's write, which would insert the document
            # again after it was deleted.
            await asyncio.wait([self._write], timeout=LEASE_SECONDS)
        try:
            await Worker.leave(self.worker_id)
        except Exception as error:
            log.warning("worker_left_without_a_word", error=type(error).__name__)

    # ---- change stream listener

    def on_change(self, change: Change) -> None:
        """Extend the lease when a heartbeat of this worker arrives.

        If this worker's document was deleted, the lease ends until its next heartbeat.
        """
        if change.collection != Worker.Settings.name or change.id != self.worker_id:
            return
        if change.operation == "delete":
            self._release()
        else:
            self._extend({**change.document, **change.updated_fields})

    def _extend(self, heartbeat: Mapping[str, Any]) -> None:
        """Extend the lease by a received heartbeat of this worker.

        Also synchronizes `clock` with the database's time if the heartbeat took less than
        `clock.TOLERANCE`. Heartbeats from before `_release` have no effect.
        """
        for number, sent in self._sent_at:
            if number == heartbeat["beat"]:
                self._note_lag(number, sent)
                self._valid_until = max(self._valid_until, sent + LEASE_SECONDS)
                self._received.set()
                if clock.monotonic() - sent < clock.TOLERANCE.total_seconds():
                    clock.synchronize(heartbeat["at"])

    def _note_lag(self, beat: int, sent: float) -> None:
        """Note that this heartbeat has been received: those before it count as received too."""
        self._last_lag = clock.monotonic() - sent
        later = (at for number, at in self._sent_at if number > beat)
        self._unheard_since = next(later, None)

    def on_missed_changes(self) -> None:
        """Do nothing: heartbeats that were missed do not extend the lease."""

    def on_disconnect(self) -> None:
        """End the lease at once. It would be safe to use until it runs out, but the database can be
        asked instead."""
        self._valid_until = 0.0

    def _release(self) -> None:
        """End the lease; heartbeats that are still under way do not extend it."""
        self._valid_until = 0.0
        self._sent_at.clear()

    # ---- heartbeats

    def _note_sent(self, beat: int) -> None:
        """Note that this heartbeat is sent now."""
        now = clock.monotonic()
        self._sent_at.append((beat, now))
        self._unheard_since = self._unheard_since or now

    async def _send_heartbeats(self) -> None:
        """Store a heartbeat of this worker every HEARTBEAT_SECONDS, at about the same time as all
        other workers, and remember when it was sent. Repeat until cancelled. Logs
        `heartbeat_failed` on errors."""
        beat = 0
        while True:
            beat += 1
            sockets, lag = self._sockets(), self.lag
            self._note_sent(beat)
            try:
                writing = Worker.record_heartbeat(self.worker_id, self._name, beat, sockets, lag)
                self._write = asyncio.ensure_future(writing)
                await asyncio.shield(self._write)
            except Exception as error:
                log.warning("heartbeat_failed", error=type(error).__name__)
            await asyncio.sleep(_seconds_to_next_beat())


def _seconds_to_next_beat() -> float:
    """Return the seconds until the time of the database is a multiple of HEARTBEAT_SECONDS, but at
    least a quarter of that.

    All workers send their heartbeats together, so that the members of the replica set replicate and
    commit many at a time, and each change stream is woken once for all of them. No guarantee
    depends on it.
    """
    seconds = -clock.now().timestamp() % HEARTBEAT_SECONDS
    return seconds if seconds > HEARTBEAT_SECONDS / 4 else seconds + HEARTBEAT_SECONDS
