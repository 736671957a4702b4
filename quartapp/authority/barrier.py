"""Waits until no worker can accept what was revoked before."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Any

from beanie import PydanticObjectId

from quartapp import clock, metrics
from quartapp.authority import lease as leases
from quartapp.authority.lease import Lease
from quartapp.authority.stream import Change
from quartapp.log import log
from quartapp.models import Barrier as Mark


@dataclass
class Waiting:
    """A barrier of ours that is under way."""

    returned: bool = False
    acks: set[str] = field(default_factory=set)
    news: asyncio.Event = field(default_factory=asyncio.Event)


class Barrier:
    """Marks the order of the writes after a revocation, and acknowledges the marks of others."""

    def __init__(self, lease: Lease) -> None:
        self._lease = lease
        self._waiting: dict[Any, Waiting] = {}
        self._unacknowledged: list[Any] = []
        self._news = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        self._task = asyncio.create_task(self._acknowledge(), name="acknowledge")

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    async def passed(self) -> bool:
        """Call it after the commit. When it returns, nobody accepts what was taken away.

        True if every worker said so; False if a whole lease had to pass, after which a worker
        that is silent cannot trust its memory. Never raises what the driver raises: waiting does
        as well.
        """
        committed = leases.now()
        mark_id, mine = PydanticObjectId(), Waiting()
        self._waiting[mark_id] = mine
        try:
            async with asyncio.timeout(leases.SECONDS):
                mark = Mark(id=mark_id, asked_by=self._lease.worker_id, at=clock.now())
                await mark.insert()
                while not self._all_passed(mine):
                    mine.news.clear()
                    await mine.news.wait()
                return True
        except Exception as error:
            log.warning("barrier_incomplete", error=type(error).__name__)
            await asyncio.sleep(max(0.0, committed + leases.SECONDS - leases.now()))
            return False
        finally:
            del self._waiting[mark_id]
            metrics.BARRIER_SECONDS.observe(leases.now() - committed)

    def _all_passed(self, mine: Waiting) -> bool:
        # Asked only once the mark is back: every heartbeat from before it was heard by then, so a
        # worker that is not among the living has either let its lease pass, or has passed the mark.
        living = self._lease.live_workers()
        return mine.returned and living is not None and living <= mine.acks

    # ---- listening

    def heard(self, change: Change) -> None:
        if change.collection != Mark.Settings.name:
            return
        mine = self._waiting.get(change.id)
        if change.operation == "insert":
            if mine is None:
                self._unacknowledged.append(change.id)
                self._news.set()
            else:
                mine.returned = True
                mine.acks.add(self._lease.worker_id)
                mine.news.set()
        elif mine is not None:
            for name, value in change.fields.items():
                if name.split(".")[0] == "acks":
                    mine.acks.update(value if isinstance(value, list) else [value])
            mine.news.set()

    def interrupted(self) -> None:
        """A mark that was missed is not acknowledged, and whoever set it waits for the lease."""

    def lost(self) -> None:
        """Nothing to do before it is open again."""

    async def _acknowledge(self) -> None:
        """One write at a time, for all marks that came meanwhile."""
        while True:
            await self._news.wait()
            self._news.clear()
            ids, self._unacknowledged = self._unacknowledged, []
            try:
                await Mark.acknowledge(ids, self._lease.worker_id)
            except Exception as error:
                log.warning("acknowledgement_failed", error=type(error).__name__)
