"""The principals that a worker remembers, kept true by its change stream."""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass
from typing import Any

from quartapp import clock, metrics
from quartapp.authority import session_rule
from quartapp.authority.change_stream import Change
from quartapp.authority.lease import Lease
from quartapp.authority.session_rule import Ended, Standing
from quartapp.models import Notice, Role, Session, User
from quartapp.models.base.tokens import digest_of


@dataclass(frozen=True, slots=True)
class Entry:
    standing: Standing
    until: float  # of our own clock: when the session would expire if nothing were to happen


class Fill:
    """An answer of the database that is under way. Spoiled when something changed meanwhile."""

    spoiled = False


class Principals:
    """From a token to whom it speaks for: remembered while the lease is valid, else asked anew."""

    def __init__(self, lease: Lease, *, at_most: int) -> None:
        self._lease = lease
        self._at_most = at_most
        self._entries: dict[str, Entry] = {}
        self._of_session: dict[Any, str] = {}
        self._of_user: defaultdict[Any, set[str]] = defaultdict(set)
        self._fills: set[Fill] = set()

    def __len__(self) -> int:
        return len(self._entries)

    async def by_token(self, token: str) -> Standing | None:
        """Asks the database only for what is not remembered. Raises what the driver raises."""
        digest = digest_of(token)
        entry = self._entries.get(digest)
        # There is no way back for what has ended, so nothing needs to be heard to refuse it.
        if entry is not None and (
            isinstance(entry.standing, Ended)
            or (self._lease.valid and clock.monotonic() < entry.until)
        ):
            metrics.REMEMBERED.inc()
            return entry.standing
        return await self._ask(digest)

    async def _ask(self, digest: str) -> Standing | None:
        fill = Fill()
        self._fills.add(fill)
        began = clock.monotonic()
        try:
            standing = await session_rule.by_digest(digest)
        finally:
            self._fills.discard(fill)
        if isinstance(standing, Ended):
            self._remember(digest, standing, math.inf)
        elif standing is not None and self._lease.valid and not fill.spoiled:
            self._remember(digest, standing, began + standing.seconds_left)
        return standing

    def _remember(self, digest: str, standing: Standing, until: float) -> None:
        self._forget(digest)
        if not self._at_most:
            return
        while len(self._entries) >= self._at_most:
            self._forget(next(iter(self._entries)))
        self._entries[digest] = Entry(standing, until)
        self._of_session[standing.session_id] = digest
        self._of_user[standing.user_id].add(digest)

    def _forget(self, digest: str | None) -> None:
        entry = self._entries.pop(digest, None) if digest else None
        if entry is None or digest is None:
            return
        self._of_session.pop(entry.standing.session_id, None)
        mine = self._of_user[entry.standing.user_id]
        mine.discard(digest)
        if not mine:
            del self._of_user[entry.standing.user_id]

    # ---- listening

    def heard(self, change: Change) -> None:
        collection = change.collection
        if collection == Session.Settings.name:
            if change.operation == "insert":
                return
            self._forget(self._of_session.get(change.id))
        elif collection == User.Settings.name:
            self._forget_user(change.id)
        elif collection == Notice.Settings.name:
            # Nothing about authority, but pages say how many are unread.
            self._forget_user(change.document["user"].id)
        elif collection == Role.Settings.name:
            self._forget_everything()
        else:
            return
        self._spoil()

    def interrupted(self) -> None:
        self._forget_everything()
        self._spoil()

    def lost(self) -> None:
        """Nothing to do before it is open again."""

    def _forget_user(self, user_id: Any) -> None:
        for digest in tuple(self._of_user.get(user_id, ())):
            self._forget(digest)

    def _forget_everything(self) -> None:
        self._entries.clear()
        self._of_session.clear()
        self._of_user.clear()

    def _spoil(self) -> None:
        # All of them: whom an answer will be about is not known before it is there.
        for fill in self._fills:
            fill.spoiled = True
