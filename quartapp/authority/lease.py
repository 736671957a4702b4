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
import math
import secrets
from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from quartapp import clock
from quartapp.authority.change_stream import Change
from quartapp.background import BackgroundTask
from quartapp.log import log
from quartapp.models import Worker

LEASE_SECONDS = 2.0
HEARTBEAT_SECONDS = 0.5
# A worker whose last heartbeat is older may be dead.
SILENT_SECONDS = 2 * HEARTBEAT_SECONDS


class Lease(BackgroundTask):
    """Sends this worker's heartbeats, and follows the heartbeats of all workers.

    `name` is shown to people; `worker_id` identifies this process, by default a random one.
    """

    def __init__(self, name: str, worker_id: str | None = None) -> None:
        self.worker_id = worker_id or secrets.token_hex(8)
        self._name = name
        self._sent_at: deque[tuple[int, float]] = deque(maxlen=16)
        self._valid_until = 0.0
        self._last_heard: dict[str, float] = {}
        self._gap_free_since = clock.monotonic()
        self._received = asyncio.Event()
        self._unheard: set[str] = set()
        self._all_heard = asyncio.Event()
        self._write: asyncio.Future[None] | None = None

    @property
    def valid(self) -> bool:
        """Whether cached states may be used for a request that starts now."""
        return clock.monotonic() < self._valid_until

    def live_workers(self) -> set[str] | None:
        """Return the ids of workers that may have a valid lease, this one included.

        Return None if the stream was opened or interrupted less than LEASE_SECONDS ago, when a
        worker's heartbeat may have been missed.
        """
        oldest = clock.monotonic() - LEASE_SECONDS
        if self._gap_free_since > oldest:
            return None
        return {worker for worker, heard in self._last_heard.items() if heard > oldest}

    async def start(self) -> None:
        """Start the heartbeats, and return when the first one has been received.

        Call it when the change stream is open: the workers that exist are read from the database,
        and later ones arrive by the stream. If a worker's last heartbeat is older than
        SILENT_SECONDS, also waits until it is heard, so that the first barriers need not. All waits
        end after LEASE_SECONDS each, and the heartbeats go on. Raises no database error: it logs
        `workers_not_read` or `lease_late`.
        """
        opened = self._gap_free_since = clock.monotonic()
        try:
            async with asyncio.timeout(LEASE_SECONDS):
                already = await Worker.everyone()
        except Exception as error:
            log.warning("workers_not_read", error=type(error).__name__)
        else:
            self._last_heard = dict.fromkeys(already, clock.monotonic()) | self._last_heard
            self._unheard = {each for each, age in already.items() if age > SILENT_SECONDS}
            if self._gap_free_since == opened:
                self._gap_free_since = -math.inf
        self._start_task(self._send_heartbeats(), "heartbeat")
        try:
            async with asyncio.timeout(LEASE_SECONDS):
                await self._received.wait()
        except TimeoutError:
            log.warning("lease_late")
        if self._unheard:
            with suppress(TimeoutError):
                async with asyncio.timeout(opened + LEASE_SECONDS - clock.monotonic()):
                    await self._all_heard.wait()

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
        """Note the heartbeat or the leaving of a worker; a heartbeat of this one extends the lease.

        If this worker's document was deleted, the lease ends until its next heartbeat.
        """
        if change.collection != Worker.Settings.name:
            return
        self._unheard.discard(change.id)
        if not self._unheard:
            self._all_heard.set()
        if change.operation == "delete":
            self._last_heard.pop(change.id, None)
            if change.id == self.worker_id:
                self._release()
            return
        self._last_heard[change.id] = clock.monotonic()
        if change.id == self.worker_id:
            self._extend({**change.document, **change.updated_fields})

    def _extend(self, heartbeat: Mapping[str, Any]) -> None:
        """Extend the lease by a received heartbeat of this worker.

        Also synchronizes `clock` with the database's time if the heartbeat took less than
        `clock.TOLERANCE`. Heartbeats from before `_release` have no effect.
        """
        for number, sent in self._sent_at:
            if number == heartbeat["beat"]:
                self._valid_until = max(self._valid_until, sent + LEASE_SECONDS)
                self._received.set()
                if clock.monotonic() - sent < clock.TOLERANCE.total_seconds():
                    clock.synchronize(heartbeat["at"])

    def on_missed_changes(self) -> None:
        """Note that heartbeats of other workers may have been missed. The lease stays valid."""
        self._gap_free_since = clock.monotonic()

    def on_disconnect(self) -> None:
        """End the lease at once. It would be safe to use until it runs out, but the database can be
        asked instead."""
        self._valid_until = 0.0

    def _release(self) -> None:
        """End the lease; heartbeats that are still under way do not extend it."""
        self._valid_until = 0.0
        self._sent_at.clear()

    # ---- heartbeats

    async def _send_heartbeats(self) -> None:
        """Store a heartbeat of this worker every HEARTBEAT_SECONDS, and remember when it was
        sent. Repeat until cancelled. Logs `heartbeat_failed` on errors."""
        beat = 0
        while True:
            beat += 1
            self._sent_at.append((beat, clock.monotonic()))
            try:
                said = Worker.record_heartbeat(self.worker_id, self._name, beat)
                self._write = asyncio.ensure_future(said)
                await asyncio.shield(self._write)
            except Exception as error:
                log.warning("heartbeat_failed", error=type(error).__name__)
            await asyncio.sleep(HEARTBEAT_SECONDS)
