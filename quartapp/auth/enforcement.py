"""Waiting until every worker enforces what a request has revoked."""

from __future__ import annotations

from quartapp.models import Event
from quartapp.runtime import runtime


async def wait_until_enforced(event: Event | None = None) -> str:
    """Wait until no worker accepts what was revoked before this call.

    Call it after the commit. Waits for the acknowledgement of every worker, or for a whole lease if
    one does not answer. With the audit event of the change, also waits about a second for the open
    tabs that the event has ended, and returns a sentence about them for the next page. The sentence
    is empty if there were no tabs or no event.
    """
    result = await runtime().barrier.wait(event)
    return (await result.reach(event)).sentence
