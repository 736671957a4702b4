"""The base class of background tasks that act when a time stored in the database has come."""

from __future__ import annotations

from datetime import datetime

from quartapp import clock
from quartapp.authority.change_stream import Change
from quartapp.jobs.repeated import ListeningTask
from quartapp.models import User

LEAST = 0.01


class DeadlineTask(ListeningTask):
    """Runs in each worker, and sleeps until the next time in `field` of a user, or `look_every`
    seconds.

    A subclass sets the class attributes and has `run` and `next_time`. Each worker wakes at the
    same moment: conditional updates let one of them make each change.
    """

    look_every = 10.0
    field: str

    async def next_time(self) -> datetime | None:
        """Return the next time in the future, or None."""
        raise NotImplementedError

    async def seconds_to_wait(self) -> float:
        """Return the seconds until `next_time`, at least LEAST and at most `look_every`. Raises
        what the driver raises."""
        if (at := await self.next_time()) is None:
            return self.look_every
        return min(self.look_every, max(LEAST, (at - clock.now()).total_seconds()))

    def concerns(self, change: Change) -> bool:
        """Return whether a user was replaced, or the field was changed. The stream does not report
        new users."""
        return change.collection == User.Settings.name and (
            self.field in change.changed_fields or bool(change.document)
        )
