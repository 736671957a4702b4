"""The check of `tests.query_plans` finds queries that get slower as collections grow."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from beanie import PydanticObjectId
from bson import ObjectId
from pymongo import MongoClient

from bench.rows import email, user_id
from quartapp.db.mongo import Database
from quartapp.models.audit.event import Event
from quartapp.models.base.references import CASELESS
from tests.query_plans import DATABASE, Checker, Query, queries

SOMEBODY = ObjectId()
NEWEST = {"_id": -1}


def query(collection: str, match: dict[str, Any], **options: Any) -> Query:
    return Query(collection, match, "a test", **options)


FAULTS = {
    "scans the collection": query("users", {"pending_email": "x"}),
    "scans the collection, with a limit": query("users", {"pending_email": "x"}, limit=1),
    "scans the collection, without a condition": query("users", {}),
    "scans the collection, with another collation": query(
        "users", {"canonical_username": "x"}, collation=CASELESS.document
    ),
    "reads a whole index without a limit": query("events", {}, sort=NEWEST),
    "sorts in memory": query("sessions", {"user.$id": user_id(1)}, sort={"seen_at": -1}),
    "sorts in memory, with a limit": query(
        "sessions", {"user.$id": user_id(1)}, sort={"seen_at": -1}, limit=5
    ),
    "scans the collection, for distinct values": query("sessions", {}, distinct="device"),
    "examines 300": query("events", {"details.post": SOMEBODY}, sort=NEWEST, limit=5),
}


@pytest.mark.parametrize("fault", FAULTS)
async def test_a_query_that_gets_slower_is_found(db: Database, fault: str) -> None:
    (found,) = Checker.faults([FAULTS[fault]])
    assert found.startswith(f"a test {fault.partition(',')[0]}")


async def test_queries_by_an_index_are_accepted(db: Database) -> None:
    named = {"_id": {"$in": [user_id(i) for i in range(20)]}}
    queries = [
        query("events", {}, sort=NEWEST, limit=51),
        query("events", {"subject.$id": user_id(1)}, sort=NEWEST, limit=51),
        query("users", {"email": email(7)}, limit=1, collation=CASELESS.document),
        query("users", named, sort={"username": 1}),
        query("users", {}, limit=1),
        query("sessions", {}, distinct="idle_seconds"),
    ]
    assert Checker.faults(queries) == []


def test_queries_of_each_kind_of_command_are_recorded() -> None:
    lookup = {"from": "users", "localField": "a", "foreignField": "b", "as": "c"}
    union = {"coll": "events", "pipeline": [{"$match": {"verb": 1}}, {"$limit": 3}]}
    stages = [{"$match": {"x": 1}}, {"$sort": NEWEST}, {"$limit": 2}, {"$lookup": lookup}]
    both = [{"q": {"x": 1}, "multi": True}, {"q": {"y": 1}}]
    deletes = [{"q": {"x": 1}, "limit": 0}, {"q": {"y": 1}, "limit": 1}]
    x, y = query("posts", {"x": 1}), query("posts", {"y": 1}, limit=1)
    for command, read in (
        ({"find": "posts", "filter": {"x": 1}}, [x]),
        ({"count": "posts", "query": {"x": 1}}, [x]),
        ({"update": "posts", "updates": both}, [x, y]),
        ({"delete": "posts", "deletes": deletes}, [x, y]),
        ({"findAndModify": "posts", "query": {"y": 1}}, [y]),
        (
            {"aggregate": "posts", "pipeline": [*stages, {"$unionWith": union}]},
            [
                query("posts", {"x": 1}, sort=NEWEST, limit=2),
                Query("users", {"b": "a value"}, "a test, $lookup"),
                query("events", {"verb": 1}, limit=3),
            ],
        ),
        ({"insert": "posts", "documents": []}, []),
    ):
        assert list(queries(command, "a test")) == read, command


@pytest.fixture
def without_index(mongod: str) -> Iterator[None]:
    """Remove the indexes of events by subject while the test runs."""
    Checker.faults([query("users", {}, limit=1)])
    with MongoClient[Any](mongod) as client:
        events = client[DATABASE]["events"]
        removed = ("of_subject", "of_subject_by_verb")
        for name in removed:
            events.drop_index(name)
        yield
        events.create_indexes([i for i in Event.Settings.indexes if i.document["name"] in removed])


async def test_removing_an_index_is_found_with_the_function_that_needs_it(
    db: Database, without_index: None
) -> None:
    from tests.conftest import RECORDER

    RECORDER.take()
    RECORDER._seen.clear()
    await Event.page(subject=PydanticObjectId(), limit=10)
    faults = Checker.faults(RECORDER.take())
    assert len(faults) == 1
    assert faults[0].startswith("models/audit/event.py, page examines 300 documents")
