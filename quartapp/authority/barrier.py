"""The barrier: wait until no worker accepts a session that was ended before.

A worker that answers requests from its cache sees the end of a session only when its change stream
delivers it. So after the commit the caller writes a mark (a `BarrierMark` document). A worker whose
change stream has delivered the mark has processed every change that was committed before it, and
acknowledges the mark. The wait is over when all workers have acknowledged, or when the lease of a
worker that has not can no longer be valid: see `quartapp.authority.lease`.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from beanie import PydanticObjectId

from quartapp import clock, metrics
from quartapp.authority import lease as leases
from quartapp.authority.change_stream import Change
from quartapp.authority.lease import Lease
from quartapp.authority.local_peers import LocalPeers
from quartapp.background import BackgroundTask
from quartapp.log import log
from quartapp.models import BarrierMark, Event, Worker
from quartapp.models.audit.receipt import Reach
from quartapp.models.cluster.barrier_mark import Ack

Id = PydanticObjectId
# How often a process without a change stream reads the acknowledgements.
POLL_SECONDS = 0.01
# How long an answer waits for the acknowledgements of tabs. The page and the audit log follow those
# that come later.
RECEIPT_SECONDS = 1.0
# How many barriers are kept that have acknowledgements, but that `wait` has not asked about yet.
MAX_EARLY = 1000


@dataclass
class PendingBarrier:
    """The acknowledgements of one mark so far.

    `passed_here` says whether this worker's own change stream has delivered the mark. `acks` has
    the number of open tabs that each worker reported, by worker id. `changed` is set when either
    has changed, or when a worker has left.
    """

    passed_here: bool = False
    acks: dict[str, int] = field(default_factory=dict)
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    def add(self, ack: Ack) -> None:
        """Store the acknowledgement and set `changed`. A second one of a worker replaces it."""
        self.acks[ack.worker] = ack.tabs
        self.changed.set()


@dataclass(frozen=True, slots=True)
class BarrierResult:
    """The outcome of a wait: no worker accepts any longer what was revoked before it.

    `complete` is true if every worker acknowledged. If not, the wait lasted a whole lease, after
    which a silent worker does not answer from its cache any more. `tabs` is the number of open
    tabs of the ended sessions, as far as workers reported it.
    """

    complete: bool
    tabs: int

    async def reach(self, event: Event | None) -> Reach:
        """Return how many of the tabs whose sessions the event ended have acknowledged that.

        Waits up to RECEIPT_SECONDS for the receipts that workers store with the event. Without an
        event it returns at once, with no tabs.
        """
        silent = not self.complete
        if event is None:
            return Reach(silent=silent)
        return await event.wait_for_receipts(self.tabs, silent=silent, seconds=RECEIPT_SECONDS)


class BaseBarrier:
    """What `Barrier` and `PollingBarrier` have in common: the wait itself.

    They differ in how they learn of acknowledgements.
    """

    _asker: str | None = None

    async def wait(self, event: Event | None = None) -> BarrierResult:
        """Wait until no worker accepts a session whose end was committed before this call.

        Call it after the commit. Inserts a mark, unless the event's transaction has inserted one,
        and returns when every worker has acknowledged it: a few milliseconds. If a worker does not,
        or the database fails, it logs `barrier_incomplete` and returns LEASE_SECONDS after the
        call, with `complete=False`. It raises no database error. The metrics record how long it
        took.
        """
        started = clock.monotonic()
        mark = _mark_of(event, asker=self._asker)
        pending = self._open(mark.id)
        try:
            async with asyncio.timeout(leases.LEASE_SECONDS):
                if not (event and event.marked):
                    await mark.insert()
                await self._all_acknowledged(mark.id, pending)
                complete = True
        except Exception as error:
            log.warning("barrier_incomplete", error=type(error).__name__)
            await asyncio.sleep(max(0.0, started + leases.LEASE_SECONDS - clock.monotonic()))
            complete = False
        finally:
            self._discard(mark.id)
            metrics.BARRIER_SECONDS.observe(clock.monotonic() - started)
        return BarrierResult(complete, sum(pending.acks.values()))

    def _open(self, mark_id: Id) -> PendingBarrier:
        """Return the record in which acknowledgements of the mark are collected from now on."""
        raise NotImplementedError

    async def _all_acknowledged(self, mark_id: Id, pending: PendingBarrier) -> None:
        """Return when every worker has acknowledged the mark. May raise database errors."""
        raise NotImplementedError

    def _discard(self, mark_id: Id) -> None:
        """Stop collecting acknowledgements of the mark."""
        raise NotImplementedError


class Barrier(BaseBarrier, BackgroundTask):
    """The barrier of a worker. It also acknowledges the marks of other processes.

    It learns of acknowledgements from the change stream, and sooner from workers of the same
    server, which send them through `LocalPeers`. `count_tabs` returns the number of open tabs here
    whose sessions an event (given by its id) has ended. `folder` is that of `LocalPeers`.
    """

    def __init__(
        self, lease: Lease, *, count_tabs: Callable[[Id | None], int], folder: Path | None
    ) -> None:
        self._lease = lease
        self._asker = lease.worker_id
        self._count_tabs = count_tabs
        self._peers = LocalPeers(folder, lease.worker_id, self._on_peer_message)
        self._pending: dict[Id, PendingBarrier] = {}
        # A mark that was inserted in the event's transaction may be acknowledged before `wait` is
        # called for it.
        self._early: dict[Id, PendingBarrier] = {}
        self._unwritten_acks: dict[Id, Ack] = {}
        self._acks_waiting = asyncio.Event()

    async def start(self) -> None:
        """Listen for messages of local workers, and start the task that writes acknowledgements."""
        await self._peers.start()
        self._start_task(self._write_acks(), "acknowledge")

    async def stop(self) -> None:
        """Stop that task and stop listening. Acknowledgements not written yet are lost."""
        await super().stop()
        await self._peers.stop()

    def _open(self, mark_id: Id) -> PendingBarrier:
        """Return the record of the mark, with acknowledgements that came before this call, and
        collect further ones in it."""
        pending = self._pending[mark_id] = self._early.pop(mark_id, None) or PendingBarrier()
        return pending

    async def _all_acknowledged(self, mark_id: Id, pending: PendingBarrier) -> None:
        """Return when `_is_complete`. Looks again whenever something changes."""
        while not self._is_complete(pending):
            pending.changed.clear()
            await pending.changed.wait()

    def _discard(self, mark_id: Id) -> None:
        del self._pending[mark_id]

    def _is_complete(self, pending: PendingBarrier) -> bool:
        """Return whether this worker's stream has delivered the mark and every live worker has
        acknowledged it. False while it is not known which workers are alive."""
        # The mark has come back on this worker's stream, so every heartbeat from before the mark
        # has come too. A worker that is not among the live ones either has no valid lease, or
        # started after the mark.
        live = self._lease.live_workers()
        return pending.passed_here and live is not None and live <= pending.acks.keys()

    # ---- change stream listener

    def on_change(self, change: Change) -> None:
        """Acknowledge a new mark, or note the acknowledgement of a mark of this worker.

        When a worker's document is deleted, pending waits check again whether they are complete.
        """
        if change.collection == Worker.Settings.name and change.operation == "delete":
            for pending in self._pending.values():
                pending.changed.set()
        if change.collection != BarrierMark.Settings.name:
            return
        if change.operation == "insert":
            self._on_mark(change)
        elif pending := self._pending.get(change.id) or self._early.get(change.id):
            for name, value in change.updated_fields.items():
                if name.split(".")[0] == "acks":
                    for each in value if isinstance(value, list) else [value]:
                        pending.add(Ack.model_validate(each))

    def _on_mark(self, change: Change) -> None:
        """Acknowledge the mark for this worker.

        A mark of this worker is acknowledged in memory. For another worker's mark it sends the
        acknowledgement to that worker, or queues it for the database if that fails. A mark without
        an asker, from a command or an event's transaction, gets both: the asker may be this worker.
        """
        asker = change.document.get("asker")
        ack = Ack(worker=self._lease.worker_id, tabs=self._count_tabs(change.document.get("event")))
        if asker in (None, ack.worker):
            pending = self._pending_for(change.id)
            pending.passed_here = True
            pending.add(ack)
        if asker == ack.worker or self._send_to_peer(asker, change.id, ack):
            return
        self._unwritten_acks[change.id] = ack
        self._acks_waiting.set()

    def _send_to_peer(self, asker: str | None, mark_id: Id, ack: Ack) -> bool:
        """Return whether the acknowledgement was sent to the asker's socket on this server."""
        if asker is None:
            return False
        message = json.dumps({"mark": str(mark_id), **ack.model_dump()}).encode()
        return self._peers.send(asker, message)

    def _on_peer_message(self, message: bytes) -> None:
        """Note another worker's acknowledgement of a mark of this worker.

        It may arrive before this worker's own change stream delivers the mark.
        """
        fields = json.loads(message)
        self._pending_for(Id(fields.pop("mark"))).add(Ack.model_validate(fields))

    def _pending_for(self, mark_id: Id) -> PendingBarrier:
        """Return the mark's record; create one in `_early`, at most MAX_EARLY of them, if none."""
        pending = self._pending.get(mark_id) or self._early.get(mark_id)
        if pending is None:
            pending = self._early[mark_id] = PendingBarrier()
            if len(self._early) > MAX_EARLY:
                del self._early[next(iter(self._early))]
        return pending

    def on_missed_changes(self) -> None:
        """Do nothing. A mark that was missed is not acknowledged, so its `wait` takes a lease."""

    def on_disconnect(self) -> None:
        """Do nothing: marks that are inserted meanwhile come when the stream is open again."""

    async def _write_acks(self) -> None:
        """Write queued acknowledgements to their marks, one bulk write at a time, forever.

        Acknowledgements that cannot be written are dropped, with the log line
        `acknowledgement_failed`.
        """
        while True:
            await self._acks_waiting.wait()
            self._acks_waiting.clear()
            acks, self._unwritten_acks = self._unwritten_acks, {}
            try:
                await BarrierMark.acknowledge(acks)
            except Exception as error:
                log.warning("acknowledgement_failed", error=type(error).__name__)


class PollingBarrier(BaseBarrier):
    """The barrier of a process that is no worker, such as a command: it polls the database.

    A worker writes its first heartbeat before it caches anything. So a worker that is not listed
    after the mark was inserted starts with a cache that contains nothing older than the mark.
    """

    def _open(self, mark_id: Id) -> PendingBarrier:
        return PendingBarrier()

    async def _all_acknowledged(self, mark_id: Id, pending: PendingBarrier) -> None:
        """Read the workers and the mark every POLL_SECONDS, and return when the mark has an
        acknowledgement of every worker. Raises database errors."""
        while not (await Worker.everyone()).keys() <= pending.acks.keys():
            await asyncio.sleep(POLL_SECONDS)
            if mark := await BarrierMark.get(mark_id):
                pending.acks = {ack.worker: ack.tabs for ack in mark.acks}

    def _discard(self, mark_id: Id) -> None:
        pass


def _mark_of(event: Event | None, *, asker: str | None) -> BarrierMark:
    """Return the mark that was inserted with the event, or else a new one, not inserted yet."""
    if event and event.marked:
        return event.barrier_mark(asker)
    return BarrierMark(at=clock.now(), event=event and event.id, asker=asker)
