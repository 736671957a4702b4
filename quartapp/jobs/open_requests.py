"""The number of open requests for roles, for the navigation of administrators."""

from __future__ import annotations

from quartapp.authority.change_stream import Change
from quartapp.jobs.repeated import ListeningTask
from quartapp.models import RoleRequest


class OpenRequests(ListeningTask):
    """Counts the open requests when one has changed, so that no page has to."""

    name = "open requests"
    look_every = 60.0
    failure = "requests_not_counted"

    def __init__(self) -> None:
        super().__init__()
        self._count = 0

    @property
    def count(self) -> int:
        """How many requests were open when last counted, up to `request.COUNTED`."""
        return self._count

    async def run(self) -> None:
        await self.refresh()

    async def refresh(self) -> None:
        """Count the open requests now. Raises the driver's errors."""
        self._count = await RoleRequest.count_open()

    def concerns(self, change: Change) -> bool:
        """Return whether a request was made, decided or deleted."""
        return change.collection == RoleRequest.Settings.name
