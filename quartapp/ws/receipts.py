"""What became of the open tabs that an event ended: gathered here, kept with the event."""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from contextlib import suppress
from weakref import WeakSet

from beanie import PydanticObjectId

from quartapp import clock
from quartapp.authority.stream import Change
from quartapp.log import log
from quartapp.models import Event, Session
from quartapp.models.event import Receipt
from quartapp.ws.connection import Connection
from quartapp.ws.hub import Hub

Id = PydanticObjectId

PATIENCE_SECONDS = 1.5
REMEMBERED = 1000


class Receipts:
    """Counts this worker's tabs of sessions that end, and waits for them to say they are locked."""

    def __init__(self, hub: Hub, worker_id: str) -> None:
        self._hub = hub
        self._worker_id = worker_id
        self._tabs: dict[Id, int] = {}
        self._rounds: dict[Id, set[Connection]] = {}
        self._counted: WeakSet[Connection] = WeakSet()
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Nothing runs before something is expected."""

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def tabs(self, event_id: Id | None) -> int:
        """How many tabs the event has concerned here, as far as was heard."""
        return self._tabs.get(event_id, 0) if event_id else 0

    def expect(self, event_id: Id | None, connections: Collection[Connection]) -> None:
        """The event ends these. May be said again of the same ones."""
        if event_id is None:
            return
        # Once in its life: a round may be over when the last of thousands are told.
        fresh = {each for each in connections if each not in self._counted}
        if not fresh:
            return
        self._counted.update(fresh)
        mine = self._rounds.get(event_id)
        if mine is None:
            mine = self._rounds[event_id] = set()
            task = asyncio.create_task(self._gather(event_id, mine), name="receipts")
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        mine.update(fresh)
        self._tabs[event_id] = self._tabs.pop(event_id, 0) + len(fresh)
        if len(self._tabs) > REMEMBERED:
            del self._tabs[next(iter(self._tabs))]

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

    async def _gather(self, event_id: Id, mine: set[Connection]) -> None:
        began, loop = clock.monotonic(), asyncio.get_running_loop()
        answered: dict[Connection, float | None] = {}
        # Each has its second; of thousands the last ones are told when many are done. So as long as
        # some answer, whichever, the others are waited for.
        while rest := mine - answered.keys():
            with suppress(TimeoutError):
                async with asyncio.timeout(PATIENCE_SECONDS) as patience:
                    for connection in rest:
                        answered[connection] = await connection.answered()
                        patience.reschedule(loop.time() + PATIENCE_SECONDS)
                continue
            over = [connection for connection in rest - answered.keys() if connection.over]
            if not over:
                break
            answered |= {connection: await connection.answered() for connection in over}
        del self._rounds[event_id]
        times = [at - began for at in answered.values() if at is not None]
        receipt = Receipt(
            worker=self._worker_id,
            tabs=len(mine),
            acked=len(times),
            slowest_ms=round(1000 * max(times, default=0.0)),
        )
        said = receipt.model_dump(exclude={"worker"})
        log.info("tabs_ended", event_id=str(event_id), **said)
        try:
            await Event.add_receipt(event_id, receipt)
        except Exception as error:
            log.warning("receipt_not_kept", event_id=str(event_id), error=type(error).__name__)
