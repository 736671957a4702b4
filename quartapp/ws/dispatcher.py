"""From the change stream to the hub: what is written is told.

The stream says *that* something changed. What it has become is read from the database, so an
event that comes late, twice or in another order says nothing false, and a write by any hand, the
mongo shell's included, has the same effect as one of ours.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Collection, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from beanie import PydanticObjectId

from quartapp import clock, metrics
from quartapp.authority import session_rule
from quartapp.authority.change_stream import Change, Stream
from quartapp.authority.session_rule import Ended, Standing
from quartapp.db.mongo import StreamError
from quartapp.log import log
from quartapp.models import Notice, Role, Session, User
from quartapp.ws.hub import Hub
from quartapp.ws.protocol import timestamp
from quartapp.ws.receipts import Receipts

Id = PydanticObjectId

DISTRUST_SECONDS = 30.0
# The database answers so many in its first batch.
AT_ONCE = 100
NAMES = 1000
# What is raised when a role is edited in place.
NUMBERED = {"authz_version", "authz_by"}


@dataclass
class Concerned:
    """What changed since it was last looked at."""

    everything: bool = False
    sessions: set[Id] = field(default_factory=set)
    users: set[Id] = field(default_factory=set)
    roles: set[Id] = field(default_factory=set)
    deleted_roles: set[Id] = field(default_factory=set)

    def connected(self, hub: Hub) -> set[Id]:
        """The sessions with a socket here that are to be judged anew."""
        here = set(hub.sessions())
        return here if self.everything else here & self.sessions | hub.sessions_of(self.users)

    def searches(self, hub: Hub) -> list[dict[str, Any]]:
        """Filters for the others that are to be judged, of which only the database knows."""
        searches: list[dict[str, Any]] = []
        # Of a user, and of a role that is gone, also the sessions that no socket speaks for: what
        # was taken away and given back is gone all the same.
        if users := list(self.users):
            searches.append({"user.$id": {"$in": users}, "ended_at": None})
        if gone := list(self.deleted_roles):
            searches.append({"roles.$id": {"$in": gone}, "ended_at": None})
        if roles := list(self.roles):
            searches.append({"_id": {"$in": hub.sessions()}, "roles.$id": {"$in": roles}})
        return searches

    def put_back(self, other: Concerned) -> None:
        """What could not be looked at."""
        self.everything = True
        self.sessions |= other.sessions
        self.users |= other.users
        self.roles |= other.roles
        self.deleted_roles |= other.deleted_roles


class Feed:
    """Hears what changed, and tells the sockets that it concerns."""

    def __init__(self, hub: Hub, receipts: Receipts, *, sweep_seconds: float) -> None:
        self._hub = hub
        self._receipts = receipts
        self._sweep_seconds = sweep_seconds
        self._ended: dict[Id, Mapping[str, Any]] = {}
        self._endings = asyncio.Event()
        self._concerned = Concerned()
        self._news = asyncio.Event()
        self._names: dict[Id, str] = {}
        self._answered = 0.0
        self._tasks: list[asyncio.Task[None]] = []

    def start(self, stream: Stream) -> None:
        self._tasks = [
            asyncio.create_task(self._tell_endings(), name="endings"),
            asyncio.create_task(self._judge_news(), name="judge"),
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
            self._ended[change.id] = change.fields
            self._endings.set()
        elif collection == Session.Settings.name:
            self._concern(self._concerned.sessions, change.id)
        elif collection == User.Settings.name:
            self._names.pop(change.id, None)
            if change.touched and change.touched <= NUMBERED:
                # A role of theirs was edited. What sessions are built on is as it was, so those
                # that no socket speaks for need not be judged.
                self._concern(self._concerned.sessions, *self._hub.sessions_of([change.id]))
            else:
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

    def _concern(self, ids: set[Id], *these: Id) -> None:
        if these:
            ids.update(these)
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

    async def _tell_endings(self) -> None:
        """Tells of what is over, which waits for no judgement of anybody else."""
        while True:
            await self._endings.wait()
            self._endings.clear()
            ended, self._ended = self._ended, {}
            try:
                await self._tell(await self._understood(ended))
            except Exception as error:
                await self._try_again(error)
                self._ended = ended | self._ended
                self._endings.set()

    async def _understood(self, ended: Mapping[Id, Mapping[str, Any]]) -> list[Standing]:
        here = {each: fields for each, fields in ended.items() if self._hub.of_session(each)}
        if len(self._names) > NAMES:
            self._names.clear()
        return await session_rule.ended(here, self._names)

    async def _judge_news(self) -> None:
        """Judges what changed, all that came meanwhile together."""
        while True:
            await self._news.wait()
            # Those who are told that it is over have their turn before the database is asked.
            await asyncio.sleep(0)
            self._news.clear()
            concerned, self._concerned = self._concerned, Concerned()
            try:
                await self._judge(concerned)
            except Exception as error:
                await self._try_again(error)
                self._concerned.put_back(concerned)
                self._news.set()

    async def _try_again(self, error: Exception) -> None:
        log.warning("settle_failed", error=type(error).__name__, detail=str(error)[:200])
        await asyncio.sleep(1)

    async def _judge(self, concerned: Concerned) -> None:
        before = set(self._hub.sessions())
        metrics.SETTLED.inc()
        # Whoever deleted the document of a session has ended it.
        gone = before & concerned.sessions if not concerned.everything else before
        async for ids in self._cuts(concerned):
            found = await session_rule.standings({"_id": {"$in": ids}})
            self._answered = asyncio.get_running_loop().time()
            gone -= {standing.session_id for standing in found}
            await self._tell(found)
        await self._tell([session_rule.deleted(session_id, session_id) for session_id in gone])

    async def _cuts(self, concerned: Concerned) -> AsyncIterator[list[Id]]:
        """The sessions to judge, each once, so many at a time that the database answers soon."""
        ids = concerned.connected(self._hub)
        for cut in _cut(ids):
            yield cut
        for search in concerned.searches(self._hub):
            async for found in Session.ids(search, at_once=AT_ONCE):
                if others := [each for each in found if each not in ids]:
                    ids.update(others)
                    yield others

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
        at all each second; without a database for half a minute, nobody can be trusted. One that is
        slow, and answers for some and fails for others, is not away.
        """
        loop = asyncio.get_running_loop()
        self._answered = swept = loop.time()
        while True:
            await asyncio.sleep(min(1.0, self._sweep_seconds))
            if stream.live and loop.time() - swept < self._sweep_seconds:
                self._answered = loop.time()
                if expired := self._hub.expired():
                    self._concerned.sessions |= expired
                    self._news.set()
                with suppress(StreamError):
                    await self._say_who_is_on(self._hub.arrived())
                continue
            try:
                async with asyncio.timeout(DISTRUST_SECONDS):
                    await self._judge(Concerned(everything=True))
                    await self._say_who_is_on(self._hub.sessions())
                self._answered = swept = loop.time()
            except Exception as error:
                log.warning("sweep_failed", error=type(error).__name__, detail=str(error)[:200])
                if loop.time() - self._answered >= DISTRUST_SECONDS:
                    await self._hub.give_up("database away")

    async def _say_who_is_on(self, sessions: Collection[Id]) -> None:
        until = clock.now() + 2 * timedelta(seconds=self._sweep_seconds)
        for cut in _cut(sessions):
            await Session.say_online(cut, until=until)


def _cut(ids: Collection[Id]) -> Iterator[list[Id]]:
    rows = list(ids)
    return (rows[start : start + AT_ONCE] for start in range(0, len(rows), AT_ONCE))
