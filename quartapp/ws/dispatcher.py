"""The dispatcher: turns changes in the database into messages on this worker's sockets.

A change only says *which* session, user or role has changed. The dispatcher reads the present state
from the database and sends that. So a change that arrives late, twice or out of order has no wrong
effect, and a write by another program, such as the mongo shell, has the same effect as our own.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, TypeVar

from beanie import PydanticObjectId

from quartapp import clock, metrics
from quartapp.authority import session_rule, session_states, versions
from quartapp.authority.change_stream import Change, ChangeStream
from quartapp.authority.session_rule import EndedSession, PrincipalOrEnded
from quartapp.background import BackgroundTask
from quartapp.db.mongo import DatabaseError
from quartapp.log import log
from quartapp.models import Notice, Role, RoleDeletion, Session, User
from quartapp.ws.hub import Hub
from quartapp.ws.protocol import format_time
from quartapp.ws.receipts import Receipts

Id = PydanticObjectId
T = TypeVar("T")

DATABASE_AWAY_SECONDS = 30.0
# The size of the database's first batch of results.
BATCH_SIZE = 100
MAX_CACHED_NAMES = 1000
MAX_DELETED_ROLES = 100
# The user's fields whose change ends no session: those that `User.raise_version` writes, and those
# that users change about themselves.
HARMLESS_FIELDS = {
    *("authz_version", "authz_by", "authz_at"),
    *("display_name", "about", "preferences"),
}


@dataclass
class AffectedSessions:
    """What has changed since the last evaluation: ids of sessions, users and roles.

    `everything` means all sessions with a socket here.
    """

    everything: bool = False
    sessions: set[Id] = field(default_factory=set)
    users: set[Id] = field(default_factory=set)
    roles: set[Id] = field(default_factory=set)
    deleted_roles: set[Id] = field(default_factory=set)

    def connected_here(self, hub: Hub) -> set[Id]:
        """Return the sessions with a socket here that have to be evaluated: all of them if
        `everything` is set, else the changed sessions, those of changed users, and those whose
        users hold a changed or deleted role, as last read."""
        here = set(hub.connected_sessions())
        if self.everything:
            return here
        with_roles = hub.sessions_with_roles(self.roles | self.deleted_roles)
        return here & self.sessions | hub.sessions_of(self.users) | with_roles

    def database_filter(self) -> dict[str, Any] | None:
        """Return the filter for further sessions that have to be evaluated: those of changed users
        that are not marked as ended, with or without a socket. None if no user has changed."""
        # Sessions of these users are evaluated even without a socket, and marked if they are over:
        # a role that is granted again must not make them valid. Those that list a deleted role are
        # marked by `jobs.role_deletions`.
        return {"user.$id": {"$in": list(self.users)}, "ended_at": None} if self.users else None

    def merge_failed(self, other: AffectedSessions) -> None:
        """Add the changes that could not be evaluated, and set `everything`."""
        self.everything = True
        self.sessions |= other.sessions
        self.users |= other.users
        self.roles |= other.roles
        self.deleted_roles |= other.deleted_roles


class Dispatcher(BackgroundTask):
    """Listens to the change stream, and sends what follows from a change to the sockets in the hub.

    It runs three tasks: one sends end notices, one evaluates sessions after changes, and one checks
    all sessions every `sweep_seconds`.
    """

    def __init__(
        self, hub: Hub, receipts: Receipts, *, sweep_seconds: float, worker: str = "0"
    ) -> None:
        self._hub = hub
        self._receipts = receipts
        self._sweep_seconds = sweep_seconds
        self._worker = worker
        self._end_updates: dict[Id, Mapping[str, Any]] = {}
        self._has_end_updates = asyncio.Event()
        self._affected = AffectedSessions()
        self._has_affected = asyncio.Event()
        self._usernames: dict[Id, str] = {}
        # Roles whose own deletion, which precedes that of their document, has ended sessions.
        self._deleted_roles: deque[Id] = deque(maxlen=MAX_DELETED_ROLES)
        self._last_answer = 0.0

    def start(self, stream: ChangeStream) -> None:
        """Start the three tasks. The sweep runs more often while `stream` is not live."""
        self._start_task(self._send_end_notices(), "endings")
        self._start_task(self._evaluate_affected(), "judge")
        self._start_task(self._sweep(stream), "sweep")

    # ---- change stream listener

    def on_change(self, change: Change) -> None:
        """Queue what follows from the change, and return at once.

        A new notification or session is sent to the user's sockets directly. The update that ends a
        session is queued for its end notices, and so is the deletion of a role for those of all
        sessions whose users held it. For any other change of a session, user or role, the sessions
        concerned are queued for evaluation; for a change of only HARMLESS_FIELDS of a user, those
        with a socket here. A malformed document raises an error, which the change stream handles.
        """
        collection = change.collection
        if collection == Notice.Settings.name:
            notice = Notice.model_validate(change.document)
            self._hub.deliver_notice(notice.user.ref.id, notice)
        elif collection == Session.Settings.name and change.operation == "insert":
            self._announce_session(change.document)
        elif collection == Session.Settings.name and isinstance(
            change.updated_fields.get("ended_at"), datetime
        ):
            # A session that has ended stays ended, so the update is enough to send the notice.
            self._end_updates[change.id] = change.updated_fields
            self._has_end_updates.set()
        elif collection == Session.Settings.name:
            self._mark_affected(self._affected.sessions, change.id)
        elif collection == User.Settings.name:
            self._usernames.pop(change.id, None)
            if change.changed_fields and change.changed_fields <= HARMLESS_FIELDS:
                # Only sessions with a socket are evaluated. An older version writes the version
                # fields for each user of a role that is edited.
                self._mark_affected(self._affected.sessions, *self._hub.sessions_of([change.id]))
            else:
                self._mark_affected(self._affected.users, change.id)
        elif collection == RoleDeletion.Settings.name and change.document.get("event"):
            self._end_sessions_of_role(RoleDeletion.model_validate(change.document))
        elif collection == Role.Settings.name and change.operation == "delete":
            if change.id not in self._deleted_roles:
                self._mark_affected(self._affected.deleted_roles, change.id)
        elif collection == Role.Settings.name:
            self._mark_affected(self._affected.roles, change.id)

    def on_missed_changes(self) -> None:
        """Queue all sessions with a socket for evaluation, and look for missed notifications."""
        self._usernames.clear()
        self._hub.request_missed_notices()
        self._affected.everything = True
        self._has_affected.set()

    def on_disconnect(self) -> None:
        """Do nothing: the sweep notices that the stream is not live."""

    def _mark_affected(self, ids: set[Id], *these: Id) -> None:
        """Add ids to the set, one of `_affected`, and wake the task that evaluates."""
        if these:
            ids.update(these)
            self._has_affected.set()

    def _end_sessions_of_role(self, deletion: RoleDeletion) -> None:
        """Queue the end notices of the sessions whose users held the role, as last read.

        If a user got the role so recently that the session was not evaluated since, it will be, and
        is then over by the rule.
        """
        self._deleted_roles.append(deletion.id)
        ended = deletion.end_fields
        for session_id in self._hub.sessions_with_roles({deletion.id}):
            # A session that another change has ended before keeps that reason.
            self._end_updates.setdefault(session_id, ended)
        self._has_end_updates.set()

    def _announce_session(self, session: Mapping[str, Any]) -> None:
        """Send `session.started` to the sockets of the user's other sessions."""
        self._hub.announce_session(
            session["user"].id,
            session["_id"],
            {
                "id": str(session["_id"]),
                "device": session.get("device"),
                "ip": session.get("ip"),
                "at": format_time(session["created_at"]),
            },
        )

    # ---- evaluating

    async def _send_end_notices(self) -> None:
        """Send end notices for the queued updates, forever.

        This is a task of its own, so that end notices do not wait for evaluations. An error is
        logged as `settle_failed`, and the updates are tried again a second later.
        """
        while True:
            await self._has_end_updates.wait()
            self._has_end_updates.clear()
            ended, self._end_updates = self._end_updates, {}
            try:
                for states in _split(await self._ended_with_sockets(ended)):
                    await self._apply(states)
                    # Thousands may end at once; other tasks get a turn.
                    await asyncio.sleep(0)
            except Exception as error:
                await self._log_and_pause(error)
                self._end_updates = ended | self._end_updates
                self._has_end_updates.set()

    async def _ended_with_sockets(
        self, ended: Mapping[Id, Mapping[str, Any]]
    ) -> list[EndedSession]:
        """Return the ended sessions that have a socket here, from the updates that ended them.
        Empties the cache of usernames first if it has more than MAX_CACHED_NAMES."""
        users = self._users_of(ended)
        here = {each: fields for each, fields in ended.items() if each in users}
        if len(self._usernames) > MAX_CACHED_NAMES:
            self._usernames.clear()
        return await session_states.ended_sessions_from_updates(
            here, users=users, names=self._usernames
        )

    def _users_of(self, sessions: Iterable[Id]) -> dict[Id, Id]:
        """Return the users of the sessions that have a socket here, by session id."""
        return {
            connection.session_id: connection.user_id
            for session_id in sessions
            for connection in self._hub.connections_of(session_id)
        }

    async def _evaluate_affected(self) -> None:
        """Evaluate the sessions that are affected by changes, forever.

        Changes that arrive during an evaluation are evaluated together after it. An error is logged
        as `settle_failed`; a second later, all sessions with a socket and those that failed are
        evaluated.
        """
        while True:
            await self._has_affected.wait()
            # End notices are sent before the database is asked.
            await asyncio.sleep(0)
            self._has_affected.clear()
            concerned, self._affected = self._affected, AffectedSessions()
            try:
                await self._evaluate(concerned)
            except Exception as error:
                await self._log_and_pause(error)
                self._affected.merge_failed(concerned)
                self._has_affected.set()

    async def _log_and_pause(self, error: Exception) -> None:
        """Log `settle_failed`, and wait a second."""
        log.warning("settle_failed", error=type(error).__name__, detail=str(error)[:200])
        await asyncio.sleep(1)

    async def _evaluate(self, affected: AffectedSessions) -> None:
        """Read the states of the affected sessions from the database, in batches, and send them to
        the sockets. Sessions that are over are marked as ended (`states_matching`).

        A session with a socket whose document is gone counts as ended by an administrator. Counts
        the evaluation in the metrics. Raises the driver's errors.
        """
        before = set(self._hub.connected_sessions())
        metrics.EVALUATIONS.inc()
        gone = before if affected.everything else before & affected.sessions
        async for ids in self._batches(affected):
            found = await session_states.states_matching({"_id": {"$in": ids}})
            self._last_answer = asyncio.get_running_loop().time()
            gone -= {state.session_id for state in found}
            await self._apply(found)
        users = self._users_of(gone)
        await self._apply([session_rule.state_of_deleted(*each) for each in users.items()])

    async def _batches(self, affected: AffectedSessions) -> AsyncIterator[list[Id]]:
        """Yield the ids of the affected sessions, each once, in lists of at most BATCH_SIZE.

        Those with a socket here come first; the others are read from the database.
        """
        ids = affected.connected_here(self._hub)
        for cut in _split(ids):
            yield cut
        if search := affected.database_filter():
            async for found in Session.batches(search, size=BATCH_SIZE):
                if others := [each for each in found if each not in ids]:
                    ids.update(others)
                    yield others

    async def _apply(self, states: Collection[PrincipalOrEnded]) -> None:
        """Send the states to the sockets (`Hub.apply_states`), and count the sockets of ended
        sessions for receipts.

        If a user's permissions changed without a new version, raises the version of the role or the
        user in the database; the change stream then leads to another evaluation. Raises the
        driver's errors for that.
        """
        for state in states:
            if isinstance(state, EndedSession):
                self._receipts.expect_acks(state.event, self._hub.connections_of(state.session_id))
        await versions.raise_versions(self._hub.apply_states(states))

    # ---- sweeping

    async def _sweep(self, stream: ChangeStream) -> None:
        """Evaluate sessions with a socket periodically, forever.

        Every second it queues sessions whose expiry has passed, as expiry writes nothing, and marks
        the sessions of new sockets as online. Every `sweep_seconds`, or every second while the
        change stream is not live, it evaluates all sessions with a socket and marks them as online.
        An error is logged as `sweep_failed`. When the database has answered nothing for
        DATABASE_AWAY_SECONDS, it closes all sockets with 1013. A slow database that answers some
        queries is not away.
        """
        loop = asyncio.get_running_loop()
        self._last_answer = swept = loop.time()
        while True:
            await asyncio.sleep(min(1.0, self._sweep_seconds))
            if stream.live and loop.time() - swept < self._sweep_seconds:
                self._last_answer = loop.time()
                if expired := self._hub.expired_sessions():
                    self._affected.sessions |= expired
                    self._has_affected.set()
                await self._mark_joined()
                continue
            try:
                async with asyncio.timeout(DATABASE_AWAY_SECONDS):
                    await self._evaluate(AffectedSessions(everything=True))
                    await self._mark_online(self._hub.connected_sessions())
                self._last_answer = swept = loop.time()
            except Exception as error:
                log.warning("sweep_failed", error=type(error).__name__, detail=str(error)[:200])
                if loop.time() - self._last_answer >= DATABASE_AWAY_SECONDS:
                    await self._hub.close_for_outage("database away")

    async def _mark_joined(self) -> None:
        """Mark the sessions of new sockets as online here, until two sweeps from now, and store
        which page each has opened. After an error of the database, the next call tries again."""
        joined = self._hub.take_joined_sessions()
        until = clock.now() + 2 * timedelta(seconds=self._sweep_seconds)
        try:
            for cut in _split(joined.items()):
                await Session.mark_opened(dict(cut), worker=self._worker, until=until)
        except DatabaseError:
            self._hub.keep_joined_sessions(joined)

    async def _mark_online(self, sessions: Collection[Id]) -> None:
        """Mark the sessions as online, in the database, until two sweeps from now."""
        until = clock.now() + 2 * timedelta(seconds=self._sweep_seconds)
        for cut in _split(sessions):
            await Session.mark_online(cut, until=until)


def _split(items: Collection[T]) -> Iterator[list[T]]:
    """Return the items in lists of at most BATCH_SIZE."""
    rows = list(items)
    return (rows[start : start + BATCH_SIZE] for start in range(0, len(rows), BATCH_SIZE))
