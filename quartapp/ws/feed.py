"""From the change stream to the hub. One stream for each worker: what is written is told.

The stream says *that* something changed. What it has become is read from the database, so an
event that comes late, twice or in another order says nothing false, and a write by any hand, the
mongo shell's included, has the same effect as one of ours.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from beanie import PydanticObjectId

from quartapp import clock, metrics
from quartapp.database import ChangeStream, StreamError, Unavailable
from quartapp.log import log
from quartapp.models import Notice, Role, Session, User, principal
from quartapp.ws.hub import Hub
from quartapp.ws.protocol import Close, timestamp

Id = PydanticObjectId

AWAIT_MS = 500
DISTRUST_SECONDS = 30.0
BACKOFF_SECONDS = (0.05, 5.0)
# Fields whose change says nothing of anybody's authority.
QUIET = {
    "sessions": ["seen_at", "ip", "digest", "confirmed_at", "online_until", "roles"],
    "users": ["notice_seq", "notices_read"],
    "roles": ["grants", "description"],
}


class StreamEnded(Exception):
    """The stream was over without an error, as after the database was dropped."""


@dataclass
class Concerned:
    """What changed since it was last looked at."""

    everything: bool = False
    sessions: set[Id] = field(default_factory=set)
    users: set[Id] = field(default_factory=set)
    roles: set[Id] = field(default_factory=set)
    deleted_roles: set[Id] = field(default_factory=set)

    def match(self, hub: Hub) -> dict[str, Any]:
        """The sessions to judge anew."""
        connected = hub.sessions()
        if self.everything:
            return {"_id": {"$in": connected}}
        here = [s for s in connected if s in self.sessions]
        mine = list(hub.sessions_of(self.users))
        users, roles, gone = list(self.users), list(self.roles), list(self.deleted_roles)
        clauses: list[dict[str, Any]] = [{"_id": {"$in": here + mine}}]
        # Of a user, and of a role that is gone, also the sessions that no socket speaks for: what
        # was taken away and given back is gone all the same.
        if users:
            clauses.append({"user.$id": {"$in": users}, "ended_at": None})
        if gone:
            clauses.append({"roles.$id": {"$in": gone}, "ended_at": None})
        if roles:
            clauses.append({"_id": {"$in": connected}, "roles.$id": {"$in": roles}})
        return {"$or": clauses}


class Feed:
    """Follows the database for one worker. `live` says whether the stream is open."""

    def __init__(self, hub: Hub, *, sweep_seconds: float) -> None:
        self.live = False
        self._hub = hub
        self._sweep_seconds = sweep_seconds
        self._concerned = Concerned()
        self._news = asyncio.Event()
        self._opened = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Returns when the stream is open: from then on nothing is missed."""
        loops = (self._follow, self._settle_news, self._sweep)
        self._tasks = [asyncio.create_task(loop(), name=f"feed{loop.__name__}") for loop in loops]
        opened = asyncio.create_task(self._opened.wait())
        await asyncio.wait([opened, *self._tasks], return_when=asyncio.FIRST_COMPLETED)
        opened.cancel()

    async def stop(self) -> None:
        self.live = False
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    # ---- following

    async def _follow(self) -> None:
        """Keeps a stream open: errors, a lost history and a silent end are all survived."""
        token: Mapping[str, Any] | None = None
        shortest, longest = BACKOFF_SECONDS
        pause = shortest
        while True:
            stream = _watch(token)
            try:
                async with stream:
                    self._set_live()
                    pause = shortest
                    while stream.alive:  # pyright: ignore[reportUnnecessaryComparison]
                        change = await stream.try_next()
                        if change is not None:
                            self._take(change)
                        token = stream.resume_token or token
                    raise StreamEnded
            except Unavailable as error:
                self._lost(error)
            except Exception as error:
                # The history is lost, the stream ended without a word, or a change in it cannot be
                # read: only a new beginning helps, and everything is looked at then.
                token = None
                self._lost(error)
            await asyncio.sleep(pause)
            pause = min(pause * 2, longest)

    def _set_live(self) -> None:
        """From here on nothing is missed; what was missed before is looked up."""
        self.live = True
        metrics.STREAM.set(1)
        self._opened.set()
        self._hub.catch_up()
        self._look_at_everything()

    def _lost(self, error: Exception) -> None:
        self.live = False
        metrics.STREAM.set(0)
        metrics.STREAM_LOSSES.inc()
        log.warning("change_stream_lost", error=type(error).__name__, detail=str(error)[:200])

    def _take(self, change: Mapping[str, Any]) -> None:
        try:
            self._note(change)
        except Exception:
            # A document that nobody here wrote must not stop the feed for everybody else.
            log.exception("change_not_understood", id=str(change.get("documentKey")))
            self._look_at_everything()

    def _note(self, change: Mapping[str, Any]) -> None:
        operation = change["operationType"]
        collection = change.get("ns", {}).get("coll")
        if operation in ("drop", "rename", "dropDatabase", "invalidate"):
            return self._look_at_everything()
        document_id = change["documentKey"]["_id"]
        if collection == Notice.Settings.name:
            notice = Notice.model_validate(change["fullDocument"])
            return self._hub.notify(notice.user.ref.id, notice)
        if collection == Session.Settings.name:
            if operation == "insert":
                return self._announce(change["fullDocument"])
            self._concerned.sessions.add(document_id)
        elif collection == User.Settings.name:
            self._concerned.users.add(document_id)
        elif operation == "delete":
            self._concerned.deleted_roles.add(document_id)
        else:
            self._concerned.roles.add(document_id)
        return self._news.set()

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

    def _look_at_everything(self) -> None:
        self._concerned.everything = True
        self._news.set()

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
                self._look_at_everything()

    async def _settle(self, concerned: Concerned) -> None:
        before = set(self._hub.sessions())
        metrics.SETTLED.inc()
        found = await principal.standings(concerned.match(self._hub))
        # Whoever deleted the document of a session has ended it.
        gone = before & concerned.sessions if not concerned.everything else before
        gone -= {standing.session_id for standing in found}
        ended = [principal.deleted(session_id, session_id) for session_id in gone]
        for user_id, version in self._hub.settle([*found, *ended]):
            await User.number_change(user_id, version)

    # ---- sweeping

    async def _sweep(self) -> None:
        """Looks at every open socket's session now and then, whatever the stream says.

        This is what ends the sockets of sessions that expire, and says who is on. Without a
        stream it looks each second; without a database for half a minute, nobody can be trusted.
        """
        loop = asyncio.get_running_loop()
        answered = swept = loop.time()
        while True:
            await asyncio.sleep(min(1.0, self._sweep_seconds))
            if self.live and loop.time() - swept < self._sweep_seconds:
                answered = loop.time()
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
                    await self._hub.close_all(Close.OVERLOADED, "database away")

    async def _say_who_is_on(self, sessions: Collection[Id]) -> None:
        until = clock.now() + 2 * timedelta(seconds=self._sweep_seconds)
        await Session.say_online(sessions, until=until)


def _watch(token: Mapping[str, Any] | None) -> ChangeStream:
    database = Session.get_motor_collection().database
    return database.watch(PIPELINE, resume_after=token, max_await_time_ms=AWAIT_MS)


def _loud(collection: str) -> dict[str, Any]:
    """Changes of a collection that are not only of its quiet fields."""
    description = "$updateDescription"
    touched = {
        "$map": {
            "input": {"$objectToArray": {"$ifNull": [f"{description}.updatedFields", {}]}},
            "as": "field",
            "in": {"$arrayElemAt": [{"$split": ["$$field.k", "."]}, 0]},
        }
    }
    removed = {"$ifNull": [f"{description}.removedFields", []]}
    cut = {
        "$map": {
            "input": {"$ifNull": [f"{description}.truncatedArrays", []]},
            "as": "array",
            "in": "$$array.field",
        }
    }
    names = {"$concatArrays": [touched, removed, cut]}
    return {
        "ns.coll": collection,
        "$or": [
            {"operationType": {"$in": ["replace", "delete"]}},
            {
                "operationType": "update",
                "$expr": {"$ne": [{"$setDifference": [names, QUIET[collection]]}, []]},
            },
        ],
    }


PIPELINE: list[dict[str, Any]] = [
    {
        "$match": {
            "$or": [
                {"operationType": {"$in": ["drop", "rename", "dropDatabase", "invalidate"]}},
                {"operationType": "insert", "ns.coll": Notice.Settings.name},
                {"operationType": "insert", "ns.coll": Session.Settings.name},
                _loud(Session.Settings.name),
                _loud(User.Settings.name),
                _loud(Role.Settings.name),
            ]
        }
    },
    {"$unset": ["fullDocument.digest", "fullDocument.password_hash"]},
]
