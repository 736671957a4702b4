"""Waiting until every worker enforces what a request has revoked."""

from __future__ import annotations

from quartapp.models import Event
from quartapp.runtime import runtime


async def wait_until_enforced(event: Event | None = None) -> str:
    """Wait until no worker accepts what was revoked before this call.

    Call it after the commit. Writes a barrier mark, unless the transaction of `event` has written
    one, and waits until every worker has acknowledged it. If one does not answer or the database
    fails, logs `barrier_incomplete` and waits until a whole lease has passed, without an error.

    With the audit event of the change, also waits for at most a second for the open tabs whose
    sessions the event has ended, and returns a sentence about them for the next page, with a space
    before it. If tabs are still unknown then, their number is stored beside the event. Without tabs
    or event, the sentence is empty, unless a worker did not answer. Raises the driver's errors if
    the receipts of the event cannot be read or stored.
    """
    result = await runtime().barrier.wait(event)
    return (await result.reach(event)).sentence
