"""A background task that takes deleted roles from the users who held them.

The session rule refuses the sessions of these users whether this has run or not. This marks the
sessions as ended, removes the links to the role, and notifies the users, a batch at a time.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress

from beanie import PydanticObjectId

from quartapp import clock
from quartapp.authority.change_stream import Change
from quartapp.background import BackgroundTask
from quartapp.log import log
from quartapp.models import Role, RoleDeletion, RoleRequest

# Seconds between two looks, unless a role is deleted earlier.
LOOK_EVERY = 5.0
# The task rests after each batch, for this many times the time that the batch took, so that it
# leaves the database to the requests.
REST = 1.0


class RoleDeletions(BackgroundTask):
    """Runs in each worker. Claiming a deletion in the database lets one worker settle it."""

    def __init__(self) -> None:
        self._news = asyncio.Event()
        # Roles whose deletion the stream has reported, until it is stored.
        self._deleted: set[PydanticObjectId] = set()

    async def start(self) -> None:
        self._start_task(self._repeat(), "role deletions")

    # ---- change stream listener

    def on_change(self, change: Change) -> None:
        """Wake the task if a role was deleted."""
        if change.collection == RoleDeletion.Settings.name:
            self._news.set()
        elif change.collection == Role.Settings.name and change.operation == "delete":
            self._deleted.add(change.id)
            self._news.set()

    def on_missed_changes(self) -> None:
        """Wake the task: changes may have been missed."""
        self._news.set()

    def on_disconnect(self) -> None:
        """Does nothing: the task also looks every LOOK_EVERY seconds without the stream."""

    # ---- settling

    async def _repeat(self) -> None:
        """Settle deletions, then wait until a role is deleted, at most LOOK_EVERY seconds; again
        and again. Logs failures."""
        while True:
            try:
                while self._deleted:
                    # Stores a deletion by another program; our own are stored with the deletion.
                    role_id = next(iter(self._deleted))
                    await RoleDeletion.note(role_id)
                    self._deleted.discard(role_id)
                await settle_all()
            except Exception as error:
                detail = str(error)[:200]
                log.warning("role_not_settled", error=type(error).__name__, detail=detail)
            with suppress(TimeoutError):
                async with asyncio.timeout(LOOK_EVERY):
                    await self._news.wait()
            self._news.clear()


async def settle_all() -> None:
    """Settle all deletions that no other worker has claimed, one after another, and log each.

    Raises what the driver raises. What is done stays done: another worker continues when the claim
    is over.
    """
    while (deletion := await RoleDeletion.claim()) is not None:
        if await settle(deletion):
            log.info("role_settled", role=str(deletion.id))


async def settle(deletion: RoleDeletion) -> bool:
    """Settle a claimed deletion, a batch at a time, and rest after each batch. Close the open
    requests for the role.

    Returns False if another worker has claimed it meanwhile; then that worker continues. Users keep
    the links to a role that another program has deleted, or has restored since.
    """
    if await deletion.is_undone():
        await deletion.finish()
        return True
    more = deletion.event is not None
    while more:
        started = clock.monotonic()
        more = await deletion.settle_batch()
        if not await deletion.renew_claim():
            return False
        await asyncio.sleep(REST * (clock.monotonic() - started))
    if not await deletion.end_sessions():
        return False
    await RoleRequest.void([deletion.id])
    await deletion.finish()
    return True
