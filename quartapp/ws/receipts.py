"""What became of the open tabs that an event ended: counted here, kept with the event."""

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
from quartapp.models import Event, Session
from quartapp.models.audit.receipt import Receipt
from quartapp.ws.connection import Connection
from quartapp.ws.hub import Hub

Id = PydanticObjectId

# A receipt is written when nothing is waited for any more. If that takes longer than FIRST_SECONDS,
# it is written then, and at most once in each EVERY_SECONDS while it changes.
FIRST_SECONDS = 0.5
EVERY_SECONDS = 1.0
# How long a receipt that cannot be written is tried again.
RETRY_SECONDS = 60.0
STOP_SECONDS = 2.0
REMEMBERED = 1000


@dataclass(eq=False)
class Count:
    """The tabs that one event has ended on this worker, and how many have acknowledged it."""

    began: float = field(default_factory=clock.monotonic)
    tabs: int = 0
    acked: int = 0
    missed: int = 0
    slowest: float = 0.0
    complete: asyncio.Event = field(default_factory=asyncio.Event)
    written: Receipt | None = None
    writer: asyncio.Task[None] | None = None

    def add(self, connections: Collection[Connection]) -> None:
        self.tabs += len(connections)
        self.complete.clear()
        for connection in connections:
            connection.answer.add_done_callback(self._settle)

    def _settle(self, answer: asyncio.Future[float | None]) -> None:
        if (acked_at := answer.result()) is None:
            self.missed += 1
        else:
            self.acked += 1
            self.slowest = max(self.slowest, acked_at - self.began)
        if self.acked + self.missed == self.tabs:
            self.complete.set()

    def receipt(self, worker: str) -> Receipt:
        return Receipt(
            worker=worker,
            tabs=self.tabs,
            acked=self.acked,
            missed=self.missed,
            slowest_ms=round(1000 * self.slowest),
        )


class Receipts:
    """Counts this worker's tabs of sessions that end, and follows their acknowledgements."""

    def __init__(self, hub: Hub, worker_id: str) -> None:
        self._hub = hub
        self._worker_id = worker_id
        self._counts: dict[Id, Count] = {}
        self._counted: WeakSet[Connection] = WeakSet()

    async def start(self) -> None:
        """Nothing runs before something is expected."""

    async def stop(self) -> None:
        """Write what is known of the tabs that are still waited for."""
        unwritten = [(each, count) for each, count in self._counts.items() if count.writer]
        for _, count in unwritten:
            assert count.writer is not None
            count.writer.cancel()
        with suppress(TimeoutError):
            async with asyncio.timeout(STOP_SECONDS):
                await asyncio.gather(*(self._write(each, count) for each, count in unwritten))

    def tabs(self, event_id: Id | None) -> int:
        """How many tabs the event has concerned here, as far as was heard."""
        count = self._counts.get(event_id) if event_id else None
        return count.tabs if count else 0

    def expect(self, event_id: Id | None, connections: Collection[Connection]) -> None:
        """The event ends these. May be said again of the same ones."""
        if event_id is None:
            return
        # Of thousands, some may be expected again when others have answered already.
        fresh = {each for each in connections if each not in self._counted}
        if not fresh:
            return
        self._counted.update(fresh)
        count = self._counts.get(event_id)
        if count is None:
            self._forget_some()
            count = self._counts[event_id] = Count()
        count.add(fresh)
        if count.writer is None:
            count.writer = asyncio.create_task(self._follow(event_id, count), name="receipt")

    def _forget_some(self) -> None:
        while len(self._counts) >= REMEMBERED:
            over = next((each for each, count in self._counts.items() if not count.writer), None)
            if over is None:
                return
            del self._counts[over]

    # ---- listening

    def heard(self, change: Change) -> None:
        # The sockets are told when their sessions were judged. They are counted before that, so
        # that the number is known to whoever sets a mark behind this change.
        if change.collection == Session.Settings.name and change.fields.get("ended_event"):
            self.expect(change.fields["ended_event"].id, self._hub.of_session(change.id))

    def interrupted(self) -> None:
        """Tabs that end unheard are counted when their sessions are judged."""

    def lost(self) -> None:
        """Nothing is remembered that could grow wrong."""

    # ---- writing

    async def _follow(self, event_id: Id, count: Count) -> None:
        """Write the receipt until it is complete and written, or cannot be written for long."""
        pause, failing_since = FIRST_SECONDS, None
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await count.complete.wait()
            if await self._write(event_id, count):
                failing_since = None
                if count.complete.is_set() and count.written == count.receipt(self._worker_id):
                    break
                pause = EVERY_SECONDS
                continue
            failing_since = failing_since or clock.monotonic()
            if clock.monotonic() - failing_since > RETRY_SECONDS:
                break
            await asyncio.sleep(EVERY_SECONDS)
        count.writer = None
        known = count.receipt(self._worker_id)
        log.info("tabs_ended", event_id=str(event_id), **known.model_dump(exclude={"worker"}))

    async def _write(self, event_id: Id, count: Count) -> bool:
        """Write the receipt if it has changed; False if that failed."""
        receipt = count.receipt(self._worker_id)
        if receipt == count.written:
            return True
        try:
            await Event.keep_receipt(event_id, receipt)
        except Exception as error:
            log.warning("receipt_not_kept", event_id=str(event_id), error=type(error).__name__)
            return False
        count.written = receipt
        return True
