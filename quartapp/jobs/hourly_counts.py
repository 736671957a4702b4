"""A background task that writes the counts of sign-ins, failed attempts and new accounts."""

from __future__ import annotations

import asyncio

from quartapp.background import BackgroundTask
from quartapp.log import log
from quartapp.models.statistics import hourly_count

WRITE_SECONDS = 2.0


class HourlyCountWriter(BackgroundTask):
    """Writes what this worker has counted every WRITE_SECONDS, if there is anything.

    Counts that cannot be written are lost, and logged as the warning `counts_not_written`.
    """

    async def start(self) -> None:
        self._start_task(self._write_often(), "hourly counts")

    async def stop(self) -> None:
        """Stop the task, and write what is counted."""
        await super().stop()
        await self._write()

    async def _write_often(self) -> None:
        """Write every WRITE_SECONDS until cancelled."""
        while True:
            await asyncio.sleep(WRITE_SECONDS)
            await self._write()

    async def _write(self) -> None:
        """Write what is counted. Logs a failure (`counts_not_written`)."""
        try:
            await hourly_count.write()
        except Exception as error:
            log.warning("counts_not_written", error=type(error).__name__)
