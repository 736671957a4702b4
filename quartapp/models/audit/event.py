"""The audit log: who did what to whom, from where and when."""

import asyncio
from collections.abc import Collection
from datetime import datetime
from typing import Any, Self

from beanie import PydanticObjectId
from beanie.odm.utils.dump import get_dict
from pydantic import Field, PrivateAttr
from pymongo import IndexModel

from quartapp import clock
from quartapp.activities import ACCOUNT_DELETED, Activity, catalogue
from quartapp.db.mongo import Tx, transaction
from quartapp.models.audit.entry_hash import commitment_fields, hash_of
from quartapp.models.audit.event_receipts import KEPT, EventReceipts
from quartapp.models.audit.receipt import SETTLED_AFTER, Reach, Receipt
from quartapp.models.audit.seal import UnsealedEntry
from quartapp.models.base.actor import Actor
from quartapp.models.base.append_only import AppendOnly
from quartapp.models.base.references import CASELESS, EVENTS, UserRef, user_ref
from quartapp.models.cluster.barrier_mark import BarrierMark

# Tabs on a fast network acknowledge within some milliseconds, and an administrator waits for them.
ASK_FIRST, ASK_LAST = 0.003, 0.1
# Attributes of an Event that are stored in EventReceipts.
ELSEWHERE = {"receipts", "counted_tabs", "silent_worker"}


class Event(AppendOnly):
    """One event of the audit log.

    `verb` is the audit name of an activity (see `quartapp.activities`), also of one that this
    version does not know. `subject` is the user it happened to, if there is one; `session` is the
    session in which it was done, or which it started.

    An event is never changed, and each is part of the hash chain (see `models.audit.seal`). When an
    account is deleted its events stay, without personal data: see `models.audit.erasing`. The
    receipts are stored apart (`EventReceipts`); events of earlier versions contain their own.
    """

    actor: UserRef | None = None
    verb: str
    subject: UserRef | None = None
    session: PydanticObjectId | None = None
    ip: str | None = None
    at: datetime = Field(default_factory=clock.now)
    details: dict[str, Any] = {}
    receipts: list[Receipt] = []
    counted_tabs: int = 0
    silent_worker: bool = False
    _marked: bool = PrivateAttr(default=False)
    _ended_sessions: int = PrivateAttr(default=0)

    class Settings:
        name = EVENTS
        indexes = [
            IndexModel([("subject.$id", 1), ("_id", -1)], name="of_subject"),
            IndexModel([("subject.$id", 1), ("verb", 1), ("_id", -1)], name="of_subject_by_verb"),
            IndexModel([("actor.$id", 1), ("_id", -1)], name="of_actor"),
            IndexModel([("verb", 1), ("_id", -1)], name="of_kind"),
            IndexModel([("actor.$id", 1), ("verb", 1), ("_id", -1)], name="of_actor_by_verb"),
            IndexModel([("ip", 1), ("_id", -1)], name="of_ip"),
            # For `models.sessions.session_list.latest_entries`.
            IndexModel([("session", 1), ("_id", -1)], name="of_session"),
            # Events about an invited address, which has no account yet.
            IndexModel([("details.email", 1)], name="of_address", sparse=True, collation=CASELESS),
            IndexModel([("details.author", 1)], name="quoting", sparse=True),
            IndexModel([("erased_for", 1)], name="erased_for", sparse=True),
            IndexModel([("at", 1)], name="kept", expireAfterSeconds=int(KEPT.total_seconds())),
        ]

    @classmethod
    async def record(
        cls,
        activity: Activity,
        *,
        by: Actor,
        subject: PydanticObjectId | None = None,
        tx: Tx | None = None,
        **details: Any,
    ) -> "Event":
        """Insert an event and return it, in the caller's transaction if `tx` is given (`insert`).

        Sends neither notification nor email: see `models.audit.recording.record`. `details` are
        stored with it. Raises TypeError for an activity without an audit name.
        """
        return await cls.of(activity, by=by, subject=subject, **details).insert(session=tx)

    @classmethod
    def of(
        cls,
        activity: Activity,
        *,
        by: Actor,
        subject: PydanticObjectId | None = None,
        **details: Any,
    ) -> "Event":
        """Return a new event that is not inserted yet, so that other documents can refer to its id.

        The actor, session and IP address are those of `by`. Raises TypeError for an activity
        without an audit name.
        """
        return cls(
            verb=activity.audit_name,
            actor=user_ref(by.user_id),
            subject=user_ref(subject),
            session=by.session_id,
            ip=by.ip,
            details=details,
        )

    async def insert(self, *, session: Tx | None = None) -> Self:  # type: ignore[override]
        """Insert the event, and its hash for the next seal, and return this object.

        In the caller's transaction, which is `session`, or in one of its own.
        """
        document = get_dict(self, to_db=True, exclude=set(ELSEWHERE))
        document |= commitment_fields(document)
        unsealed = {"_id": self.id, "hash": hash_of(document)}

        async def work(tx: Tx) -> None:
            await self.get_motor_collection().insert_one(document, session=tx)
            await UnsealedEntry.get_motor_collection().insert_one(unsealed, session=tx)

        await (work(session) if session is not None else transaction(work))
        return self

    @property
    def automatic(self) -> bool:
        """Whether no person did it: an account or a grant expired, or an account was deleted when
        it was due."""
        expiry = not self.details.keys().isdisjoint({"last_day", "expired", "why"})
        return self.actor is None and (expiry or self.verb == ACCOUNT_DELETED.audit)

    async def mark(self, tx: Tx, *, asker: str | None) -> None:
        """Insert the barrier mark of this event, as the last write of its transaction, and set
        `marked` on this object.

        A worker that has read the mark in the change stream has read all other writes of the
        transaction. `asker` is the worker that waits for the acknowledgements. Does not wait for
        them.
        """
        self._marked = True
        await self.barrier_mark(asker).insert(session=tx)

    def barrier_mark(self, asker: str | None) -> BarrierMark:
        """Return, without inserting it, a barrier mark with the id of this event."""
        return BarrierMark(id=self.id, at=self.at, event=self.id, asker=asker)

    @property
    def marked(self) -> bool:
        """Whether `mark` was called on this object. Not stored."""
        return self._marked

    async def wait_for_receipts(self, tabs: int, *, silent: bool, seconds: float) -> Reach:
        """Wait until no open tab is pending, at most `seconds`, and return what is known then.

        `tabs` is how many open tabs the workers reported at the barrier; without any it does not
        wait. `silent` says that a worker did not acknowledge the barrier. Reads the receipts
        again after each pause. Sets both values and the receipts on this object. Stores both in the
        database if tabs are still pending or a worker was silent.
        """
        self.counted_tabs, self.silent_worker = tabs, silent
        deadline, pause = clock.monotonic() + seconds, ASK_FIRST
        while tabs and self.reach.pending and clock.monotonic() < deadline:
            await asyncio.sleep(pause)
            pause = min(1.5 * pause, ASK_LAST)
            if read := await EventReceipts.get(self.id):
                self.receipts = read.receipts
        if self.reach.pending or silent:
            await EventReceipts.store_barrier_result(self.id, tabs=tabs, silent=silent)
        return self.reach

    async def load_receipts(self) -> None:
        """Read the receipts that are stored for this event into this object."""
        await type(self).add_receipts([self])

    def note_ended_sessions(self, count: int) -> None:
        """Set `ended_sessions`. Not stored."""
        self._ended_sessions = count

    @property
    def ended_sessions(self) -> int:
        """How many active sessions the operation has ended, as it noted on this object; 0 for a
        read event.
        """
        return self._ended_sessions

    @property
    def reach(self) -> Reach:
        """How many open tabs have acknowledged, by the receipts that this object was read with."""
        return Reach.of(
            self.receipts,
            tabs=self.counted_tabs,
            silent=self.silent_worker,
            settled=clock.now() - self.at > SETTLED_AFTER,
        )

    @classmethod
    async def page(
        cls,
        *,
        subject: PydanticObjectId | None = None,
        common: Collection[PydanticObjectId] = (),
        verbs: Collection[str] = (),
        before: PydanticObjectId | None = None,
        limit: int = 50,
        fetch: Collection[str] = ("actor", "subject"),
    ) -> list[Self]:
        """Return at most `limit` events, newest first, with the links in the fields `fetch`
        replaced by the users.

        `subject` limits them to events that happened to one user or are listed in `common`, the ids
        of events about many users. `verbs` limits them to these audit names. An empty argument does
        not limit: without any, the events of all users are returned. `before` is the id of the last
        event of the page before. The receipts of events that end sessions are read as well.
        """
        match: dict[str, Any] = {"subject.$id": subject} if subject else {}
        if common:
            match = {"$or": [match, {"_id": {"$in": list(common)}}]}
        if verbs:
            match["verb"] = {"$in": list(verbs)}
        if before:
            match["_id"] = {"$lt": before}
        events = await cls.find_with_links(match, sort="-_id", limit=limit, fetch=fetch)
        await cls.add_receipts(events)
        return events

    @classmethod
    async def add_receipts(cls, events: Collection[Self]) -> None:
        """Read the receipts of those events that end sessions into these objects, with one query
        for all of them."""
        ended = [event for event in events if catalogue.ends_sessions(event.verb)]
        stored = await EventReceipts.of_events([event.id for event in ended])
        for event in ended:
            if known := stored.get(event.id):
                event.receipts = known.receipts
                event.counted_tabs, event.silent_worker = known.counted_tabs, known.silent_worker
