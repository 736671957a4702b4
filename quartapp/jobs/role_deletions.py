"""A background task that takes deleted roles from the users who held them.

The session rule refuses the sessions of these users whether this has run or not. This marks the
sessions as ended, removes the links to the role, and notifies the users, a batch at a time.
"""

from __future__ import annotations

import asyncio

from beanie import PydanticObjectId

from quartapp import clock
from quartapp.authority.change_stream import Change
from quartapp.jobs.repeated import ListeningTask
from quartapp.log import log
from quartapp.models import Role, RoleDeletion, RoleRequest

# The task rests after each batch, for this many times the time that the batch took, so that it
# leaves the database to the requests.
REST = 1.0


class RoleDeletions(ListeningTask):
    """Runs in each worker. Claiming a deletion in the database lets one worker complete it."""

    name = "role deletions"
    look_every = 5.0
    failure = "role_not_settled"
    logs_detail = True

    def __init__(self) -> None:
        super().__init__()
        # Roles whose deletion the stream has reported, until it is stored.
        self._deleted: set[PydanticObjectId] = set()

    def on_change(self, change: Change) -> None:
        """Remember the id of a role that was deleted, and end the pause."""
        if change.collection == Role.Settings.name and change.operation == "delete":
            self._deleted.add(change.id)
            self._wakeup.set()
        super().on_change(change)

    def concerns(self, change: Change) -> bool:
        """Return whether the deletion of a role was stored."""
        return change.collection == RoleDeletion.Settings.name

    async def run(self) -> None:
        """Store the deletions that other programs have made, then complete all that are stored."""
        while self._deleted:
            role_id = next(iter(self._deleted))
            await RoleDeletion.store_external(role_id)
            self._deleted.discard(role_id)
        await complete_all()


async def complete_all() -> None:
    """Complete all deletions that no other worker has claimed, one after another, and log
    `role_settled` for each.

    Raises what the driver raises. What is done stays done: another worker continues when the claim
    is over.
    """
    while (deletion := await RoleDeletion.claim()) is not None:
        if await complete(deletion):
            log.info("role_settled", role=str(deletion.id))


async def complete(deletion: RoleDeletion) -> bool:
    """Complete a claimed deletion: take the role from its users, mark the sessions that list it as
    ended, and close the open requests for it.

    Works a batch at a time, and rests after each for as long as it took. Returns False if another
    worker has claimed the deletion meanwhile; then that worker continues. Users keep the links to a
    role that another program has deleted. If another program has restored the role since, only
    marks the deletion as complete.
    """
    if await deletion.is_undone():
        await deletion.mark_complete()
        return True
    more = deletion.event is not None
    while more:
        started = clock.monotonic()
        more = await deletion.remove_role_from_batch()
        if not await deletion.renew_claim():
            return False
        await asyncio.sleep(REST * (clock.monotonic() - started))
    if not await deletion.end_sessions():
        return False
    await RoleRequest.void([deletion.id])
    await deletion.mark_complete()
    return True
