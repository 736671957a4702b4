"""Receipts: how many open tabs of ended sessions have acknowledged that, stored for each event.

Each worker counts its own tabs of an event, and stores the counts (`EventReceipts`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass, field
from weakref import WeakSet

from beanie import PydanticObjectId

from quartapp import clock
from quartapp.authority.change_stream import Change
from quartapp.log import log
from quartapp.models import EventReceipts, RoleDeletion, Session
from quartapp.models.audit.receipt import Receipt
from quartapp.ws.connection import Connection
from quartapp.ws.hub import Hub

Id = PydanticObjectId

# A receipt is written when no acknowledgement is pending. If that takes longer than
# FIRST_WRITE_SECONDS, it is written then, and at most once per REWRITE_SECONDS while it changes.
FIRST_WRITE_SECONDS = 0.5
REWRITE_SECONDS = 1.0
# For how long writing a receipt is retried after errors.
RETRY_SECONDS = 60.0
STOP_SECONDS = 2.0
MAX_COUNTS = 1000


@dataclass(eq=False)
class TabCount:
    """The tabs whose sessions one event has ended on this worker, and their acknowledgements.

    `slowest` is in seconds. `complete` is set while no acknowledgement is pending. `written` is the
    receipt as last stored, and `writer` the task that stores it.
    """

    started_at: float = field(default_factory=clock.monotonic)
    tabs: int = 0
    acked: int = 0
    missed: int = 0
    slowest: float = 0.0
    complete: asyncio.Event = field(default_factory=asyncio.Event)
    written: Receipt | None = None
    writer: asyncio.Task[None] | None = None

    def add(self, connections: Collection[Connection]) -> None:
        """Count these connections, and their acknowledgements when they arrive."""
        self.tabs += len(connections)
        self.complete.clear()
        for connection in connections:
            connection.end_ack.add_done_callback(self._on_ack)

    def _on_ack(self, answer: asyncio.Future[float | None]) -> None:
        """Count one connection when its `end_ack` has a result: as missed if that is None, or else
        as acknowledged at that time (`clock.monotonic`), which can raise `slowest`. Sets `complete`
        once all connections that were added are counted.
        """
        if (acked_at := answer.result()) is None:
            self.missed += 1
        else:
            self.acked += 1
            self.slowest = max(self.slowest, acked_at - self.started_at)
        if self.acked + self.missed == self.tabs:
            self.complete.set()

    def receipt(self, worker: str) -> Receipt:
        """Return the counts so far as this worker's receipt."""
        return Receipt(
            worker=worker,
            tabs=self.tabs,
            acked=self.acked,
            missed=self.missed,
            slowest_ms=round(1000 * self.slowest),
        )


class Receipts:
    """Counts, by event, this worker's tabs of sessions that end, and stores the receipts."""

    def __init__(self, hub: Hub, worker_id: str) -> None:
        self._hub = hub
        self._worker_id = worker_id
        self._counts: dict[Id, TabCount] = {}
        self._counted: WeakSet[Connection] = WeakSet()

    async def start(self) -> None:
        """Do nothing: `expect_acks` starts a task for each event."""

    async def stop(self) -> None:
        """Cancel the tasks that store receipts, and store these receipts once more as they are,
        all at the same time. Takes STOP_SECONDS at most; what is not stored by then is dropped
        silently. Does not log `tabs_ended` for them.
        """
        unwritten = [(each, count) for each, count in self._counts.items() if count.writer]
        for _, count in unwritten:
            assert count.writer is not None
            count.writer.cancel()
        with suppress(TimeoutError):
            async with asyncio.timeout(STOP_SECONDS):
                await asyncio.gather(*(self._write(each, count) for each, count in unwritten))

    def count_tabs(self, event_id: Id | None) -> int:
        """Return how many open tabs of this worker the event has ended so far. 0 for None."""
        count = self._counts.get(event_id) if event_id else None
        return count.tabs if count else 0

    def expect_acks(self, event_id: Id | None, connections: Collection[Connection]) -> None:
        """Count these connections for the event, and store its receipt in the background.

        Connections that were counted before are ignored. Does nothing without an event.
        """
        if event_id is None:
            return
        # A session with several connections is passed again with each of its states.
        fresh = {each for each in connections if each not in self._counted}
        if not fresh:
            return
        self._counted.update(fresh)
        count = self._counts.get(event_id)
        if count is None:
            self._drop_oldest()
            count = self._counts[event_id] = TabCount()
        count.add(fresh)
        if count.writer is None:
            count.writer = asyncio.create_task(self._keep_written(event_id, count), name="receipt")

    def _drop_oldest(self) -> None:
        """Make room for one more event, by dropping the oldest that need no more writes. Drops none
        if all do."""
        while len(self._counts) >= MAX_COUNTS:
            over = next((each for each, count in self._counts.items() if not count.writer), None)
            if over is None:
                return
            del self._counts[over]

    # ---- change stream listener

    def on_change(self, change: Change) -> None:
        """Count the connections of a session that an event has ended, or of the sessions that the
        deletion of a role has ended.

        This happens when the change arrives, before the dispatcher sends the end notices: a barrier
        mark behind this change is acknowledged with the number of tabs.
        """
        if change.collection == Session.Settings.name and change.updated_fields.get("ended_event"):
            self.expect_acks(
                change.updated_fields["ended_event"].id, self._hub.connections_of(change.id)
            )
        elif change.collection == RoleDeletion.Settings.name and change.document.get("event"):
            for session_id in self._hub.sessions_with_roles({change.id}):
                self.expect_acks(change.document["event"].id, self._hub.connections_of(session_id))

    def on_missed_changes(self) -> None:
        """Do nothing: the dispatcher evaluates all sessions, and counts the tabs of ended ones."""

    def on_disconnect(self) -> None:
        """Do nothing: the counts stay valid."""

    # ---- writing

    async def _keep_written(self, event_id: Id, count: TabCount) -> None:
        """Store the receipt until no acknowledgement is pending, then log `tabs_ended`.

        Waits for all acknowledgements first, or for FIRST_WRITE_SECONDS; then stores it again at
        most every REWRITE_SECONDS. Gives up, with the same log line, when storing has failed for
        RETRY_SECONDS.
        """
        pause, failing_since = FIRST_WRITE_SECONDS, None
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await count.complete.wait()
            if await self._write(event_id, count):
                failing_since = None
                if count.complete.is_set() and count.written == count.receipt(self._worker_id):
                    break
                pause = REWRITE_SECONDS
                continue
            failing_since = failing_since or clock.monotonic()
            if clock.monotonic() - failing_since > RETRY_SECONDS:
                break
            await asyncio.sleep(REWRITE_SECONDS)
        count.writer = None
        known = count.receipt(self._worker_id)
        log.info("tabs_ended", event_id=str(event_id), **known.model_dump(exclude={"worker"}))

    async def _write(self, event_id: Id, count: TabCount) -> bool:
        """Store the receipt of the event, unless it is what was last stored, and return True.

        Returns False after any error, which is logged as `receipt_not_kept`."""
        receipt = count.receipt(self._worker_id)
        if receipt == count.written:
            return True
        try:
            await EventReceipts.keep(event_id, receipt)
        except Exception as error:
            log.warning("receipt_not_kept", event_id=str(event_id), error=type(error).__name__)
            return False
        count.written = receipt
        return True
