"""Until when a worker may trust what it remembers.

Every half second a worker writes a heartbeat, and sees it come back on its own change stream. All
that was committed before the heartbeat was on the stream before it. So a worker that trusts its
memory for two seconds from the *sending* of the newest heartbeat that came back cannot rely on
anything that was taken away longer ago than that, whatever has become of its stream since.

Only durations on one machine's clock are compared, never clocks of two machines.
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
from quartapp.background import Background
from quartapp.log import log
from quartapp.models import Worker

SECONDS = 2.0
EVERY = 0.5
# A worker that has written no heartbeat for so long may be dead.
SILENT_SECONDS = 2 * EVERY


class Lease(Background):
    """This worker's heartbeat, and what it has heard of the others'."""

    def __init__(self, name: str, worker_id: str | None = None) -> None:
        self.worker_id = worker_id or secrets.token_hex(8)
        self._name = name
        self._sent: deque[tuple[int, float]] = deque(maxlen=16)
        self._until = 0.0
        self._peers: dict[str, float] = {}
        self._complete_since = clock.monotonic()
        self._came_back = asyncio.Event()
        self._silent: set[str] = set()
        self._none_silent = asyncio.Event()
        self._writing: asyncio.Future[None] | None = None

    @property
    def valid(self) -> bool:
        """Whether what is remembered may be used for a request that begins now."""
        return clock.monotonic() < self._until

    def live_workers(self) -> set[str] | None:
        """Those who may still trust their memory; None while somebody may not have been heard."""
        oldest = clock.monotonic() - SECONDS
        if self._complete_since > oldest:
            return None
        return {worker for worker, heard in self._peers.items() if heard > oldest}

    async def start(self) -> None:
        """Return when the first heartbeat has come back, or after a lease without one.

        The stream must be open: who is there already is read, and who comes after is heard. Workers
        that seem to be dead are given a lease to be heard, as the first barriers would have to.
        """
        opened = self._complete_since = clock.monotonic()
        try:
            async with asyncio.timeout(SECONDS):
                already = await Worker.everyone()
        except Exception as error:
            log.warning("workers_not_read", error=type(error).__name__)
        else:
            self._peers = dict.fromkeys(already, clock.monotonic()) | self._peers
            self._silent = {each for each, age in already.items() if age > SILENT_SECONDS}
            if self._complete_since == opened:
                self._complete_since = -math.inf
        self._run(self._beat(), "heartbeat")
        try:
            async with asyncio.timeout(SECONDS):
                await self._came_back.wait()
        except TimeoutError:
            log.warning("lease_late")
        if self._silent:
            with suppress(TimeoutError):
                async with asyncio.timeout(opened + SECONDS - clock.monotonic()):
                    await self._none_silent.wait()

    async def stop(self) -> None:
        """Gives the lease up, so that nobody waits for this worker."""
        self._give_up()
        await super().stop()
        if self._writing is not None:
            # To cancel the task does not keep the driver from writing: the document would be back
            # after it was deleted.
            await asyncio.wait([self._writing], timeout=SECONDS)
        try:
            await Worker.leave(self.worker_id)
        except Exception as error:
            log.warning("worker_left_without_a_word", error=type(error).__name__)

    # ---- listening

    def heard(self, change: Change) -> None:
        if change.collection != Worker.Settings.name:
            return
        self._silent.discard(change.id)
        if not self._silent:
            self._none_silent.set()
        if change.operation == "delete":
            self._peers.pop(change.id, None)
            if change.id == self.worker_id:
                self._give_up()
            return
        self._peers[change.id] = clock.monotonic()
        if change.id == self.worker_id:
            self._came_back_as({**change.document, **change.fields})

    def _came_back_as(self, beat: Mapping[str, Any]) -> None:
        for number, sent in self._sent:
            if number == beat["beat"]:
                self._until = max(self._until, sent + SECONDS)
                self._came_back.set()
                if clock.monotonic() - sent < clock.TOLERANCE.total_seconds():
                    clock.agree(beat["at"])

    def interrupted(self) -> None:
        """A lease holds whatever becomes of the stream. But heartbeats of others may be missing."""
        self._complete_since = clock.monotonic()

    def lost(self) -> None:
        """Trust would be right for the rest of the lease, but there is no need for it."""
        self._until = 0.0

    def _give_up(self) -> None:
        """Now, and for the heartbeats that are still under way: nobody waits for us any more."""
        self._until = 0.0
        self._sent.clear()

    # ---- beating

    async def _beat(self) -> None:
        beat = 0
        while True:
            beat += 1
            self._sent.append((beat, clock.monotonic()))
            try:
                said = Worker.say(self.worker_id, self._name, beat)
                self._writing = asyncio.ensure_future(said)
                await asyncio.shield(self._writing)
            except Exception as error:
                log.warning("heartbeat_failed", error=type(error).__name__)
            await asyncio.sleep(EVERY)
