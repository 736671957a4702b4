"""A background task that appends the entries of the audit log to its hash chain."""

from __future__ import annotations

import asyncio

from beanie import PydanticObjectId

from quartapp import clock
from quartapp.jobs.repeated import RepeatedTask
from quartapp.log import log
from quartapp.models.audit import seal as seals

EXPIRE_EVERY = 3600.0
# The task rests after each seal, for this many times the time that the seal took, so that sealing
# what an earlier version left unsealed leaves the database to the requests.
REST = 1.0


class AuditSealer(RepeatedTask):
    """Runs in each worker. The number of a seal lets only one worker append it."""

    name = "audit sealer"
    look_every = 5.0
    failure = "sealing_failed"
    logs_detail = True

    def __init__(self) -> None:
        self._expired_at: float | None = None
        self._adopted_to: PydanticObjectId | None = None
        self._newest: seals.Mark | None = None

    async def run(self) -> None:
        await self._compare()
        self._adopted_to = await seal_all(self._adopted_to)
        self._newest = await seals.newest()
        await self._expire()

    async def _compare(self) -> None:
        """Log the error `audit_chain_changed` if the newest seal of the last run was changed or
        removed since. The database does not show that afterwards."""
        if self._newest is not None and not await seals.is_in_chain(self._newest):
            seal, expected = self._newest.number, self._newest.hash
            log.error("audit_chain_changed", seal=seal, hash=expected)

    async def _expire(self) -> None:
        """Delete all seals whose entries have been deleted by age, at the first call and then once
        in EXPIRE_EVERY seconds. Raises what the driver raises."""
        now = clock.monotonic()
        if self._expired_at is None or now - self._expired_at >= EXPIRE_EVERY:
            self._expired_at = now
            while await seals.expire_seals() == seals.EXPIRED_AT_ONCE:
                pass


async def seal_all(adopted_to: PydanticObjectId | None = None) -> PydanticObjectId | None:
    """Append seals until no entry is unsealed and none is to be adopted (`models.audit.seal`), or
    another process appends them; rest after each, for as long as it took. Return the highest id
    that was looked at for adoption, which the next call is given.

    Logs `audit_sealed` for each seal, with its hash: kept outside of the database, that proves
    later that the chain up to this seal is the same (`quartapp audit verify --expect`). Raises what
    the driver raises.
    """
    more = True
    while more:
        started = clock.monotonic()
        sealed = await seals.seal()
        _log(sealed)
        more = sealed is not None and not sealed.complete
        if not more:
            looked_to = adopted_to
            adopted, adopted_to = await seals.adopt(adopted_to)
            _log(adopted)
            more = looked_to != adopted_to
        await asyncio.sleep(REST * (clock.monotonic() - started))
    return adopted_to


def _log(sealed: seals.Sealed | None) -> None:
    if sealed is not None:
        log.info("audit_sealed", seal=sealed.number, hash=sealed.hash, entries=sealed.entries)
