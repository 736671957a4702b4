"""The hash chain of the audit log.

A transaction that inserts an event also inserts its hash as an `UnsealedEntry`, a document of its
own, so transactions do not conflict. A background job (`jobs.audit_sealer`) then appends a `Seal`:
the hashes of the unsealed entries, chained to the seal before by SHA-256. See docs/adr/0095.
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import takewhile
from typing import Any

from beanie import PydanticObjectId
from bson import Binary, ObjectId
from pymongo import IndexModel, UpdateOne
from pymongo.errors import DuplicateKeyError

from quartapp import clock
from quartapp.db.mongo import Tx, transaction
from quartapp.models.audit.entry_hash import MALFORMED, canonical, commitment_fields, hash_of
from quartapp.models.audit.event_receipts import KEPT
from quartapp.models.base.append_only import AppendOnly
from quartapp.models.base.record import Record, documents, first_id_at
from quartapp.models.base.references import EVENTS

SEALS = "seals"
# Entries of one seal.
BATCH = 500
# The previous hash of the first seal.
ZERO = bytes(32)
# For this long after the first seal, entries without an UnsealedEntry are sealed: those from before
# the upgrade, and those of workers of an earlier version that still run.
ADOPTING = timedelta(days=7)
# An entry of this age is not part of a transaction that still runs.
SETTLED = timedelta(minutes=2)
# Seals outlive their entries, so that a verification can tell why an entry is missing.
SEALS_KEPT = KEPT + timedelta(days=30)
EXPIRED_AT_ONCE = 1000
# What other programs store in the wrong form does not stop the job: `quartapp audit verify` names
# it.
NUMBERED = {"_id": {"$type": ["int", "long"]}}
READABLE = {"_id": {"$type": "objectId"}, "hash": {"$type": "binData"}}
LISTING = {"entries": {"$type": "array"}}


class UnsealedEntry(Record):
    """The hash of an entry that no seal contains yet, under the entry's id."""

    hash: bytes

    class Settings:
        name = "unsealed"


class Seal(AppendOnly):
    """One link of the chain. Its id is its number: the first is 1, and there is no gap.

    `entries` has the id and the hash of each entry, in the order of their places. `root` is the
    SHA-256 of them all, `previous` the `hash` of the seal before, and `hash` the SHA-256 of all
    other fields but `entries`. `since` is the time of the first seal, `previous_at` that of the
    seal before.

    `complete` means that no entry that was committed before `at` was left unsealed. A seal that
    `adopts` contains entries without an UnsealedEntry; `adopted_to` is the highest id that was
    looked at for those.
    """

    id: int  # type: ignore[assignment]
    at: datetime
    since: datetime
    previous: bytes
    previous_at: datetime | None = None
    entries: list[dict[str, Any]] = []
    root: bytes
    complete: bool
    adopts: bool
    adopted_to: PydanticObjectId | None = None
    hash: bytes

    class Settings:
        name = SEALS
        indexes = [IndexModel([("entries.id", 1)], name="of_entry")]


@dataclass(frozen=True)
class Sealed:
    """The number and the hash of an appended seal, its number of entries, and whether it is
    `complete` (see `Seal`)."""

    number: int
    hash: str
    entries: int
    complete: bool


def root_of(entries: Iterable[Mapping[str, Any]]) -> bytes:
    """Return the SHA-256 of the ids and hashes of the entries, in their order."""
    digest = hashlib.sha256()
    for entry in entries:
        digest.update(entry["id"].binary + entry["hash"])
    return digest.digest()


def seal_hash(seal: Mapping[str, Any]) -> bytes:
    """Return the SHA-256 of a stored seal: of all fields but `entries` and `hash`."""
    hashed = {name: value for name, value in seal.items() if name not in ("entries", "hash")}
    return hashlib.sha256(canonical(hashed)).digest()


async def seal() -> Sealed | None:
    """Append one seal with up to BATCH unsealed entries, oldest first; return None if there are
    none or another process appends it.

    In one transaction, which deletes their UnsealedEntry. The number of the seal is its id, so of
    two processes at once only one appends it, and the other returns None; the chain cannot fork.
    """

    async def work(tx: Tx) -> Sealed | None:
        # The time comes first: each entry that was committed before it can be read below.
        now = clock.now()
        unsealed = documents(UnsealedEntry.Settings.name)
        found = unsealed.find(READABLE, session=tx).sort("_id", 1).limit(BATCH)
        rows = await found.to_list(None)
        if not rows:
            return None
        hashes = {row["_id"]: row["hash"] for row in rows}
        sealed = await _append(hashes, at=now, tx=tx, complete=len(rows) < BATCH)
        await unsealed.delete_many({"_id": {"$in": list(hashes)}}, session=tx)
        return sealed

    try:
        return await transaction(work)
    except DuplicateKeyError:
        return None


async def adopt(
    after: PydanticObjectId | None = None,
) -> tuple[Sealed | None, PydanticObjectId | None]:
    """Append one seal with those of the next BATCH entries that have no hash yet: no seal contains
    them, and no UnsealedEntry has their id. Return it, or None without such entries, if ADOPTING is
    over, or if another process appends a seal; and the id after which the next call goes on.

    `after` is that id of the call before; without it, the search begins where that of the last seal
    ended. Entries younger than SETTLED are left for later. In one transaction, which also writes
    salts and commitments into entries that have none: those of earlier versions.
    """
    looked_to = after

    async def work(tx: Tx) -> Sealed | None:
        nonlocal looked_to
        now = clock.now()
        head = await _head(tx)
        if now - head.get("since", now) > ADOPTING:
            return None
        start = max(filter(None, (after, head.get("adopted_to"))), default=None)
        bounds = {"$lt": first_id_at(now - SETTLED)} | ({"$gt": start} if start else {})
        found = documents(EVENTS).find({"_id": bounds}, session=tx).sort("_id", 1).limit(BATCH)
        rows = await found.to_list(None)
        looked_to = rows[-1]["_id"] if rows else start
        known = await known_hashes([row["_id"] for row in rows], tx=tx)
        rows = [row for row in rows if row["_id"] not in known]
        if not rows:
            return None
        hashes = await _add_commitments(rows, tx)
        if not hashes:
            return None
        return await _append(hashes, at=now, tx=tx, adopted_to=looked_to)

    try:
        return await transaction(work), looked_to
    except DuplicateKeyError:
        return None, after


async def _add_commitments(rows: Sequence[dict[str, Any]], tx: Tx) -> dict[PydanticObjectId, bytes]:
    """Add salts and commitments to those of the entries that have none, in the database; return
    the hashes of all by their ids.

    Leaves out entries that cannot be read, because another program has written them.
    """
    writes: list[UpdateOne] = []
    hashes: dict[PydanticObjectId, bytes] = {}
    for row in rows:
        try:
            fields = {} if "commitments" in row else commitment_fields(row)
            hashes[row["_id"]] = hash_of(row | fields)
        except MALFORMED:
            continue
        if fields:
            writes.append(UpdateOne({"_id": row["_id"]}, {"$set": fields}))
    if writes:
        await documents(EVENTS).bulk_write(writes, session=tx)
    return hashes


async def _head(tx: Tx) -> dict[str, Any]:
    """Return the newest seal as it is stored, without its entries; empty if there is none."""
    found = await documents(SEALS).find_one(
        NUMBERED, {"entries": 0}, sort=[("_id", -1)], session=tx
    )
    return found or {}


async def _append(
    hashes: Mapping[PydanticObjectId, bytes],
    *,
    at: datetime,
    tx: Tx,
    complete: bool = False,
    adopted_to: PydanticObjectId | None = None,
) -> Sealed:
    """Insert a seal of these entries behind the newest one, in the caller's transaction, and return
    it. With `adopted_to`, it is one that adopts. Raises DuplicateKeyError if another process has
    appended this number."""
    head = await _head(tx)
    entries = [{"id": entry, "hash": Binary(digest)} for entry, digest in hashes.items()]
    document = {
        "_id": head.get("_id", 0) + 1,
        "at": at,
        "since": head.get("since", at),
        "previous": Binary(head.get("hash", ZERO)),
        "previous_at": head.get("at"),
        "root": Binary(root_of(entries)),
        "complete": complete,
        "adopts": adopted_to is not None,
        "adopted_to": adopted_to or head.get("adopted_to"),
    }
    document |= {"hash": Binary(seal_hash(document)), "entries": entries}
    await documents(SEALS).insert_one(document, session=tx)
    return Sealed(document["_id"], document["hash"].hex(), len(entries), complete)


async def known_hashes(
    ids: Sequence[PydanticObjectId], *, tx: Tx | None = None
) -> dict[PydanticObjectId, bytes]:
    """Return the stored hashes of those of these entries that a seal contains or that wait for one,
    by the ids of the entries."""
    named = {"$in": list(ids)}
    # First those that wait: between the two queries an entry can only be sealed.
    waiting = documents(UnsealedEntry.Settings.name).find({"_id": named}, session=tx)
    hashes = {row["_id"]: row.get("hash", b"") async for row in waiting}
    mine = {"$filter": {"input": "$entries", "cond": {"$in": ["$$this.id", list(ids)]}}}
    pipeline = [{"$match": {"entries.id": named, **LISTING}}, {"$project": {"entries": mine}}]
    async for row in documents(SEALS).aggregate(pipeline, session=tx):
        hashes |= {entry["id"]: entry.get("hash", b"") for entry in row["entries"]}
    return hashes


async def known_ids(ids: Sequence[ObjectId]) -> set[ObjectId]:
    """Return a set that has those of these entries that a seal contains or that wait for one, and
    perhaps others."""
    named = {"$in": list(ids)}
    # In this order, as in `known_hashes`.
    waiting = documents(UnsealedEntry.Settings.name).find({"_id": named}, {"_id": 1})
    known = {row["_id"] async for row in waiting}
    found = documents(SEALS).find({"entries.id": named, **LISTING}, {"entries.id": 1})
    async for row in found:
        listed = [entry.get("id") for entry in row["entries"] if isinstance(entry, Mapping)]
        known.update(each for each in listed if isinstance(each, ObjectId))
    return known


@dataclass(frozen=True)
class Mark:
    """The number and the hash of a seal, by which it is recognised later."""

    number: int
    hash: str


async def newest() -> Mark | None:
    """Return the mark of the newest seal; None if there is none."""
    row = await documents(SEALS).find_one(NUMBERED, {"hash": 1}, sort=[("_id", -1)])
    return Mark(row["_id"], row["hash"].hex()) if row else None


async def is_in_chain(mark: Mark) -> bool:
    """Return whether the seal of this number still has this hash."""
    match = {"_id": mark.number, "hash": bytes.fromhex(mark.hash)}
    return await documents(SEALS).find_one(match, {"_id": 1}) is not None


async def expire_seals() -> int:
    """Delete up to EXPIRED_AT_ONCE of the oldest seals, if their entries have all been deleted by
    age, and return how many. The newest seal stays whatever its age, because the next one is
    chained to it.
    """
    seals = documents(SEALS)
    limit = clock.now() - SEALS_KEPT

    def has_expired(row: Mapping[str, Any]) -> bool:
        return row["at"] < limit and row["_id"] != head["_id"]

    oldest = await seals.find_one(NUMBERED, {"at": 1}, sort=[("_id", 1)])
    head = await seals.find_one(NUMBERED, {"_id": 1}, sort=[("_id", -1)])
    if oldest is None or not has_expired(oldest):
        return 0
    found = seals.find(NUMBERED, {"at": 1}).sort("_id", 1).limit(EXPIRED_AT_ONCE)
    # Clocks can differ, and a seal in between must not be missing.
    gone = [row["_id"] for row in takewhile(has_expired, await found.to_list(None))]
    if gone:
        await seals.delete_many({"_id": {"$in": gone}})
    return len(gone)
