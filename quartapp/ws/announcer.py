"""The announcer: tells sockets which of the topics that they follow have changed.

It has a change stream of its own, which is open only while a socket of this worker follows a topic.
So it costs nothing without followers, and the stream that ends sessions carries nothing else.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import islice

from quartapp.background import BackgroundTask
from quartapp.db.mongo import change_cursor
from quartapp.log import log
from quartapp.ws import topics
from quartapp.ws.connection import Connection
from quartapp.ws.topics import Key

# A socket receives at most one announcement per INTERVAL_SECONDS, and a worker sends at most
# PER_TURN of them per TURN_SECONDS: each makes a page fetch itself. So a thousand pages that follow
# a topic are told one after the other, within half a minute.
INTERVAL_SECONDS = 1.0
TURN_SECONDS, PER_TURN = 0.05, 2
# For how long the stream stays open without a follower; one page is followed by the next.
IDLE_SECONDS = 30.0
MIN_RETRY_SECONDS, MAX_RETRY_SECONDS = 0.1, 5.0
# The pauses begin again with the shortest one after a stream that was open for so long.
STABLE_SECONDS = 10.0


@dataclass(eq=False, slots=True)
class Follower:
    """A socket, what it follows, and the names of topics that have changed since it was told."""

    connection: Connection
    keys: Mapping[Key, str]
    changed: set[str] = field(default_factory=set)
    next_at: float = 0.0


class Announcer(BackgroundTask):
    """Follows the topics of the open sockets and announces their changes."""

    def __init__(self) -> None:
        self._followers: defaultdict[Key, set[Follower]] = defaultdict(set)
        self._changed: set[Key] = set()
        # In the order in which they will be told.
        self._waiting: dict[Follower, None] = {}
        self._has_work = asyncio.Event()
        self._has_followers = asyncio.Event()
        self._live = False

    async def start(self) -> None:
        """Start the tasks that follow the stream and announce."""
        self._start_task(self._follow(), "topics")
        self._start_task(self._announce(), "announcements")

    def subscribe(self, connection: Connection, keys: Mapping[Key, str]) -> Follower:
        """Let the socket follow the keys, until `unsubscribe`, and return the subscription.

        Each of its topics is announced once in its turn, or when the stream has opened: something
        may have changed since the page was rendered. Opens the stream if it is not open.
        """
        follower = Follower(connection, keys)
        for key in keys:
            self._followers[key].add(follower)
        if keys:
            self._has_followers.set()
        if self._live:
            self._mark(follower, keys)
        return follower

    def unsubscribe(self, follower: Follower) -> None:
        """End the subscription: changes that it has not been told yet are dropped.

        A second call does nothing. Without followers, the stream stays open for about IDLE_SECONDS.
        """
        self._waiting.pop(follower, None)
        for key in follower.keys:
            self._followers[key].discard(follower)
            if not self._followers[key]:
                del self._followers[key]
        if not self._followers:
            self._has_followers.clear()

    def _mark(self, follower: Follower, keys: Iterable[Key]) -> None:
        """Put the follower in the queue, if it is not there, to be told about these keys."""
        follower.changed.update(follower.keys[key] for key in keys)
        if follower.changed:
            self._waiting.setdefault(follower)
            self._has_work.set()

    # ---- the stream

    async def _follow(self) -> None:
        """Follow the stream while there are followers, forever.

        Logs an error as `change_stream_lost`, and then opens the stream again, with exponential
        back-off. `_live` is true only while it is open.
        """
        loop = asyncio.get_running_loop()
        pause = MIN_RETRY_SECONDS
        while True:
            await self._has_followers.wait()
            began = loop.time()
            try:
                await self._read_stream()
            except Exception as error:
                log.warning(
                    "change_stream_lost", error=type(error).__name__, detail=str(error)[:200]
                )
                if self._live and loop.time() - began >= STABLE_SECONDS:
                    pause = MIN_RETRY_SECONDS
                # Before the pause: who subscribes during it is told when the stream has opened.
                self._live = False
                await asyncio.sleep(pause)
                pause = min(pause * 2, MAX_RETRY_SECONDS)
            else:
                self._live = False
                pause = MIN_RETRY_SECONDS

    async def _read_stream(self) -> None:
        """Open the stream and note its changes, until it ends or has had no follower for
        IDLE_SECONDS. When it has opened, all followed topics count as changed.

        Sets `_live` then; the caller resets it. Raises the driver's errors.
        """
        loop = asyncio.get_running_loop()
        used = loop.time()
        async with change_cursor(topics.pipeline(), after=None) as stream:
            self._live = True
            self._changed.update(self._followers)
            self._has_work.set()
            async for page in stream.pages():
                for event in page:
                    self._note(event)
                if self._has_followers.is_set():
                    used = loop.time()
                elif loop.time() - used > IDLE_SECONDS:
                    return

    def _note(self, event: Mapping[str, object]) -> None:
        """Note which of the followed keys the event changes. Events that are no change of a
        document, and malformed ones, count for all keys."""
        try:
            changed = set(topics.keys_of(event))
        except (AttributeError, KeyError, TypeError):
            changed = set(self._followers)
        if followed := changed & self._followers.keys():
            self._changed |= followed
            self._has_work.set()

    # ---- announcing

    async def _announce(self) -> None:
        """Announce the noted changes, forever.

        Every TURN_SECONDS it tells PER_TURN followers, those that wait longest first, and none of
        them more often than every INTERVAL_SECONDS. A follower is told all its changes at once.
        """
        loop = asyncio.get_running_loop()
        while True:
            await self._has_work.wait()
            changed, self._changed = self._changed, set()
            for key in changed:
                for follower in self._followers.get(key, ()):
                    self._mark(follower, [key])
            now = loop.time()
            due = (follower for follower in self._waiting if follower.next_at <= now)
            for follower in list(islice(due, PER_TURN)):
                del self._waiting[follower]
                follower.next_at = now + INTERVAL_SECONDS
                names, follower.changed = follower.changed, set()
                follower.connection.announce_topics(names)
            if not self._waiting and not self._changed:
                self._has_work.clear()
            await asyncio.sleep(TURN_SECONDS)
