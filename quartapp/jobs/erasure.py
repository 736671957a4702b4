"""Erases the people whose time to come back is over, one after another."""

from __future__ import annotations

import asyncio

from quartapp.background import Background
from quartapp.log import log
from quartapp.models.privacy import account_deletion

LOOK_EVERY = 5.0


class Eraser(Background):
    """One in each worker; the database says whose turn it is. No request waits for it."""

    async def start(self) -> None:
        self._run(self._go_round(), "eraser")

    async def _go_round(self) -> None:
        while True:
            try:
                await self.erase_due()
            except Exception as error:
                log.warning("erasing_failed", error=type(error).__name__, detail=str(error)[:200])
            await asyncio.sleep(LOOK_EVERY)

    async def erase_due(self) -> None:
        """Erases everybody who is due. Raises what the driver raises."""
        while (user := await account_deletion.claim()) is not None:
            if await account_deletion.erase(user):
                log.info("user_erased", user=str(user.id))
