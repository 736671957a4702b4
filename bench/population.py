"""A database with any number of users, written directly: for `bench.growth` and the query checks.

`bench.rows` has the documents. Several processes insert them, and the indexes are built at the end:
a million users take minutes instead of an hour.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import islice
from multiprocessing import get_context
from typing import Any, TypeVar

from bson import Binary, ObjectId
from pymongo import MongoClient, WriteConcern
from pymongo.database import Database

from bench.rows import CREW, Row, collections
from quartapp import models
from quartapp.models.audit.entry_hash import hash_of
from quartapp.models.audit.seal import ZERO, root_of, seal_hash

T = TypeVar("T")

BATCH = 2_000
# Rows that a process inserts before it takes the next task.
TASK = 50_000
PROCESSES = 2
SEALED_AT_ONCE = 100
# Hashes of entries, by their ids.
Hashes = list[tuple[ObjectId, bytes]]


@dataclass(frozen=True)
class Writer:
    """Inserts the rows of one database. Other processes receive copies."""

    uri: str
    database: str
    count: int
    now: datetime
    roles: Mapping[str, ObjectId]
    salt: int

    def write(self, target: Database[Any], collection: str, start: int, stop: int) -> Hashes:
        """Insert the rows of these numbers; return the hashes of those that are audit entries."""
        kind = collections(self.count, self.now, self.roles, self.salt)[collection]
        rows, hashes = kind.rows(start, stop), Hashes()
        while batch := list(islice(rows, BATCH)):
            _insert(target, collection, batch)
            if collection == "events":
                hashes += [(row["_id"], hash_of(row)) for row in batch]
        return hashes

    def write_apart(self, collection: str, start: int, stop: int) -> Hashes:
        """Do the same in another process."""
        with MongoClient[Any](self.uri) as client:
            return self.write(client[self.database], collection, start, stop)


def populate(database: Database[Any], count: int, *, uri: str = "") -> None:
    """Insert the documents of `count` users, and create the indexes of all collections afterwards.

    Keeps the documents that are there. With `uri`, the address of the database, PROCESSES processes
    insert them. The caller prepares the database afterwards (`models.prepare`).
    """
    writer = Writer(
        uri,
        database.name,
        count,
        datetime.now(UTC),
        _roles(database),
        int.from_bytes(os.urandom(2)),
    )
    kinds = collections(count, writer.now, writer.roles, writer.salt)
    tasks = [
        (name, start, min(start + TASK, kind.count))
        for name, kind in kinds.items()
        for start in range(0, kind.count, TASK)
    ]
    hashes = Hashes()
    if uri:
        context = get_context("spawn")
        with ProcessPoolExecutor(PROCESSES, mp_context=context) as pool:
            for each in pool.map(writer.write_apart, *zip(*tasks, strict=True)):
                hashes += each
    else:
        for task in tasks:
            hashes += writer.write(database, *task)
    for seals in _batched(_chain(hashes)):
        _insert(database, "seals", seals)
    with ThreadPoolExecutor(PROCESSES) as threads:
        list(threads.map(lambda document: _index(database, document), models.DOCUMENTS))


def _index(database: Database[Any], document: Any) -> None:
    settings = document.Settings
    if indexes := getattr(settings, "indexes", []):
        database[settings.name].create_indexes(indexes)


def _insert(database: Database[Any], collection: str, rows: list[Row]) -> None:
    target = database.get_collection(collection, write_concern=WriteConcern(w=1))
    target.insert_many(rows, ordered=False)


def _roles(database: Database[Any]) -> dict[str, ObjectId]:
    """Insert the roles that are missing, and return the ids of all by name."""
    for name in ("member", "moderator", "admin", CREW):
        if database["roles"].find_one({"name": name}) is None:
            permissions = ["posts.write"] if name in ("member", CREW) else []
            role = {"_id": ObjectId(), "name": name, "description": "", "permissions": permissions}
            database["roles"].insert_one({**role, "requires_factor": False, "grants": 0})
    return {role["name"]: role["_id"] for role in database["roles"].find()}


def _chain(hashes: Hashes) -> Iterator[Row]:
    """Yield seals of the entries, which have a month between the first and the last."""
    previous, previous_at = ZERO, None
    since = None
    for number, part in enumerate(_batched(iter(hashes), SEALED_AT_ONCE), 1):
        entries = [{"id": entry, "hash": Binary(digest)} for entry, digest in part]
        at = part[-1][0].generation_time + timedelta(seconds=5)
        since = since or at
        seal: Row = {
            "_id": number,
            "at": at,
            "since": since,
            "previous": Binary(previous),
            "previous_at": previous_at,
            "root": Binary(root_of(entries)),
            "complete": True,
            "adopts": False,
            "adopted_to": None,
        }
        seal |= {"hash": Binary(seal_hash(seal)), "entries": entries}
        previous, previous_at = seal["hash"], at
        yield seal


def _batched(rows: Iterator[T], size: int = BATCH) -> Iterator[list[T]]:
    while batch := list(islice(rows, size)):
        yield batch
