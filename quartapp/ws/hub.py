"""Who is connected to this worker. It speaks to its sockets, and never waits for one."""

from __future__ import annotations

import asyncio
import random
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass

from beanie import PydanticObjectId

from quartapp import clock, metrics
from quartapp.authority.session_rule import Ended, Standing
from quartapp.models.notifications.notice import Notice
from quartapp.ws.connection import Connection
from quartapp.ws.protocol import Close

Id = PydanticObjectId

# What the other workers take in without effort.
COMEBACKS_PER_SECOND = 500
# By then the other workers that leave accept no more.
SOONEST_SECONDS = 0.3


class Full(Exception):
    """No place for another socket: on this worker, or of this session, user or address."""


@dataclass(frozen=True)
class Limits:
    """How many sockets one worker takes, and how many handshakes at the same time."""

    sockets: int
    per_session: int
    per_user: int
    per_address: int
    handshakes: int


class Hub:
    """The open sockets, by session and by user."""

    def __init__(self, limits: Limits) -> None:
        self._by_session: defaultdict[Id, set[Connection]] = defaultdict(set)
        self._by_user: defaultdict[Id, set[Connection]] = defaultdict(set)
        self._at_address: Counter[str | None] = Counter()
        self._limits = limits
        self._shaking: set[object] = set()
        # Sockets of sessions that are over. They are told nothing more, and count against the
        # limits of this worker and of their address until they are closed.
        self._ended: set[Connection] = set()
        self._size = 0
        self._arrived: set[Id] = set()
        self.draining = False

    def __len__(self) -> int:
        return self._size

    def begin_handshake(self) -> object:
        """A turn, to be given back by `end_handshake`. Raises Full when too many are under way."""
        if self.draining or len(self._shaking) >= self._limits.handshakes:
            raise Full
        turn = object()
        self._shaking.add(turn)
        return turn

    def end_handshake(self, turn: object) -> None:
        """May be called again."""
        self._shaking.discard(turn)

    def check_room(self, session_id: Id, user_id: Id, address: str | None) -> None:
        """Raises Full. For the handshake, where a refusal is still cheap."""
        if (
            self._size >= self._limits.sockets
            or len(self._by_session.get(session_id, ())) >= self._limits.per_session
            or len(self._by_user.get(user_id, ())) >= self._limits.per_user
            or self._at_address[address] >= self._limits.per_address
        ):
            raise Full

    def join(self, connection: Connection) -> None:
        self._by_session[connection.session_id].add(connection)
        self._by_user[connection.user_id].add(connection)
        self._at_address[connection.address] += 1
        self._size += 1
        self._arrived.add(connection.session_id)
        metrics.SOCKETS.set(self._size)

    def leave(self, connection: Connection) -> None:
        """May be called again."""
        if not self._forget(connection):
            if connection not in self._ended:
                return
            self._ended.discard(connection)
        self._size -= 1
        self._at_address[connection.address] -= 1
        if not self._at_address[connection.address]:
            del self._at_address[connection.address]
        metrics.SOCKETS.set(self._size)

    def end(self, connection: Connection, ended: Ended) -> None:
        """Tell a socket that its session is over. It gives its place back with `leave`."""
        if self._forget(connection):
            self._ended.add(connection)
        connection.end(ended)

    def _forget(self, connection: Connection) -> bool:
        """Remove it from the indices by session and user; False if it is in neither."""
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

    def sessions(self) -> list[Id]:
        """The sessions with an open socket here."""
        return list(self._by_session)

    def arrived(self) -> set[Id]:
        """The sessions that came since this was last asked."""
        arrived, self._arrived = self._arrived, set()
        return arrived

    def expired(self) -> set[Id]:
        """The sessions that are over by now, unless they were used since we heard of them."""
        now = clock.monotonic()
        return {
            session_id
            for session_id, connections in self._by_session.items()
            if any(connection.expires <= now for connection in connections)
        }

    def of_session(self, session_id: Id) -> set[Connection]:
        return self._by_session.get(session_id, set())

    def sessions_of(self, users: Iterable[Id]) -> set[Id]:
        return {c.session_id for user in users for c in self._by_user.get(user, ())}

    def settle(self, standings: Collection[Standing]) -> set[tuple[Id, int]]:
        """Tells every socket concerned how its session stands.

        Returns the users, with their versions, whose rights changed without a new version.
        """
        unnumbered: set[tuple[Id, int]] = set()
        for standing in standings:
            for connection in tuple(self._by_session.get(standing.session_id, ())):
                if isinstance(standing, Ended):
                    self.end(connection, standing)
                elif not connection.inform(standing):
                    unnumbered.add((standing.user_id, standing.version))
        return unnumbered

    def notify(self, user_id: Id, notice: Notice) -> None:
        for connection in tuple(self._by_user.get(user_id, ())):
            connection.notify(notice)

    def catch_up(self) -> None:
        """Every socket looks for notices that it has missed."""
        for connections in tuple(self._by_session.values()):
            for connection in tuple(connections):
                connection.notify(None)

    def announce(self, user_id: Id, session_id: Id, started: dict[str, str | None]) -> None:
        """Tells the user's other sessions of a new one."""
        for connection in tuple(self._by_user.get(user_id, ())):
            if connection.session_id != session_id:
                connection.announce(started)

    async def send_away(self) -> None:
        """Closes every socket, for this worker leaves. Each is told when to come back: not all at
        once. Returns when each was told or has had its second."""
        spread = max(1.0, self._size / COMEBACKS_PER_SECOND)
        await self._close_all(
            Close.RESTART,
            lambda: f"come back in {random.uniform(SOONEST_SECONDS, spread):.1f} s",  # noqa: S311
        )

    async def give_up(self, reason: str) -> None:
        """Closes every socket, for nobody can be trusted. Returns as `send_away` does."""
        await self._close_all(Close.OVERLOADED, lambda: reason)

    async def _close_all(self, code: Close, reason: Callable[[], str]) -> None:
        connections = [c for mine in self._by_session.values() for c in mine]
        for connection in connections:
            self.leave(connection)
            connection.close(code, reason())
        ended = list(self._ended)
        for connection in ended:
            connection.stop_listening()
        await asyncio.gather(*(connection.closed() for connection in [*connections, *ended]))
