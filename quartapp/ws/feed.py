"""From the change stream to the hub: what is written is told.

The stream says *that* something changed. What it has become is read from the database, so an
event that comes late, twice or in another order says nothing false, and a write by any hand, the
mongo shell's included, has the same effect as one of ours.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from beanie import PydanticObjectId

from quartapp import clock, metrics
from quartapp.authority.stream import Change, Stream
from quartapp.database import StreamError
from quartapp.log import log
from quartapp.models import Notice, Role, Session, User, principal
from quartapp.models.principal import Ended, Standing
from quartapp.ws.hub import Hub
from quartapp.ws.protocol import timestamp
from quartapp.ws.receipts import Receipts

Id = PydanticObjectId

DISTRUST_SECONDS = 30.0
AT_ONCE = 250
NAMES = 1000


@dataclass
class Concerned:
    """What changed since it was last looked at."""

    everything: bool = False
    sessions: set[Id] = field(default_factory=set)
    ended: dict[Id, Mapping[str, Any]] = field(default_factory=dict)
    users: set[Id] = field(default_factory=set)
    roles: set[Id] = field(default_factory=set)
    deleted_roles: set[Id] = field(default_factory=set)

    def matches(self, hub: Hub) -> list[dict[str, Any]]:
        """The sessions to judge anew, so many at a time that the database answers soon."""
        connected = [each for each in hub.sessions() if each not in self.ended]
        here = connected if self.everything else [s for s in connected if s in self.sessions]
        mine = list(hub.sessions_of(self.users) - self.ended.keys())
        users, roles, gone = list(self.users), list(self.roles), list(self.deleted_roles)
        first, *others = _cut(here + mine)
        clauses = [first]
        # Of a user, and of a role that is gone, also the sessions that no socket speaks for: what
        # was taken away and given back is gone all the same.
        if users:
            clauses.append({"user.$id": {"$in": users}, "ended_at": None})
        if gone:
            clauses.append({"roles.$id": {"$in": gone}, "ended_at": None})
        if roles:
            clauses.append({"_id": {"$in": connected}, "roles.$id": {"$in": roles}})
        return [{"$or": clauses}, *others]

    @property
    def asks(self) -> bool:
        """Whether the database must be asked."""
        return bool(
            self.everything or self.sessions or self.users or self.roles or self.deleted_roles
        )

    def put_back(self, other: Concerned) -> None:
        """What could not be looked at."""
        self.everything = True
        self.sessions |= other.sessions
        self.ended |= other.ended
        self.users |= other.users
        self.roles |= other.roles
        self.deleted_roles |= other.deleted_roles


def _cut(ids: list[Id]) -> list[dict[str, Any]]:
    """Filters for these, at least one."""
    starts = range(0, max(1, len(ids)), AT_ONCE)
    return [{"_id": {"$in": ids[start : start + AT_ONCE]}} for start in starts]


class Feed:
    """Hears what changed, and tells the sockets that it concerns."""

    def __init__(self, hub: Hub, receipts: Receipts, *, sweep_seconds: float) -> None:
        self._hub = hub
        self._receipts = receipts
        self._sweep_seconds = sweep_seconds
        self._concerned = Concerned()
        self._names: dict[Id, str] = {}
        self._news = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    def start(self, stream: Stream) -> None:
        self._tasks = [
            asyncio.create_task(self._settle_news(), name="settle"),
            asyncio.create_task(self._sweep(stream), name="sweep"),
        ]

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    # ---- listening

    def heard(self, change: Change) -> None:
        collection = change.collection
        if collection == Notice.Settings.name:
            notice = Notice.model_validate(change.document)
            self._hub.notify(notice.user.ref.id, notice)
        elif collection == Session.Settings.name and change.operation == "insert":
            self._announce(change.document)
        elif collection == Session.Settings.name and isinstance(
            change.fields.get("ended_at"), datetime
        ):
            # There is no way back, so this says it all.
            self._concerned.ended[change.id] = change.fields
            self._news.set()
        elif collection == Session.Settings.name:
            self._concern(self._concerned.sessions, change.id)
        elif collection == User.Settings.name:
            self._names.pop(change.id, None)
            self._concern(self._concerned.users, change.id)
        elif collection == Role.Settings.name and change.operation == "delete":
            self._concern(self._concerned.deleted_roles, change.id)
        elif collection == Role.Settings.name:
            self._concern(self._concerned.roles, change.id)

    def interrupted(self) -> None:
        self._names.clear()
        self._hub.catch_up()
        self._concerned.everything = True
        self._news.set()

    def lost(self) -> None:
        """Nothing to do before it is open again."""

    def _concern(self, ids: set[Id], document_id: Id) -> None:
        ids.add(document_id)
        self._news.set()

    def _announce(self, session: Mapping[str, Any]) -> None:
        self._hub.announce(
            session["user"].id,
            session["_id"],
            {
                "id": str(session["_id"]),
                "device": session.get("device"),
                "ip": session.get("ip"),
                "at": timestamp(session["created_at"]),
            },
        )

    # ---- settling

    async def _settle_news(self) -> None:
        """Judges what changed, all that came meanwhile together."""
        while True:
            await self._news.wait()
            self._news.clear()
            concerned, self._concerned = self._concerned, Concerned()
            try:
                await self._settle(concerned)
            except Exception as error:
                log.warning("settle_failed", error=type(error).__name__, detail=str(error)[:200])
                await asyncio.sleep(1)
                self._concerned.put_back(concerned)
                self._news.set()

    async def _settle(self, concerned: Concerned) -> None:
        ended = concerned.ended.items()
        here = {each: fields for each, fields in ended if self._hub.of_session(each)}
        if len(self._names) > NAMES:
            self._names.clear()
        await self._tell(await principal.ended(here, self._names))
        if concerned.asks:
            # Those who were told have a turn before the database is asked.
            await asyncio.sleep(0)
            await self._judge(concerned)

    async def _judge(self, concerned: Concerned) -> None:
        before = set(self._hub.sessions())
        metrics.SETTLED.inc()
        # Whoever deleted the document of a session has ended it.
        gone = before & concerned.sessions if not concerned.everything else before
        for match in concerned.matches(self._hub):
            found = await principal.standings(match)
            gone -= {standing.session_id for standing in found}
            await self._tell(found)
        await self._tell([principal.deleted(session_id, session_id) for session_id in gone])

    async def _tell(self, standings: Collection[Standing]) -> None:
        for standing in standings:
            if isinstance(standing, Ended):
                self._receipts.expect(standing.event, self._hub.of_session(standing.session_id))
        for user_id, version in self._hub.settle(standings):
            await User.number_change(user_id, version)

    # ---- sweeping

    async def _sweep(self, stream: Stream) -> None:
        """Looks at every open socket's session now and then, whatever the stream says.

        Each second it has those judged whose time is up, for nothing is written when a session
        expires, nor is it told when one is used; and it says who is on. Without a stream it looks
        at all each second; without a database for half a minute, nobody can be trusted.
        """
        loop = asyncio.get_running_loop()
        answered = swept = loop.time()
        while True:
            await asyncio.sleep(min(1.0, self._sweep_seconds))
            if stream.live and loop.time() - swept < self._sweep_seconds:
                answered = loop.time()
                if expired := self._hub.expired():
                    self._concerned.sessions |= expired
                    self._news.set()
                with suppress(StreamError):
                    await self._say_who_is_on(self._hub.arrived())
                continue
            try:
                async with asyncio.timeout(DISTRUST_SECONDS):
                    await self._settle(Concerned(everything=True))
                    await self._say_who_is_on(self._hub.sessions())
                answered = swept = loop.time()
            except Exception as error:
                log.warning("sweep_failed", error=type(error).__name__, detail=str(error)[:200])
                if loop.time() - answered >= DISTRUST_SECONDS:
                    await self._hub.give_up("database away")

    async def _say_who_is_on(self, sessions: Collection[Id]) -> None:
        until = clock.now() + 2 * timedelta(seconds=self._sweep_seconds)
        await Session.say_online(sessions, until=until)
