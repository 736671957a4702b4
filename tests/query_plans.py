"""A check of the query plans: no query of the application may scan a collection that grows.

`Recorder` notes each distinct shape of the queries that the application's own code sends during a
test: finds, counts, aggregations with their `$lookup` stages, updates and deletes. `Checker` asks
the database to explain them against a small database with the real indexes, filled by
`bench.population`. A query fails the test that sent it if it

- reads a whole collection or a whole index,
- sorts in memory, unless the documents are named one by one by their ids, or
- examines many more index entries or documents than it returns.

It also finds writes that change or delete a document of a collection in APPEND_ONLY.

Queries that the tests send themselves are not checked: what counts is the first project file in the
stack of the call.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import motor.frameworks.asyncio as motor_asyncio
from bson import json_util
from pymongo import MongoClient, monitoring
from pymongo.errors import OperationFailure

from bench.population import populate

DATABASE = "plans"
# Enough that a scan examines many documents that it does not return.
USERS = 300
# How many entries and documents a query may examine for each result, and besides.
FOR_EACH, BESIDES = 3, 40
# An unlimited query without a condition may not return more than this. Searches without an index
# examine at most 3000 documents.
SMALL_LIMIT = 3000

# Collections that do not grow with the number of users.
SMALL = {
    "roles": "administrators create them one by one; a list shows at most 500",
    "workers": "one document for each worker process, deleted an hour after its end",
    "barriers": "deleted a minute after they are written",
    "guards": "two documents, which transactions write so that they conflict",
    "unsealed": "entries wait there for some seconds, and are deleted when they are sealed",
    "costs": "one document, the highest cost of a password hash",
}
# Functions that read a whole collection on purpose.
WHOLE = {
    "models/accounts/canonical.py, _set_forms": (
        "`quartapp migrate` corrects the canonical forms of all users, in batches"
    ),
    "models/audit/verification.py, _check_seals": "`quartapp audit verify` reads the whole chain",
    "models/audit/verification.py, _find_unsealed": "`quartapp audit verify` reads the whole log",
}

# Collections whose documents are never changed or deleted, but by these functions: they remove the
# personal data of a deleted account, add salts to entries of earlier versions, and delete seals
# whose entries have been deleted by age.
APPEND_ONLY = {
    "events": {
        "models/audit/erasing.py, erase_details",
        "models/audit/erasing.py, erase_address",
        "models/audit/erasing.py, erase_address_at_once",
        "models/audit/erasing.py, erase_titles",
        "models/audit/seal.py, _add_commitments",
    },
    "seals": {"models/audit/seal.py, expire_seals"},
}
# Commands that insert or read. Any other command about these collections is a write.
HARMLESS = {"insert", "find", "aggregate", "count", "distinct", "getMore", "createIndexes"}

ROOT = Path(__file__).parents[1]
APPLICATION = str(ROOT / "quartapp") + os.sep
PROJECT = (APPLICATION, str(ROOT / "tests") + os.sep, str(ROOT / "bench") + os.sep)


@dataclass(frozen=True)
class Query:
    """What a command reads of a collection, as a find command would.

    `origin` is the function of the application that sent it.
    """

    collection: str
    match: Mapping[str, Any]
    origin: str
    sort: Mapping[str, Any] | None = None
    limit: int = 0
    skip: int = 0
    hint: Any = None
    collation: Mapping[str, Any] | None = None
    distinct: str | None = None

    @property
    def shape(self) -> str:
        """The query without its values."""
        parts = (self.match, self.sort, bool(self.limit), self.collation)
        return f"{self.collection} {self.origin} {_shape(parts)}"

    @property
    def command(self) -> dict[str, Any]:
        options = {
            "sort": self.sort,
            "limit": self.limit,
            "skip": self.skip,
            "hint": self.hint,
            "collation": self.collation,
        }
        given = {name: value for name, value in options.items() if value}
        if self.distinct:
            return {
                "distinct": self.collection,
                "key": self.distinct,
                "query": self.match,
                **given,
            }
        return {"find": self.collection, "filter": self.match, **given}

    def __str__(self) -> str:
        return json.dumps(self.command, default=json_util.default)


def queries(command: Mapping[str, Any], origin: str) -> Iterator[Query]:
    """Yield what the command reads; nothing for commands that only insert."""
    name, about = next(iter(command.items()))
    common: dict[str, Any] = {
        "collation": command.get("collation"),
        "hint": command.get("hint"),
    }
    if name == "find":
        yield Query(
            about,
            command.get("filter", {}),
            origin,
            sort=command.get("sort"),
            limit=abs(command.get("limit", 0)),
            skip=command.get("skip", 0),
            **common,
        )
    elif name == "findAndModify":
        yield Query(
            about, command.get("query", {}), origin, sort=command.get("sort"), limit=1, **common
        )
    elif name in ("update", "delete"):
        for each in command.get(f"{name}s", ()):
            one = not each.get("multi") if name == "update" else each.get("limit") == 1
            collation = each.get("collation")
            yield Query(about, each["q"], origin, limit=int(one), collation=collation)
    elif name in ("distinct", "count"):
        yield Query(
            about,
            command.get("query", {}),
            origin,
            limit=command.get("limit", 0),
            distinct=command.get("key"),
            **common,
        )
    elif name == "aggregate" and isinstance(about, str):
        yield from _of_pipeline(about, command["pipeline"], origin, common)


def forbidden_write(command: Mapping[str, Any], origin: str) -> str | None:
    """Return what is wrong if the command changes or deletes a document that must stay."""
    name, about = next(iter(command.items()))
    if name == "aggregate":
        for stage in command["pipeline"]:
            target = stage.get("$out") or stage.get("$merge", {})
            into = target.get("into") if isinstance(target, Mapping) else target
            if into in APPEND_ONLY:
                return f"{origin} writes {into} with an aggregation"
    allowed = APPEND_ONLY.get(about) if isinstance(about, str) else None
    if allowed is None or name in HARMLESS or origin in allowed:
        return None
    return f"{origin} sends the command {name} to {about}, whose documents are never changed"


def _of_pipeline(
    collection: str, pipeline: list[Mapping[str, Any]], origin: str, common: dict[str, Any]
) -> Iterator[Query]:
    """Yield what the first stages read, and what each later stage reads of another collection."""
    if pipeline and "$changeStream" in pipeline[0]:
        return
    read: dict[str, Any] = {}
    rest = list(pipeline)
    for stage, name in (("$match", "match"), ("$sort", "sort"), ("$skip", "skip")):
        if rest and stage in rest[0]:
            read[name] = rest.pop(0)[stage]
    if rest and "$limit" in rest[0]:
        read["limit"] = rest[0]["$limit"]
    yield Query(collection, read.pop("match", {}), origin, **read, **common)
    for stage in pipeline:
        if union := stage.get("$unionWith"):
            yield from _of_pipeline(union["coll"], union.get("pipeline", []), origin, common)
        for inner in (stage.get("$facet") or {}).values():
            yield from _of_pipeline(collection, inner, origin, common)
        if lookup := stage.get("$lookup"):
            # The value that the index is searched for does not matter, but it must be one.
            wanted = {lookup["foreignField"]: "a value"} if "foreignField" in lookup else {}
            yield Query(lookup["from"], wanted, f"{origin}, $lookup", **common)


def _shape(value: Any) -> Any:
    """Return the value as text in which leaves are replaced by the names of their types."""
    if isinstance(value, Mapping):
        return {key: _shape(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return sorted({str(_shape(each)) for each in value})
    return type(value).__name__


class Recorder(monitoring.CommandListener):
    """Notes the shapes of the queries of this process. One is registered in tests/conftest.py."""

    def __init__(self) -> None:
        self._calls = threading.local()
        self._seen: set[str] = set()
        self._new: list[Query] = []
        self._writes: list[str] = []

    def install(self) -> None:
        """Register the listener, and have Motor tell which code each command comes from.

        Motor runs commands in other threads, whose stacks do not show that.
        """
        monitoring.register(self)
        run = motor_asyncio.run_on_executor

        def run_with_origin(loop: Any, function: Any, *args: Any, **options: Any) -> Any:
            origin = _origin()

            def call(*args: Any, **options: Any) -> Any:
                self._calls.origin = origin
                try:
                    return function(*args, **options)
                finally:
                    self._calls.origin = None

            return run(loop, call, *args, **options)

        motor_asyncio.run_on_executor = run_with_origin

    @property
    def origin(self) -> str | None:
        """The function of the application that sends the present command, if one does."""
        return getattr(self._calls, "origin", None)

    def started(self, event: monitoring.CommandStartedEvent) -> None:
        origin = self.origin
        if origin is None:
            return
        if fault := forbidden_write(event.command, origin):
            self._writes.append(fault)
        for query in queries(event.command, origin):
            if query.collection in SMALL or (shape := query.shape) in self._seen:
                continue
            self._seen.add(shape)
            self._new.append(query)

    def succeeded(self, event: monitoring.CommandSucceededEvent) -> None: ...

    def failed(self, event: monitoring.CommandFailedEvent) -> None: ...

    def take(self) -> list[Query]:
        """Return the queries with new shapes since the last call."""
        new, self._new = self._new, []
        return new

    def take_writes(self) -> list[str]:
        """Return the forbidden writes since the last call."""
        writes, self._writes = self._writes, []
        return writes


def _origin() -> str | None:
    """Return the function of the application that calls; None if a test or a benchmark does."""
    frame = sys._getframe(2)
    while frame is not None:
        name = frame.f_code.co_filename
        if name.startswith(PROJECT) and name != __file__:
            if not name.startswith(APPLICATION):
                return None
            module = name.removeprefix(APPLICATION)
            # These only pass queries on.
            if module not in ("models/base/record.py", "db/mongo.py"):
                return f"{module}, {frame.f_code.co_name}"
        frame = frame.f_back
    return None


class Checker:
    """Explains queries. `use` tells it of the database server of the tests, if there is one."""

    _uri: ClassVar[str | None] = None
    _client: ClassVar[MongoClient[Any] | None] = None

    @classmethod
    def use(cls, uri: str | None) -> None:
        cls._uri = uri
        if cls._client is not None:
            cls._client.close()
            cls._client = None

    @classmethod
    def faults(cls, queries: list[Query]) -> list[str]:
        """Return what is wrong with each of the queries. Without a server it returns nothing."""
        if cls._uri is None or not queries:
            return []
        if cls._client is None:
            cls._client = MongoClient(cls._uri)
            cls._client.drop_database(DATABASE)
            populate(cls._client[DATABASE], USERS)
        found = []
        for query in queries:
            if query.origin in WHOLE and not query.match:
                continue
            explained = cls._explain(query)
            if fault := fault_of(query, explained):
                found.append(f"{query.origin} {fault}:\n  {query}")
        return found

    @classmethod
    def _explain(cls, query: Query) -> Mapping[str, Any]:
        assert cls._client is not None
        command = {"explain": query.command, "verbosity": "executionStats"}
        try:
            return cls._client[DATABASE].command(command)
        except OperationFailure as error:
            raise AssertionError(f"cannot explain {query}") from error


def fault_of(query: Query, explained: Mapping[str, Any]) -> str | None:
    """Return what is wrong with the plan, or None."""
    winning = explained["queryPlanner"]["winningPlan"]
    plan = winning.get("queryPlan", winning)
    figures = explained["executionStats"]
    stages = list(_stages(plan))
    returned = figures["nReturned"]
    examined = max(figures["totalKeysExamined"], figures["totalDocsExamined"])
    limited = 0 < query.limit <= SMALL_LIMIT
    if any(stage["stage"] == "COLLSCAN" for stage in stages) and (query.match or not limited):
        return "scans the collection"
    if not limited and any(_is_whole(stage) for stage in stages):
        return "reads a whole index without a limit"
    for stage in stages:
        if stage["stage"] == "SORT" and not _names_each(stage):
            return "sorts in memory"
    if examined > FOR_EACH * returned + query.skip + BESIDES:
        return f"examines {examined} documents or entries and returns {returned}"
    return None


def _stages(plan: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    yield plan
    for inner in (plan.get("inputStage"), *plan.get("inputStages", ())):
        if inner:
            yield from _stages(inner)


def _is_whole(stage: Mapping[str, Any]) -> bool:
    """Return whether the stage reads an index from the first entry to the last."""
    if stage["stage"] != "IXSCAN" or stage.get("isPartial"):
        return False
    first = next(iter(stage["indexBounds"].values()))
    return first in (["[MinKey, MaxKey]"], ["[MaxKey, MinKey]"])


def _names_each(sort: Mapping[str, Any]) -> bool:
    """Return whether all documents that are sorted are named by their ids in the query."""
    scans = [stage for stage in _stages(sort) if stage["stage"] in ("IXSCAN", "IDHACK", "COLLSCAN")]
    return all(
        stage["stage"] == "IDHACK"
        or (stage.get("keyPattern") == {"_id": 1} and _are_points(stage["indexBounds"]["_id"]))
        for stage in scans
    )


def _are_points(bounds: list[str]) -> bool:
    return all(len(set(each.strip("[]").split(", "))) == 1 for each in bounds)
