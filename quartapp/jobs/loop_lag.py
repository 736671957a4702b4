"""A background task that measures how late the event loop runs."""

from __future__ import annotations

import asyncio

from quartapp import metrics
from quartapp.background import BackgroundTask

INTERVAL_SECONDS = 0.05


class LoopLagMonitor(BackgroundTask):
    """Sleeps for INTERVAL_SECONDS again and again, and records in the metrics how much later than
    planned the loop wakes it."""

    async def start(self) -> None:
        self._start_task(self._measure(), "loop lag")

    async def _measure(self) -> None:
        """Measure until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            due = loop.time() + INTERVAL_SECONDS
            await asyncio.sleep(INTERVAL_SECONDS)
            metrics.LOOP_LAG.observe(max(0.0, loop.time() - due))
