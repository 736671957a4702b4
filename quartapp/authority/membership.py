"""Which workers a barrier has to wait for, by their heartbeats in the database.

Workers do not receive each other's heartbeats: with N workers on a change stream each, that would
be N times N messages for each heartbeat. A barrier reads the heartbeats instead, once, after its
mark was committed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass

from beanie import PydanticObjectId

from quartapp import clock
from quartapp.authority.change_stream import Change
from quartapp.authority.lease import HEARTBEAT_SECONDS, LEASE_SECONDS
from quartapp.background import BackgroundTask
from quartapp.log import log
from quartapp.models import Worker
from quartapp.models.cluster.worker import Heartbeat

# How often a worker reads the heartbeats besides its barriers, so that it knows of a killed host
# before its next barrier.
READ_SECONDS = 5.0
# The document of a worker whose heartbeat has stayed the same for so long is deleted. A command,
# which has no earlier reads, then need not wait for it.
REMOVE_SECONDS = 30.0
# A worker whose last heartbeat is older may be dead.
SILENT_SECONDS = 2 * HEARTBEAT_SECONDS


@dataclass(frozen=True, slots=True)
class Seen:
    """The number of a worker's last heartbeat, and when this process first read it."""

    beat: int
    at: float

    @property
    def lease_ends(self) -> float:
        """Time by this process's monotonic clock at which a lease by this heartbeat, or by an
        earlier one, has ended. The worker sent it before it was read here."""
        return self.at + LEASE_SECONDS


class Membership(BackgroundTask):
    """Reads the heartbeats of all workers, and remembers how long each has stayed the same.

    In a worker it also listens to the change stream, which tells when the document of any worker is
    inserted or deleted. `listed` is the ids of all workers that have a document, as far as the
    stream has been heard, including dead workers. It is None until they have been read since the
    stream opened.
    """

    def __init__(self) -> None:
        self._seen: dict[str, Seen] = {}
        self.listed: set[str] | None = None
        # What the stream has said while `listed` was None: whether a worker has a document.
        self._told: dict[str, bool] = {}
        self._openings = 0
        self._opened = asyncio.Event()

    async def lease_ends(self, mark_id: PydanticObjectId) -> Mapping[str, float]:
        """Return the workers that may use cached states from before the mark, each with the time of
        `clock.monotonic` at which its lease has ended unless it writes another heartbeat.

        The mark must be committed. A worker that is not listed has no lease, or wrote its first
        heartbeat after the mark and began to cache states after that. A worker that writes another
        heartbeat later receives the mark on its change stream before that heartbeat, which would
        extend its lease.

        Raises database errors, and MarkMissing.
        """
        self._note(await Worker.everyone(after=mark_id))
        return {worker_id: seen.lease_ends for worker_id, seen in self._seen.items()}

    def _note(self, heartbeats: Mapping[str, Heartbeat]) -> None:
        """Replace what is known. Call it with the answer of the database as soon as it arrives."""
        now, before = clock.monotonic(), self._seen
        self._seen = {}
        for worker_id, heartbeat in heartbeats.items():
            seen = before.get(worker_id)
            same = seen is not None and seen.beat == heartbeat.beat
            self._seen[worker_id] = seen if seen and same else Seen(heartbeat.beat, now)

    # ---- change stream listener

    def on_change(self, change: Change) -> None:
        """Note that the document of a worker was inserted or deleted."""
        if change.collection != Worker.Settings.name or change.operation == "update":
            return
        exists = change.operation != "delete"
        if self.listed is None:
            self._told[change.id] = exists
        elif exists:
            self.listed.add(change.id)
        else:
            self.listed.discard(change.id)

    def on_missed_changes(self) -> None:
        """Forget which workers there are, and wake the task that reads them again."""
        self.on_disconnect()
        self._opened.set()

    def on_disconnect(self) -> None:
        """Forget which workers there are."""
        self._openings += 1
        self.listed = None
        self._told.clear()

    async def _list(self) -> None:
        """Read `listed`, unless the stream is interrupted meanwhile. Raises database errors.

        The read began after the stream was opened. Of a worker of which the stream has told since,
        the stream has the last word.
        """
        opening = self._openings
        found = await Worker.ids()
        if opening == self._openings:
            self.listed = {each for each in found if self._told.get(each, True)}
            self.listed |= {each for each, exists in self._told.items() if exists}
            self._told.clear()

    # ---- in a worker

    async def start(self) -> None:
        """Read the heartbeats, and start the task that reads them again every READ_SECONDS.

        If a worker's last heartbeat is older than SILENT_SECONDS, waits until it has written
        another or its lease has ended, at most LEASE_SECONDS, so that the first barriers need not.
        Logs `workers_not_read` on database errors.
        """
        try:
            async with asyncio.timeout(LEASE_SECONDS):
                await self._wait_for_silent_workers()
        except TimeoutError:
            pass
        except Exception as error:
            log.warning("workers_not_read", error=type(error).__name__)
        self._start_task(self._keep_reading(), "membership")

    async def _wait_for_silent_workers(self) -> None:
        """Read the heartbeats every HEARTBEAT_SECONDS until none is older than SILENT_SECONDS, but
        for those of workers whose lease has ended. Raises database errors."""
        while True:
            found = await Worker.everyone()
            self._note(found)
            now = clock.monotonic()
            silent = [each for each, heartbeat in found.items() if heartbeat.age > SILENT_SECONDS]
            if all(self._seen[each].lease_ends <= now for each in silent):
                return
            await asyncio.sleep(HEARTBEAT_SECONDS)

    async def _keep_reading(self) -> None:
        """Read the heartbeats every READ_SECONDS, forever, and delete those of dead workers.

        A document counts as that of a dead worker when it has not changed for REMOVE_SECONDS by
        this worker's clock. If that worker was only paused, its next heartbeat inserts the document
        again before its lease begins. Also reads `listed` if it is None, at once when the stream
        opens. Logs `workers_not_read` on database errors.
        """
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(READ_SECONDS):
                    await self._opened.wait()
            self._opened.clear()
            try:
                if self.listed is None:
                    await self._list()
                self._note(await Worker.everyone())
                oldest = clock.monotonic() - REMOVE_SECONDS
                for worker_id, seen in self._seen.items():
                    if seen.at < oldest:
                        await Worker.remove_silent(worker_id, last_beat=seen.beat)
            except Exception as error:
                log.warning("workers_not_read", error=type(error).__name__)
