"""The cache of session states, from which a worker answers requests without a query.

An entry is dropped when the change stream reports a change of its session or its user, a new
notification of the user, or a change of any role. The entry of a valid session is used only while
the worker's lease is valid.
"""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass
from typing import Any

from quartapp import clock, metrics
from quartapp.authority import session_states
from quartapp.authority.change_stream import Change
from quartapp.authority.lease import Lease
from quartapp.authority.session_rule import EndedSession, PrincipalOrEnded
from quartapp.models import Notice, Role, Session, User
from quartapp.models.base.tokens import digest_of


@dataclass(frozen=True, slots=True)
class CacheEntry:
    """A session's state. `valid_until` is its expiry by `clock.monotonic`."""

    state: PrincipalOrEnded
    valid_until: float


class PendingLoad:
    """A query that is under way. `stale` is set if any relevant change arrives before its answer,
    which is then not cached: it may have been read before the change."""

    stale = False


class PrincipalCache:
    """Session states by token, at most `max_entries` of them; with 0 it caches nothing."""

    def __init__(self, lease: Lease, *, max_entries: int) -> None:
        self._lease = lease
        self._max_entries = max_entries
        self._entries: dict[str, CacheEntry] = {}
        self._digest_by_session: dict[Any, str] = {}
        self._digests_by_user: defaultdict[Any, set[str]] = defaultdict(set)
        self._pending_loads: set[PendingLoad] = set()

    def __len__(self) -> int:
        return len(self._entries)

    async def state_by_token(self, token: str) -> PrincipalOrEnded | None:
        """Return the state of the session with this token, or None if there is no such session.

        Answers from the cache if it can, and counts that in CACHE_HITS; an ended session also
        without a valid lease. Otherwise it evaluates the session in the database, which also marks
        a session that is over as ended and adds new roles of the user to it
        (`session_states.states_matching`), and caches the state; that of a valid session only if
        the lease is valid and nothing relevant changed meanwhile. Raises the driver's errors.
        """
        digest = digest_of(token)
        entry = self._entries.get(digest)
        # A session that has ended stays ended, so that entry cannot be out of date.
        if entry is not None and (
            isinstance(entry.state, EndedSession)
            or (self._lease.valid and clock.monotonic() < entry.valid_until)
        ):
            metrics.CACHE_HITS.inc()
            return entry.state
        return await self._load(digest)

    async def _load(self, digest: str) -> PrincipalOrEnded | None:
        """Evaluate the session in the database, as `state_by_token` says, and return its state;
        None if there is no such session.

        Caches an ended session until it is dropped, and a valid one until it expires, counted from
        before the query; the latter only if the lease is valid after the query and no relevant
        change arrived during it. Returns the state also if it is not cached. Raises the driver's
        errors.
        """
        load = PendingLoad()
        self._pending_loads.add(load)
        started = clock.monotonic()
        try:
            state = await session_states.state_by_digest(digest)
        finally:
            self._pending_loads.discard(load)
        if isinstance(state, EndedSession):
            self._store(digest, state, math.inf)
        elif state is not None and self._lease.valid and not load.stale:
            self._store(digest, state, started + state.seconds_left)
        return state

    def _store(self, digest: str, state: PrincipalOrEnded, valid_until: float) -> None:
        """Put the state into the cache, in place of an entry of this token; the oldest entries make
        room for it. With `max_entries` 0, only removes that entry."""
        self._drop(digest)
        if not self._max_entries:
            return
        while len(self._entries) >= self._max_entries:
            self._drop(next(iter(self._entries)))
        self._entries[digest] = CacheEntry(state, valid_until)
        self._digest_by_session[state.session_id] = digest
        self._digests_by_user[state.user_id].add(digest)

    def _drop(self, digest: str | None) -> None:
        """Remove the entry of this token digest, if there is one, from the cache and its
        indices."""
        entry = self._entries.pop(digest, None) if digest else None
        if entry is None or digest is None:
            return
        self._digest_by_session.pop(entry.state.session_id, None)
        mine = self._digests_by_user[entry.state.user_id]
        mine.discard(digest)
        if not mine:
            del self._digests_by_user[entry.state.user_id]

    def drop_user(self, user_id: Any) -> None:
        """Drop the entries of the user, and mark pending loads as stale, so that later requests to
        this worker see a change that was committed before. The change stream does the same a moment
        later, on all workers."""
        self._drop_user(user_id)
        self._mark_loads_stale()

    # ---- change stream listener

    def on_change(self, change: Change) -> None:
        """Drop the entries that the change concerns, and mark pending loads as stale.

        For a change of a session: its entry; of a user, or a new notification of theirs: all
        entries of the user; of a role: all entries. A new session and changes of other collections
        do nothing. Of notifications only inserts arrive; one without a document, such as a delete,
        raises KeyError.
        """
        collection = change.collection
        if collection == Session.Settings.name:
            if change.operation == "insert":
                return
            self._drop(self._digest_by_session.get(change.id))
        elif collection == User.Settings.name:
            self._drop_user(change.id)
        elif collection == Notice.Settings.name:
            # The state contains the number of unread notifications.
            self._drop_user(change.document["user"].id)
        elif collection == Role.Settings.name:
            self._drop_all()
        else:
            return
        self._mark_loads_stale()

    def on_missed_changes(self) -> None:
        """Drop all entries, and mark pending loads as stale."""
        self._drop_all()
        self._mark_loads_stale()

    def on_disconnect(self) -> None:
        """Do nothing: the lease ends the use of the entries, and `on_missed_changes` follows."""

    def _drop_user(self, user_id: Any) -> None:
        for digest in tuple(self._digests_by_user.get(user_id, ())):
            self._drop(digest)

    def _drop_all(self) -> None:
        self._entries.clear()
        self._digest_by_session.clear()
        self._digests_by_user.clear()

    def _mark_loads_stale(self) -> None:
        """Mark all queries that are under way as stale: whose session one will return is not known
        before its answer."""
        for load in self._pending_loads:
            load.stale = True
