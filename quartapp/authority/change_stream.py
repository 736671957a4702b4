"""The change stream of one worker, kept open, and told to those who listen in its order."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from quartapp import metrics
from quartapp.background import Background
from quartapp.db.mongo import Unavailable, changes
from quartapp.log import log
from quartapp.models import BarrierMark, Mail, Notice, Role, Session, User, Worker

# Requests go on while thousands of changes are told, and no mailbox fills for want of a turn.
BREATH = 10
SHORTEST_PAUSE, LONGEST_PAUSE = 0.05, 5.0
# Fields whose change says nothing that anybody here remembers.
QUIET = {
    Session.Settings.name: ["ip", "online_until", "roles", "acts"],
    User.Settings.name: ["notice_seq", "totp_step", "recovery_codes", "acts"],
    Role.Settings.name: ["grants", "description"],
}
WHOLE = ["drop", "rename", "dropDatabase", "invalidate"]


@dataclass(frozen=True, slots=True)
class Change:
    """One event. `document` is there for what was inserted, `fields` for what was updated, and
    `removed` names what an update took away, from an array too."""

    operation: str
    collection: str
    id: Any
    document: Mapping[str, Any]
    fields: Mapping[str, Any]
    removed: Sequence[str] = ()

    @property
    def touched(self) -> set[str]:
        """The names of all fields that an update changed or took away; none of other events."""
        return {name.split(".")[0] for name in (*self.fields, *self.removed)}


class Listener(Protocol):
    """Hears every change in the order of the commits. Nothing here may wait."""

    def heard(self, change: Change) -> None: ...

    def interrupted(self) -> None:
        """What was remembered from the stream may have missed something: forget, or look again."""

    def lost(self) -> None:
        """The stream broke, and nothing is heard until it is open again."""


class StreamEnded(Exception):
    """The stream was over without an error, as after the database was dropped."""


class Stream(Background):
    """Follows the database. `live` says whether it is open at the moment."""

    def __init__(self, listeners: Sequence[Listener]) -> None:
        self.live = False
        self._listeners = listeners
        self._opened = asyncio.Event()

    async def start(self) -> None:
        """Returns when the stream is open: from then on nothing is missed."""
        following = self._run(self._follow(), "stream")
        opened = asyncio.create_task(self._opened.wait())
        await asyncio.wait([opened, following], return_when=asyncio.FIRST_COMPLETED)
        opened.cancel()

    async def stop(self) -> None:
        self.live = False
        await super().stop()

    async def _follow(self) -> None:
        """Keeps a stream open: errors, a lost history and a silent end are all survived."""
        token: Mapping[str, Any] | None = None
        pause = SHORTEST_PAUSE
        while True:
            try:
                async with changes(PIPELINE, after=token) as stream:
                    self._set_live()
                    pause = SHORTEST_PAUSE
                    async for page in stream.pages():
                        for number, change in enumerate(page):
                            self._tell(change)
                            if number % BREATH == BREATH - 1:
                                await asyncio.sleep(0)
                        token = stream.token
                    raise StreamEnded
            except Unavailable as error:
                self._lost(error)
            except Exception as error:
                # The history is lost, the stream ended without a word, or a change in it cannot be
                # read: only a new beginning helps, and everything is looked at then.
                token = None
                self._lost(error)
            await asyncio.sleep(pause)
            pause = min(pause * 2, LONGEST_PAUSE)

    def _set_live(self) -> None:
        # Told once it is open, so that what is looked at now cannot have missed anything.
        self.live = True
        metrics.STREAM.set(1)
        self._interrupt()
        self._opened.set()

    def _lost(self, error: Exception) -> None:
        self.live = False
        metrics.STREAM.set(0)
        metrics.STREAM_LOSSES.inc()
        for listener in self._listeners:
            listener.lost()
        log.warning("change_stream_lost", error=type(error).__name__, detail=str(error)[:200])

    def _tell(self, event: Mapping[str, Any]) -> None:
        operation = event["operationType"]
        if operation in WHOLE:
            return self._interrupt()
        update = event.get("updateDescription") or {}
        cut = [array["field"] for array in update.get("truncatedArrays") or ()]
        change = Change(
            operation=operation,
            collection=event["ns"]["coll"],
            id=event["documentKey"]["_id"],
            document=event.get("fullDocument") or {},
            fields=update.get("updatedFields", {}),
            removed=[*update.get("removedFields", ()), *cut],
        )
        for listener in self._listeners:
            try:
                listener.heard(change)
            except Exception:
                # A document that nobody here wrote must not stop the stream for everybody else.
                log.exception("change_not_understood", collection=change.collection)
                listener.interrupted()
        return None

    def _interrupt(self) -> None:
        for listener in self._listeners:
            listener.interrupted()


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
    # We write `seen_at` together with `uses`. Whoever writes it alone has moved a session in time.
    quiet = {
        "$cond": [
            {"$in": ["uses", names]},
            [*QUIET[collection], "seen_at", "uses"],
            QUIET[collection],
        ]
    }
    return {
        "ns.coll": collection,
        "$or": [
            {"operationType": {"$in": ["replace", "delete"]}},
            # Said by the other clause too, at greater length; thousands may come at once.
            {"updateDescription.updatedFields.ended_at": {"$exists": True}},
            {
                "operationType": "update",
                "$expr": {"$ne": [{"$setDifference": [names, quiet]}, []]},
            },
        ],
    }


_INSERTED = [
    Notice.Settings.name,
    Session.Settings.name,
    BarrierMark.Settings.name,
    Mail.Settings.name,
]

PIPELINE: list[dict[str, Any]] = [
    {
        "$match": {
            "$or": [
                {"operationType": {"$in": WHOLE}},
                {"operationType": "insert", "ns.coll": {"$in": _INSERTED}},
                {"operationType": "update", "ns.coll": BarrierMark.Settings.name},
                {"ns.coll": Worker.Settings.name},
                *map(_loud, QUIET),
            ]
        }
    },
    {
        "$unset": [
            f"fullDocument.{name}"
            for name in ("digest", "password_hash", "kept_credential", "totp", "recovery_codes")
        ]
    },
]
