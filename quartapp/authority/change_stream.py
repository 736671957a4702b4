"""The change stream of one worker: keeps it open and passes each change to the listeners.

The pipeline below runs on the server and selects the changes that some listener needs.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from quartapp import metrics
from quartapp.background import BackgroundTask
from quartapp.db.mongo import Unavailable, change_cursor
from quartapp.log import log
from quartapp.models import (
    BarrierMark,
    Mail,
    Notice,
    Role,
    RoleDeletion,
    RoleRequest,
    Session,
    User,
    Worker,
)

# After this many changes other tasks get a turn: requests are answered, and sockets write their
# mailboxes, while thousands of changes are dispatched.
CHANGES_PER_TURN = 10
MIN_RETRY_SECONDS, MAX_RETRY_SECONDS = 0.05, 5.0
# Fields that no listener keeps. An update of only these fields is not sent to the worker.
IGNORED_FIELDS = {
    Session.Settings.name: ["ip", "online_until", "page", "worker", "roles", "acts"],
    User.Settings.name: ["notice_seq", "totp_step", "recovery_codes", "acts", "seen_at"],
    Role.Settings.name: ["grants", "description", "acts"],
}
DATABASE_EVENTS = ["drop", "rename", "dropDatabase", "invalidate"]


@dataclass(frozen=True, slots=True)
class Change:
    """One event of the change stream.

    `operation` is "insert", "update", "replace" or "delete". `document` is the whole document after
    an insert or replace, else empty. For an update, `updated_fields` has the new values by dotted
    path, and `removed_fields` the paths that were removed and of arrays that were truncated.
    """

    operation: str
    collection: str
    id: Any
    document: Mapping[str, Any]
    updated_fields: Mapping[str, Any]
    removed_fields: Sequence[str] = ()

    @property
    def changed_fields(self) -> set[str]:
        """The top-level names of all fields that an update set or removed; else empty."""
        return {name.split(".")[0] for name in (*self.updated_fields, *self.removed_fields)}


class Listener(Protocol):
    """Receives changes. The methods are plain functions, so they cannot wait for anything."""

    def on_change(self, change: Change) -> None:
        """Called for each change, in the order of the commits."""

    def on_missed_changes(self) -> None:
        """Called when changes may have been missed: drop cached data, or read it again.

        That is each time the stream has opened, when a collection or the database was dropped, and
        when this listener's `on_change` has raised an error.
        """

    def on_disconnect(self) -> None:
        """Called when the stream has failed: no changes arrive until `on_missed_changes`."""


class StreamEnded(Exception):
    """The server closed the stream without an error, as after the database was dropped."""


class ChangeStream(BackgroundTask):
    """Follows the database and passes changes to the listeners. `live` is true while it is open.

    Of the heartbeats, only those of the worker `worker_id` are received.
    """

    def __init__(self, listeners: Sequence[Listener], *, worker_id: str) -> None:
        self.live = False
        self._pipeline = pipeline_for(worker_id)
        self._listeners = listeners
        self._opened = asyncio.Event()

    async def start(self) -> None:
        """Start the task that follows the stream, and return when the stream has opened.

        Waits as long as the database is away. Listeners' `on_missed_changes` has been called then.
        """
        following = self._start_task(self._follow(), "stream")
        opened = asyncio.create_task(self._opened.wait())
        await asyncio.wait([opened, following], return_when=asyncio.FIRST_COMPLETED)
        opened.cancel()

    async def stop(self) -> None:
        """Set `live` to false and end the task. Listeners are not called."""
        self.live = False
        await super().stop()

    async def _follow(self) -> None:
        """Read the stream forever; after an error, report the loss (`_set_lost`) and open the
        stream again with exponential back-off.

        After a connection error it resumes behind the last page that was dispatched. After any
        other error it starts at the present, as the history may be gone or one event unreadable;
        `on_missed_changes` then makes the listeners read what they missed.
        """
        token: Mapping[str, Any] | None = None
        pause = MIN_RETRY_SECONDS
        while True:
            try:
                async with change_cursor(self._pipeline, after=token) as stream:
                    self._set_live()
                    pause = MIN_RETRY_SECONDS
                    async for page in stream.pages():
                        for number, change in enumerate(page):
                            self._dispatch(change)
                            if number % CHANGES_PER_TURN == CHANGES_PER_TURN - 1:
                                await asyncio.sleep(0)
                        token = stream.token
                    raise StreamEnded
            except Unavailable as error:
                self._set_lost(error)
            except Exception as error:
                token = None
                self._set_lost(error)
            await asyncio.sleep(pause)
            pause = min(pause * 2, MAX_RETRY_SECONDS)

    def _set_live(self) -> None:
        """Set `live` and the metric, tell all listeners that they may have missed changes, and
        let `start` return."""
        # The listeners are called after the stream has opened: what they read from the database now
        # cannot miss a change.
        self.live = True
        metrics.OPEN_STREAMS.set(1)
        self._report_missed_changes()
        self._opened.set()

    def _set_lost(self, error: Exception) -> None:
        """Clear `live`, count the loss in the metrics, call `on_disconnect` of all listeners,
        and log `change_stream_lost`."""
        self.live = False
        metrics.OPEN_STREAMS.set(0)
        metrics.STREAM_LOSSES.inc()
        for listener in self._listeners:
            listener.on_disconnect()
        log.warning("change_stream_lost", error=type(error).__name__, detail=str(error)[:200])

    def _dispatch(self, event: Mapping[str, Any]) -> None:
        """Pass the event to all listeners in turn, as a `Change`. If it is a drop, call their
        `on_missed_changes` instead.

        An error of a listener is logged as `change_not_understood`, and its `on_missed_changes` is
        called; the others still receive the change.
        """
        operation = event["operationType"]
        if operation in DATABASE_EVENTS:
            return self._report_missed_changes()
        update = event.get("updateDescription") or {}
        cut = [array["field"] for array in update.get("truncatedArrays") or ()]
        change = Change(
            operation=operation,
            collection=event["ns"]["coll"],
            id=event["documentKey"]["_id"],
            document=event.get("fullDocument") or {},
            updated_fields=update.get("updatedFields", {}),
            removed_fields=[*update.get("removedFields", ()), *cut],
        )
        for listener in self._listeners:
            try:
                listener.on_change(change)
            except Exception:
                # Another program may have written a malformed document.
                log.exception("change_not_understood", collection=change.collection)
                listener.on_missed_changes()
        return None

    def _report_missed_changes(self) -> None:
        """Call `on_missed_changes` of all listeners."""
        for listener in self._listeners:
            listener.on_missed_changes()


def changed_fields() -> dict[str, Any]:
    """Return an aggregation expression for what `Change.changed_fields` has: the top-level names of
    the fields that an event has set, removed or truncated."""
    update = "$updateDescription"
    return {
        "$concatArrays": [
            _top_names({"$objectToArray": {"$ifNull": [f"{update}.updatedFields", {}]}}, ".k"),
            _top_names({"$ifNull": [f"{update}.removedFields", []]}),
            _top_names({"$ifNull": [f"{update}.truncatedArrays", []]}, ".field"),
        ]
    }


def _top_names(items: dict[str, Any], path: str = "") -> dict[str, Any]:
    """Return an expression for the top-level names of the dotted paths in the list."""
    first = {"$arrayElemAt": [{"$split": [f"$$item{path}", "."]}, 0]}
    return {"$map": {"input": items, "as": "item", "in": first}}


def _relevant_changes(collection: str) -> dict[str, Any]:
    """Return the filter for a collection's deletes and replaces, and for its updates of any field
    that is not in IGNORED_FIELDS."""
    names = changed_fields()
    # The application writes `seen_at` together with `uses`, which needs no reaction. If another
    # program writes `seen_at` alone, the session may have expired.
    quiet = {
        "$cond": [
            {"$in": ["uses", names]},
            [*IGNORED_FIELDS[collection], "seen_at", "uses"],
            IGNORED_FIELDS[collection],
        ]
    }
    return {
        "ns.coll": collection,
        "$or": [
            {"operationType": {"$in": ["replace", "delete"]}},
            # The next clause matches this too, but takes longer; thousands may come at once.
            {"updateDescription.updatedFields.ended_at": {"$exists": True}},
            {
                "operationType": "update",
                "$expr": {"$ne": [{"$setDifference": [names, quiet]}, []]},
            },
        ],
    }


_INSERTS = [
    Notice.Settings.name,
    Session.Settings.name,
    BarrierMark.Settings.name,
    Mail.Settings.name,
    RoleDeletion.Settings.name,
]
_UNSENT_FIELDS = [
    f"fullDocument.{name}"
    for name in ("digest", "password_hash", "kept_credential", "totp", "recovery_codes")
]


def pipeline_for(worker_id: str) -> list[dict[str, Any]]:
    """Return the pipeline of a worker's change stream.

    Of the workers' heartbeats it selects only those of this worker: were all of them sent to all,
    the number of messages would grow with the square of the number of workers. That the document of
    any worker is inserted or deleted is selected too: so a worker knows which others there are.
    Secret fields, such as password hashes, are removed from the documents.
    """
    workers = Worker.Settings.name
    selected = [
        {"operationType": {"$in": DATABASE_EVENTS}},
        {"operationType": "insert", "ns.coll": {"$in": _INSERTS}},
        {"ns.coll": workers, "documentKey._id": worker_id},
        {"operationType": "replace", "ns.coll": RoleDeletion.Settings.name},
        {"ns.coll": RoleRequest.Settings.name},
        {"operationType": {"$in": ["insert", "replace", "delete"]}, "ns.coll": workers},
        *map(_relevant_changes, IGNORED_FIELDS),
    ]
    return [{"$match": {"$or": selected}}, {"$unset": _UNSENT_FIELDS}]
