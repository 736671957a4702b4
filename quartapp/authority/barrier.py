"""The barrier: wait until no worker accepts a session that was ended before.

A worker that answers requests from its cache sees the end of a session only when its change stream
delivers it. So after the commit the caller writes a mark (a `BarrierMark` document). A worker whose
change stream has delivered the mark has processed every change that was committed before it, and
acknowledges the mark. The wait is over when all workers have acknowledged, or when the lease of a
worker that has not can no longer be valid: see `quartapp.authority.lease` for the lease, and
`quartapp.authority.membership` for who the workers are.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

from beanie import PydanticObjectId

from quartapp import clock, metrics
from quartapp.authority import lease as leases
from quartapp.authority.change_stream import Change
from quartapp.authority.lease import Lease
from quartapp.authority.local_peers import LocalPeers
from quartapp.authority.membership import Membership
from quartapp.background import BackgroundTask
from quartapp.db.mongo import DatabaseError
from quartapp.log import log
from quartapp.models import Acknowledgement, BarrierMark, Event, Worker
from quartapp.models.audit.receipt import Reach
from quartapp.models.base.counting import CappedCount
from quartapp.models.cluster.barrier_mark import TabsOf
from quartapp.models.cluster.worker import MarkMissing

Id = PydanticObjectId
# The pauses between reads of the acknowledgements in the database.
FIRST_PAUSE, LONGEST_PAUSE = 0.003, 0.05
# How long an answer waits for the acknowledgements of tabs. The page and the audit log follow those
# that come later.
RECEIPT_SECONDS = 1.0
# How long a preview waits for the workers to count open tabs.
COUNT_SECONDS = 0.5
# How many barriers are kept that have acknowledgements, but that `wait` has not asked about yet.
MAX_EARLY = 1000


@dataclass
class PendingBarrier:
    """The acknowledgements of one mark so far.

    `tabs` has the number of open tabs that each worker reported, by worker id. `lease_ends` is what
    `Membership.lease_ends` returned for the mark, and `outdated` says that it has to be read. An
    acknowledgement, and the deletion of a worker's document, set `reader_wakeup`, for the task that
    reads the database, and `stream_wakeup`, for the one that relies on the change stream.
    """

    tabs: dict[str, int] = field(default_factory=dict)
    lease_ends: Mapping[str, float] = field(default_factory=dict)
    outdated: bool = True
    reader_wakeup: asyncio.Event = field(default_factory=asyncio.Event)
    stream_wakeup: asyncio.Event = field(default_factory=asyncio.Event)

    def add(self, worker_id: str, tabs: int) -> None:
        """Store an acknowledgement. A second one of a worker replaces it."""
        self.tabs[worker_id] = tabs
        self.wake()

    def wake(self) -> None:
        """Let the tasks that wait look again."""
        self.reader_wakeup.set()
        self.stream_wakeup.set()

    def seconds_left(self, asker: str | None) -> float:
        """Return for how long to wait at most until the leases of all workers that have not
        acknowledged have ended; 0 if all have.

        The acknowledgement of `asker`, if given, is waited for in any case.
        """
        if asker is not None and asker not in self.tabs:
            return leases.LEASE_SECONDS
        now = clock.monotonic()
        silent = self.lease_ends.keys() - self.tabs.keys()
        return max([self.lease_ends[each] - now for each in silent], default=0.0)


@dataclass(frozen=True, slots=True)
class BarrierResult:
    """The outcome of a wait: no worker accepts any longer what was revoked before it.

    `complete` is true if every worker acknowledged, except for those that are known to be dead. If
    not, the wait lasted a whole lease, after which a silent worker does not answer from its cache
    any more. `tabs` is the number of open tabs of the ended sessions, as far as workers reported
    it.
    """

    complete: bool
    tabs: int

    async def reach(self, event: Event | None) -> Reach:
        """Return how many of the tabs whose sessions the event ended have acknowledged that.

        Waits up to RECEIPT_SECONDS for the receipts that workers store for the event, and stores
        what is known if some are missing (`Event.wait_for_receipts`). Without an event it returns
        at once, with no tabs. Raises the driver's errors.
        """
        silent = not self.complete
        if event is None:
            return Reach(silent=silent)
        return await event.wait_for_receipts(self.tabs, silent=silent, seconds=RECEIPT_SECONDS)


class AbstractBarrier:
    """What `Barrier` and `PollingBarrier` have in common: the wait itself.

    Both read acknowledgements from the database; a worker also receives those of its own server.
    `asker` is the worker that waits, or None.
    """

    def __init__(self, membership: Membership, *, asker: str | None) -> None:
        self._membership = membership
        self._asker = asker

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
        return BarrierResult(complete, sum(pending.tabs.values()))

    async def _all_acknowledged(self, mark_id: Id, pending: PendingBarrier) -> None:
        """Return when every worker that may use states from before the mark has acknowledged it.

        The mark must be committed. Acknowledgements may arrive while the workers are read. Those in
        the database are read with growing pauses, without waiting until a majority has them: what
        they say is true even if they are rolled back. May raise database errors.
        """
        pause = FIRST_PAUSE
        while True:
            pending.reader_wakeup.clear()
            if pending.outdated:
                pending.outdated = False
                pending.lease_ends = await self._membership.lease_ends(mark_id)
            elif (seconds := pending.seconds_left(self._asker)) > 0:
                if not await self._has_changed(pending, min(pause, seconds)):
                    pause = min(1.5 * pause, LONGEST_PAUSE)
                    pending.tabs |= await Acknowledgement.tabs_by_worker(mark_id)
            else:
                return

    def _open(self, mark_id: Id) -> PendingBarrier:
        """Return the record in which acknowledgements of the mark are collected from now on."""
        raise NotImplementedError

    async def _has_changed(self, pending: PendingBarrier, seconds: float) -> bool:
        """Wait for a change of the record for this many seconds, and return whether there was
        one."""
        raise NotImplementedError

    def _discard(self, mark_id: Id) -> None:
        """Stop collecting acknowledgements of the mark."""
        raise NotImplementedError


class Barrier(AbstractBarrier, BackgroundTask):
    """The barrier of a worker. It also acknowledges the marks of other processes.

    It reads acknowledgements from the database, and receives those of workers of the same server
    through `LocalPeers`. `count_tabs` returns the number of open tabs here whose sessions an event
    (given by its id) has ended, and `count_open` that of users, sessions and roles (see `TabsOf`).
    `folder` is that of `LocalPeers`.
    """

    def __init__(
        self,
        lease: Lease,
        membership: Membership,
        *,
        count_tabs: Callable[[Id | None], int],
        folder: Path | None,
        count_open: Callable[..., int] = lambda **whose: 0,
    ) -> None:
        super().__init__(membership, asker=lease.worker_id)
        self._worker_id = lease.worker_id
        self._count_tabs = count_tabs
        self._count_open = count_open
        self._peers = LocalPeers(folder, self._worker_id, self._on_peer_message)
        self._pending: dict[Id, PendingBarrier] = {}
        # A mark that was inserted in the event's transaction may be acknowledged before `wait` is
        # called for it.
        self._early: dict[Id, PendingBarrier] = {}
        self._unwritten_acks: list[Acknowledgement] = []
        self._acks_waiting = asyncio.Event()

    async def start(self) -> None:
        """Listen for messages of local workers, and start the task that writes acknowledgements."""
        await self._peers.start()
        self._start_task(self._write_acks(), "acknowledge")

    async def stop(self) -> None:
        """Stop that task and stop listening. Acknowledgements not written yet are lost."""
        await super().stop()
        await self._peers.stop()

    async def count_open_tabs(self, whose: TabsOf) -> CappedCount:
        """Ask all workers how many open tabs these users, sessions and roles have.

        Writes a mark, whose acknowledgements have the numbers, and waits for them up to
        COUNT_SECONDS. If a worker has not answered by then, or the database fails, the result has
        `more`. A worker of an older version counts none.
        """
        fields = {name: list(ids) for name, ids in asdict(whose).items()}
        mark = BarrierMark(at=clock.now(), asker=self._asker, tabs_of=fields)
        pending = self._open(mark.id)
        complete = False
        try:
            with suppress(TimeoutError, DatabaseError, MarkMissing):
                async with asyncio.timeout(COUNT_SECONDS):
                    await mark.insert()
                    await self._all_acknowledged(mark.id, pending)
                    complete = True
        finally:
            self._discard(mark.id)
        return CappedCount(sum(pending.tabs.values()), more=not complete)

    def _open(self, mark_id: Id) -> PendingBarrier:
        """Return the record of the mark, with acknowledgements that came before this call, and
        collect further ones in it."""
        pending = self._pending[mark_id] = self._early.pop(mark_id, None) or PendingBarrier()
        return pending

    async def _all_acknowledged(self, mark_id: Id, pending: PendingBarrier) -> None:
        """Return when every worker that has a document, by the change stream, has acknowledged the
        mark; or when the base class would return, if that is sooner. May raise database errors.

        Mostly all have before the query of the base class is answered.
        """
        if self._have_all_listed(pending):
            return
        by_reading = asyncio.create_task(super()._all_acknowledged(mark_id, pending))
        by_stream = asyncio.create_task(self._wait_for_listed(pending))
        try:
            await asyncio.wait([by_reading, by_stream], return_when=asyncio.FIRST_COMPLETED)
            if not by_stream.done():
                by_reading.result()
        finally:
            by_reading.cancel()
            by_stream.cancel()
            await asyncio.gather(by_reading, by_stream, return_exceptions=True)

    async def _wait_for_listed(self, pending: PendingBarrier) -> None:
        while not self._have_all_listed(pending):
            pending.stream_wakeup.clear()
            await pending.stream_wakeup.wait()

    def _have_all_listed(self, pending: PendingBarrier) -> bool:
        """Return whether this worker and all others of which the stream has told have acknowledged.

        When this worker has, its stream has delivered the mark, and before that every document of a
        worker that was inserted before the mark.
        """
        listed = self._membership.listed
        if listed is None or self._worker_id not in pending.tabs:
            return False
        return listed <= pending.tabs.keys()

    async def _has_changed(self, pending: PendingBarrier, seconds: float) -> bool:
        """Return True when an acknowledgement has arrived or a worker's document was deleted, and
        False if that does not happen within this many seconds."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                return await pending.reader_wakeup.wait()
        return False

    def _discard(self, mark_id: Id) -> None:
        del self._pending[mark_id]

    # ---- change stream listener

    def on_change(self, change: Change) -> None:
        """Acknowledge a new mark (`_on_mark`).

        When a worker's document is deleted, pending waits read again which workers there are.
        """
        if change.collection == Worker.Settings.name and change.operation == "delete":
            for pending in self._pending.values():
                pending.outdated = True
                pending.wake()
        elif change.collection == BarrierMark.Settings.name and change.operation == "insert":
            self._on_mark(change)

    def _on_mark(self, change: Change) -> None:
        """Acknowledge the mark for this worker.

        A mark of this worker is acknowledged in memory. For another worker's mark it sends the
        acknowledgement to that worker, or queues it for the database if that fails. A mark without
        an asker, from a command or an event's transaction, gets both: the asker may be this worker.
        """
        asker = change.document.get("asker")
        whose = change.document.get("tabs_of")
        if whose:
            tabs = self._count_open(**whose)
        else:
            tabs = self._count_tabs(change.document.get("event"))
        if asker in (None, self._worker_id):
            self._pending_for(change.id).add(self._worker_id, tabs)
        if asker == self._worker_id or self._send_to_peer(asker, change.id, tabs):
            return
        self._unwritten_acks.append(
            Acknowledgement(mark=change.id, worker=self._worker_id, tabs=tabs)
        )
        self._acks_waiting.set()

    def _send_to_peer(self, asker: str | None, mark_id: Id, tabs: int) -> bool:
        """Return whether the acknowledgement was sent to the asker's socket on this server."""
        if asker is None:
            return False
        message = {"mark": str(mark_id), "worker": self._worker_id, "tabs": tabs}
        return self._peers.send(asker, json.dumps(message).encode())

    def _on_peer_message(self, message: bytes) -> None:
        """Note another worker's acknowledgement of a mark of this worker.

        It may arrive before this worker's own change stream delivers the mark.
        """
        fields = json.loads(message)
        self._pending_for(Id(fields["mark"])).add(fields["worker"], fields["tabs"])

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
        """Insert queued acknowledgements, with one command at a time, forever.

        Acknowledgements that cannot be written are dropped, with the log line
        `acknowledgement_failed`.
        """
        while True:
            await self._acks_waiting.wait()
            self._acks_waiting.clear()
            acks, self._unwritten_acks = self._unwritten_acks, []
            try:
                await Acknowledgement.write(acks)
            except Exception as error:
                log.warning("acknowledgement_failed", error=type(error).__name__)


class PollingBarrier(AbstractBarrier):
    """The barrier of a process that is no worker, such as a command: it polls the database."""

    def __init__(self) -> None:
        super().__init__(Membership(), asker=None)

    def _open(self, mark_id: Id) -> PendingBarrier:
        return PendingBarrier()

    async def _has_changed(self, pending: PendingBarrier, seconds: float) -> bool:
        """Sleep for this many seconds, and return False. Nothing tells of deleted documents of
        workers, so they are read again."""
        await asyncio.sleep(seconds)
        pending.outdated = True
        return False

    def _discard(self, mark_id: Id) -> None:
        pass


def _mark_of(event: Event | None, *, asker: str | None) -> BarrierMark:
    """Return the mark that was inserted with the event, or else a new one, not inserted yet."""
    if event and event.marked:
        return event.barrier_mark(asker)
    return BarrierMark(at=clock.now(), event=event and event.id, asker=asker)
