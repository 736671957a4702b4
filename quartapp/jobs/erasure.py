"""A background task that erases deleted accounts when the time to restore them is over."""

from __future__ import annotations

import asyncio

from quartapp.background import BackgroundTask
from quartapp.log import log
from quartapp.models.privacy import account_deletion

LOOK_EVERY = 5.0


class Erasure(BackgroundTask):
    """Runs in each worker. Claiming an account in the database lets one worker erase it."""

    async def start(self) -> None:
        self._start_task(self._repeat(), "erasure")

    async def _repeat(self) -> None:
        """Erase the accounts that are due, then sleep for LOOK_EVERY seconds. Repeat until
        cancelled. Failures are logged as the warning `erasing_failed`; the account whose erasure
        failed is claimed again after two minutes."""
        while True:
            try:
                await self.erase_due()
            except Exception as error:
                log.warning("erasing_failed", error=type(error).__name__, detail=str(error)[:200])
            await asyncio.sleep(LOOK_EVERY)

    async def erase_due(self) -> None:
        """Claim and erase accounts that are due, one after another, until none is left. Logs
        `user_erased` for each that this worker erased. Raises what the driver raises."""
        while (user := await account_deletion.claim()) is not None:
            if await account_deletion.erase(user):
                log.info("user_erased", user=str(user.id))
