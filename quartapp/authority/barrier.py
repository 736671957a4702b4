"""Waits until no worker can accept what was revoked before."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from beanie import PydanticObjectId

from quartapp import clock, metrics
from quartapp.authority import lease as leases
from quartapp.authority.change_stream import Change
from quartapp.authority.lease import Lease
from quartapp.authority.local_peers import Neighbours
from quartapp.background import Background
from quartapp.log import log
from quartapp.models import BarrierMark, Event, Worker
from quartapp.models.audit.receipt import Reach
from quartapp.models.cluster.barrier_mark import Ack

Id = PydanticObjectId
ASK_EVERY = 0.01
# How long an answer waits for the acknowledgements of tabs. The page and the audit log follow those
# that come later.
RECEIPT_SECONDS = 1.0
REMEMBERED = 1000


@dataclass
class Waiting:
    """A barrier of ours that is under way."""

    returned: bool = False
    acks: dict[str, int] = field(default_factory=dict)
    news: asyncio.Event = field(default_factory=asyncio.Event)

    def add(self, ack: Ack) -> None:
        self.acks[ack.worker] = ack.tabs
        self.news.set()


@dataclass(frozen=True, slots=True)
class Passed:
    """Nobody accepts any more what was taken away.

    `complete` if every worker said so; else a whole lease had to pass, after which a worker that
    is silent cannot trust its memory. `tabs` is how many open tabs the workers count as concerned.
    """

    complete: bool
    tabs: int

    async def reach(self, event: Event | None) -> Reach:
        """What became of the open tabs that the event has ended. Waits for the workers' receipts,
        RECEIPT_SECONDS at most."""
        silent = not self.complete
        if event is None:
            return Reach(silent=silent)
        return await event.wait_for_receipts(self.tabs, silent=silent, seconds=RECEIPT_SECONDS)


class Barrier(Background):
    """Marks the order of the writes after a revocation, and acknowledges the marks of others."""

    def __init__(
        self, lease: Lease, *, tabs: Callable[[Id | None], int], folder: Path | None
    ) -> None:
        self._lease = lease
        self._tabs = tabs
        self._neighbours = Neighbours(folder, lease.worker_id, self._told)
        self._waiting: dict[Id, Waiting] = {}
        # What was heard of marks that came with what they mark, before anybody asked.
        self._heard: dict[Id, Waiting] = {}
        self._unacknowledged: dict[Id, Ack] = {}
        self._news = asyncio.Event()

    async def start(self) -> None:
        await self._neighbours.start()
        self._run(self._acknowledge(), "acknowledge")

    async def stop(self) -> None:
        await super().stop()
        await self._neighbours.stop()

    async def passed(self, event: Event | None = None) -> Passed:
        """Call it after the commit. When it returns, nobody accepts what was taken away.

        Never raises what the driver raises: waiting for a lease does as well.
        """
        committed = clock.monotonic()
        mark = _mark_of(event, asker=self._lease.worker_id)
        mine = self._waiting[mark.id] = self._heard.pop(mark.id, None) or Waiting()
        try:
            async with asyncio.timeout(leases.SECONDS):
                if not (event and event.marked):
                    await mark.insert()
                while not self._all_passed(mine):
                    mine.news.clear()
                    await mine.news.wait()
                return Passed(True, sum(mine.acks.values()))
        except Exception as error:
            return await _whole_lease(committed, mine.acks, error)
        finally:
            del self._waiting[mark.id]
            metrics.BARRIER_SECONDS.observe(clock.monotonic() - committed)

    def _all_passed(self, mine: Waiting) -> bool:
        # Asked only once the mark is back: every heartbeat from before it was heard by then, so a
        # worker that is not among the living has either let its lease pass, or has passed the mark.
        living = self._lease.live_workers()
        return mine.returned and living is not None and living <= mine.acks.keys()

    # ---- listening

    def heard(self, change: Change) -> None:
        if change.collection == Worker.Settings.name and change.operation == "delete":
            # A worker that is gone is not waited for.
            for waiting in self._waiting.values():
                waiting.news.set()
        if change.collection != BarrierMark.Settings.name:
            return
        if change.operation == "insert":
            self._passed_by(change)
        elif mine := self._waiting.get(change.id) or self._heard.get(change.id):
            for name, value in change.fields.items():
                if name.split(".")[0] == "acks":
                    for each in value if isinstance(value, list) else [value]:
                        mine.add(Ack.model_validate(each))

    def _passed_by(self, change: Change) -> None:
        asker = change.document.get("asker")
        ack = Ack(worker=self._lease.worker_id, tabs=self._tabs(change.document.get("event")))
        if asker in (None, ack.worker):
            mine = self._mine(change.id)
            mine.returned = True
            mine.add(ack)
        if asker == ack.worker or self._tell(asker, change.id, ack):
            return
        self._unacknowledged[change.id] = ack
        self._news.set()

    def _tell(self, asker: str | None, mark_id: Id, ack: Ack) -> bool:
        if asker is None:
            return False
        said = json.dumps({"mark": str(mark_id), **ack.model_dump()}).encode()
        return self._neighbours.tell(asker, said)

    def _told(self, message: bytes) -> None:
        """A neighbour has passed a mark of ours, perhaps before we did."""
        said = json.loads(message)
        self._mine(Id(said.pop("mark"))).add(Ack.model_validate(said))

    def _mine(self, mark_id: Id) -> Waiting:
        mine = self._waiting.get(mark_id) or self._heard.get(mark_id)
        if mine is None:
            mine = self._heard[mark_id] = Waiting()
            if len(self._heard) > REMEMBERED:
                del self._heard[next(iter(self._heard))]
        return mine

    def interrupted(self) -> None:
        """A mark that was missed is not acknowledged, and whoever set it waits for the lease."""

    def lost(self) -> None:
        """Nothing to do before it is open again."""

    async def _acknowledge(self) -> None:
        """One write at a time, for all marks that came meanwhile."""
        while True:
            await self._news.wait()
            self._news.clear()
            acks, self._unacknowledged = self._unacknowledged, {}
            try:
                await BarrierMark.acknowledge(acks)
            except Exception as error:
                log.warning("acknowledgement_failed", error=type(error).__name__)


async def passed_from_outside(event: Event | None) -> Passed:
    """The same for a process that is no worker and follows no stream: it asks again and again.

    A worker says its first heartbeat before it remembers anybody, so whoever is not among the
    workers after the mark was written has heard all that was before it when it begins to.
    """
    committed = clock.monotonic()
    acks: dict[str, int] = {}
    try:
        async with asyncio.timeout(leases.SECONDS):
            mark = _mark_of(event)
            if not (event and event.marked):
                await mark.insert()
            while not (await Worker.everyone()).keys() <= acks.keys():
                await asyncio.sleep(ASK_EVERY)
                read = await BarrierMark.get(mark.id)
                acks = {ack.worker: ack.tabs for ack in read.acks} if read else acks
        return Passed(True, sum(acks.values()))
    except Exception as error:
        return await _whole_lease(committed, acks, error)


async def _whole_lease(committed: float, acks: Mapping[str, int], error: Exception) -> Passed:
    """Not everybody has said so: waits until whoever is silent cannot trust its memory."""
    log.warning("barrier_incomplete", error=type(error).__name__)
    await asyncio.sleep(max(0.0, committed + leases.SECONDS - clock.monotonic()))
    return Passed(False, sum(acks.values()))


def _mark_of(event: Event | None, *, asker: str | None = None) -> BarrierMark:
    """Return the mark that was written with the event. If there is none, return a new one, which
    the caller inserts."""
    if event and event.marked:
        return event.barrier_mark(asker)
    return BarrierMark(at=clock.now(), event=event and event.id, asker=asker)
