"""The hub: the open sockets of this worker. Sending to them never waits for a slow one."""

from __future__ import annotations

import asyncio
import random
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass

from beanie import PydanticObjectId

from quartapp import clock, metrics
from quartapp.authority.session_rule import EndedSession, Principal, PrincipalOrEnded
from quartapp.models.notifications.notice import Notice
from quartapp.ws.connection import Connection
from quartapp.ws.protocol import CloseCode

Id = PydanticObjectId

# How many reconnecting sockets the other workers can accept without delay.
RECONNECTS_PER_SECOND = 500
# By then other workers that are stopping too do not accept connections any more.
MIN_RECONNECT_SECONDS = 0.3


class NoCapacity(Exception):
    """A limit for sockets or handshakes is reached, or the worker is stopping."""


@dataclass(frozen=True)
class Limits:
    """How many sockets a worker accepts in all, and per session, user and address; and how many
    handshakes at the same time."""

    sockets: int
    per_session: int
    per_user: int
    per_address: int
    handshakes: int


class Hub:
    """The open sockets of this worker, by session and by user.

    `len()` is the number of sockets, including those of ended sessions that are not closed yet.
    While `draining` is set, new handshakes are refused.
    """

    def __init__(self, limits: Limits) -> None:
        self._by_session: defaultdict[Id, set[Connection]] = defaultdict(set)
        self._by_user: defaultdict[Id, set[Connection]] = defaultdict(set)
        self._count_by_address: Counter[str | None] = Counter()
        self._limits = limits
        self._handshakes: set[object] = set()
        # Sockets of ended sessions. They receive nothing more, and count against the limits of this
        # worker and of their address until they are closed.
        self._ended: set[Connection] = set()
        self._size = 0
        self._joined_sessions: dict[Id, str | None] = {}
        self.draining = False

    def __len__(self) -> int:
        return self._size

    def begin_handshake(self) -> object:
        """Count a handshake, and return a token for `end_handshake`.

        Raises NoCapacity when too many are under way, and while draining.
        """
        if self.draining or len(self._handshakes) >= self._limits.handshakes:
            raise NoCapacity
        turn = object()
        self._handshakes.add(turn)
        return turn

    def end_handshake(self, turn: object) -> None:
        """Release the token of `begin_handshake`. May be called again."""
        self._handshakes.discard(turn)

    def check_capacity(self, session_id: Id, user_id: Id, address: str | None) -> None:
        """Raise NoCapacity if another socket would exceed a limit.

        Call it before the handshake is accepted, and `join` without awaiting in between.
        """
        if (
            self._size >= self._limits.sockets
            or len(self._by_session.get(session_id, ())) >= self._limits.per_session
            or len(self._by_user.get(user_id, ())) >= self._limits.per_user
            or self._count_by_address[address] >= self._limits.per_address
        ):
            raise NoCapacity

    def join(self, connection: Connection) -> None:
        """Add the connection, and count it in the metrics: it receives what the hub sends from now
        on. Checks no limit."""
        self._by_session[connection.session_id].add(connection)
        self._by_user[connection.user_id].add(connection)
        self._count_by_address[connection.address] += 1
        self._size += 1
        self._joined_sessions[connection.session_id] = connection.page
        metrics.SOCKETS.set(self._size)

    def leave(self, connection: Connection) -> None:
        """Remove the connection, also from the metrics, without closing it. May be called again."""
        if not self._unindex(connection):
            if connection not in self._ended:
                return
            self._ended.discard(connection)
        self._size -= 1
        self._count_by_address[connection.address] -= 1
        if not self._count_by_address[connection.address]:
            del self._count_by_address[connection.address]
        metrics.SOCKETS.set(self._size)

    def end_connection(self, connection: Connection, ended: EndedSession) -> None:
        """Send the end notice to the connection and begin to close it.

        It receives nothing else from the hub, but counts as a socket until `leave`.
        """
        if self._unindex(connection):
            self._ended.add(connection)
        connection.end(ended)

    def _unindex(self, connection: Connection) -> bool:
        """Remove it from the indices by session and user. Return False if it was in neither."""
        if connection not in self._by_session.get(connection.session_id, ()):
            return False
        for index, key in (
            (self._by_session, connection.session_id),
            (self._by_user, connection.user_id),
        ):
            index[key].discard(connection)
            if not index[key]:
                del index[key]
        return True

    def connected_sessions(self) -> list[Id]:
        """Return the ids of the sessions with an open socket on this worker."""
        return list(self._by_session)

    def take_joined_sessions(self) -> dict[Id, str | None]:
        """Return the sessions of the sockets that have joined since the last call, each with the
        page of its last one, and forget them."""
        joined, self._joined_sessions = self._joined_sessions, {}
        return joined

    def keep_joined_sessions(self, sessions: Mapping[Id, str | None]) -> None:
        """Let the next `take_joined_sessions` return these sessions again, unless they have joined
        with another page since."""
        self._joined_sessions = {**sessions, **self._joined_sessions}

    def expired_sessions(self) -> set[Id]:
        """Return the sessions whose expiry, as last read, has passed.

        A session that was used since may not be over: evaluate it.
        """
        now = clock.monotonic()
        return {
            session_id
            for session_id, connections in self._by_session.items()
            if any(connection.expires_at <= now for connection in connections)
        }

    def connections_of(self, session_id: Id) -> set[Connection]:
        """Return the session's open sockets: the hub's own set, which changes with it."""
        return self._by_session.get(session_id, set())

    def sessions_of(self, users: Iterable[Id]) -> set[Id]:
        """Return the sessions of these users that have an open socket on this worker."""
        return {c.session_id for user in users for c in self._by_user.get(user, ())}

    def sessions_with_roles(self, roles: Collection[Id]) -> set[Id]:
        """Return the sessions with an open socket on this worker whose user holds one of the roles,
        as last read."""
        return {
            session_id
            for session_id, connections in self._by_session.items()
            if any(not connection.role_ids.isdisjoint(roles) for connection in connections)
        }

    def count_tabs(
        self, *, users: Iterable[Id], sessions: Iterable[Id], roles: Iterable[Id]
    ) -> int:
        """Return how many sockets of these users, of these sessions, and of users with one of these
        roles, as last read, are open on this worker."""
        chosen = self.sessions_of(users) | set(sessions)
        if held := set(roles):
            chosen |= self.sessions_with_roles(held)
        return sum(len(self._by_session.get(session_id, ())) for session_id in chosen)

    def apply_states(
        self, states: Collection[PrincipalOrEnded]
    ) -> list[tuple[Principal, Principal]]:
        """Send each session's new state to its sockets.

        Sockets of an ended session receive the end notice and are closed; those of a valid one
        receive `permissions.changed` and `notices.read`, as far as the state differs from the one
        sent before (`Connection.update_principal`). Return the state sent before and the new one
        where the permissions differ and no version was raised: these sockets receive nothing until
        that has been done and this is called again.
        """
        unnumbered: list[tuple[Principal, Principal]] = []
        for state in states:
            for connection in tuple(self._by_session.get(state.session_id, ())):
                if isinstance(state, EndedSession):
                    self.end_connection(connection, state)
                elif (before := connection.sent_principal) is None:
                    connection.update_principal(state)
                elif not connection.update_principal(state):
                    unnumbered.append((before, state))
        return unnumbered

    def deliver_notice(self, user_id: Id, notice: Notice) -> None:
        """Send the notification to all sockets of the user."""
        for connection in tuple(self._by_user.get(user_id, ())):
            connection.deliver_notice(notice)

    def request_missed_notices(self) -> None:
        """Let every socket read, in the background, the notifications that it has not sent yet."""
        for connections in tuple(self._by_session.values()):
            for connection in tuple(connections):
                connection.deliver_notice(None)

    def announce_session(self, user_id: Id, session_id: Id, started: dict[str, str | None]) -> None:
        """Send `session.started` to the sockets of the user's other sessions."""
        for connection in tuple(self._by_user.get(user_id, ())):
            if connection.session_id != session_id:
                connection.announce_session(started)

    async def close_for_restart(self) -> None:
        """Close every socket with 1012, because the worker stops.

        The close reason tells each client a random delay before it reconnects, so that not all
        come back at once. Return when all clients have answered the close frame, after 1.25 s at
        most.
        """
        spread = max(1.0, self._size / RECONNECTS_PER_SECOND)
        await self._close_all(
            CloseCode.RESTART,
            lambda: f"come back in {random.uniform(MIN_RECONNECT_SECONDS, spread):.1f} s",  # noqa: S311
        )

    async def close_for_outage(self, reason: str) -> None:
        """Close every socket with 1013 and the reason, so that pages try again later. Return
        when all clients have answered the close frame, after 1.25 s at most."""
        await self._close_all(CloseCode.OVERLOADED, lambda: reason)

    async def _close_all(self, code: CloseCode, reason: Callable[[], str]) -> None:
        """Remove all sockets from the hub and close each with the code and a reason, which is
        called once for each. Sockets of ended sessions get their close frame now. Return when
        all are closed, after 1.25 s at most."""
        connections = [c for mine in self._by_session.values() for c in mine]
        for connection in connections:
            self.leave(connection)
            connection.close(code, reason())
        ended = list(self._ended)
        for connection in ended:
            connection.stop_waiting_for_ack()
        await asyncio.gather(*(connection.wait_closed() for connection in [*connections, *ended]))
