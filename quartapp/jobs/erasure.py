"""A background task that erases deleted accounts when the time to restore them is over."""

from __future__ import annotations

from quartapp.jobs.repeated import RepeatedTask
from quartapp.log import log
from quartapp.models.privacy import account_deletion


class Erasure(RepeatedTask):
    """Runs in each worker. Claiming an account in the database lets one worker erase it."""

    name = "erasure"
    look_every = 5.0
    failure = "erasing_failed"
    logs_detail = True

    async def run(self) -> None:
        """Erase the accounts that are due. An account whose erasure fails is claimed again after
        two minutes."""
        await self.erase_due()

    async def erase_due(self) -> None:
        """Claim and erase accounts that are due, one after another, until none is left. Logs
        `user_erased` for each that this worker erased. Raises what the driver raises."""
        while (user := await account_deletion.claim()) is not None:
            if await account_deletion.erase(user):
                log.info("user_erased", user=str(user.id))
