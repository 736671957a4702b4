"""Comparing the audit log with its hash chain: every change and every gap is a fault."""

from collections.abc import AsyncIterator, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from beanie import PydanticObjectId
from bson import ObjectId

from quartapp import clock
from quartapp.activities import ACCOUNT_DELETED
from quartapp.models.audit.entry_hash import (
    Path,
    committed_paths,
    hash_of,
    is_as_committed,
    is_erased,
)
from quartapp.models.audit.event_receipts import KEPT
from quartapp.models.audit.seal import (
    ADOPTING,
    BATCH,
    SEALS,
    SEALS_KEPT,
    SETTLED,
    ZERO,
    UnsealedEntry,
    known_hashes,
    root_of,
    seal_hash,
)
from quartapp.models.base.record import documents
from quartapp.models.base.references import EVENTS, USERS

Row = Mapping[str, Any]
# How much earlier than its commit an entry can have been created, with clocks that differ.
GRACE = timedelta(minutes=10)
SEALS_AT_ONCE = 20


@dataclass
class Verification:
    """One comparison of the audit log with its chain.

    `expected` are hashes of seals that must exist. `faults` does the work, and reads everything in
    batches. Afterwards `seals` is the number of seals, `entries` that of their entries that are
    stored, `expired` that of those that were deleted by age, `waiting` that of entries that wait
    for a seal, and `erased` that of all entries that lost values with an account. `newest` is the
    last seal.
    """

    expected: Collection[str] = ()
    seals: int = 0
    entries: int = 0
    erased: int = 0
    expired: int = 0
    waiting: int = 0
    newest: Row | None = None
    _found: set[str] = field(default_factory=set)
    # When all entries that had been committed by then were sealed.
    _complete_at: datetime | None = None

    async def faults(self) -> AsyncIterator[str]:
        """Yield one line for each fault; none if the log is as the chain says. Changes nothing in
        the database. Raises what the driver raises. Also a fault for each hash of `expected` that
        no seal has."""
        async for fault in self._check_seals():
            yield fault
        async for fault in self._check_waiting():
            yield fault
        async for fault in self._find_unsealed():
            yield fault
        for digest in self.expected:
            if digest not in self._found:
                yield (
                    f"no seal has the hash {digest}: seals were removed from the end or rewritten"
                )

    # ---- seals and their entries

    async def _check_seals(self) -> AsyncIterator[str]:
        """Yield the faults of the seals, in their order, and those of the entries of each."""
        cursor = documents(SEALS).find({}, batch_size=SEALS_AT_ONCE).sort("_id", 1)
        async for seal in cursor:
            self.seals += 1
            for fault in self._faults_of_seal(seal):
                yield fault
            async for fault in self._check_entries(seal):
                yield fault
            self.newest = seal
            if self.expected:
                self._found.add(seal["hash"].hex())
            if seal["complete"]:
                self._complete_at = seal["at"]

    def _faults_of_seal(self, seal: Row) -> Iterator[str]:
        """Yield what is wrong with the seal: the seals before it are missing, and cannot have been
        deleted by age; it does not contain the hash of the one before; it was changed; it is more
        than GRACE older than the one before; or it adopts entries after the end of ADOPTING."""
        number, before = seal["_id"], self.newest
        expected = before["_id"] + 1 if before else 1
        if number != expected and not (before is None and _may_follow_expired(seal)):
            yield f"{_seals(expected, number - 1)} missing"
        elif before and seal["previous"] != before["hash"]:
            yield f"seal {number} does not follow from seal {before['_id']}"
        elif number == 1 and seal["previous"] != ZERO:
            yield "seal 1 names a seal before it"
        if seal_hash(seal) != seal["hash"] or root_of(seal["entries"]) != seal["root"]:
            yield f"seal {number} was changed"
        if before and seal["at"] < before["at"] - GRACE:
            yield f"seal {number} is older than seal {before['_id']}"
        if seal["adopts"] and seal["at"] - seal["since"] > ADOPTING:
            yield f"seal {number} contains entries that were inserted without a hash"

    async def _check_entries(self, seal: Row) -> AsyncIterator[str]:
        """Yield a fault for each entry of the seal that is missing, was changed, lost values though
        no account was deleted, or was inserted later than it says.

        An entry that is missing counts as `expired` if it is old enough to be deleted by age.
        """
        ids = [entry["id"] for entry in seal["entries"]]
        rows = {row["_id"]: row async for row in documents(EVENTS).find({"_id": {"$in": ids}})}
        erased: list[tuple[Row, Path]] = []
        for entry in seal["entries"]:
            row = rows.get(entry["id"])
            if row is None:
                if _has_expired(entry["id"]):
                    self.expired += 1
                else:
                    yield f"entry {entry['id']} of seal {seal['_id']} is missing"
                continue
            self.entries += 1
            for fault in _faults_of_entry(row, entry["hash"], erased):
                yield f"entry {entry['id']} of seal {seal['_id']} {fault}"
            created = min(_time_of(row["_id"]), row["at"])
            if not seal["adopts"] and self._complete_at and created < self._complete_at - GRACE:
                yield (f"entry {entry['id']} of seal {seal['_id']} was inserted later than it says")
        async for fault in self._check_erased(erased):
            yield fault

    async def _check_erased(self, erased: Sequence[tuple[Row, Path]]) -> AsyncIterator[str]:
        """Yield a fault for each entry with an erased value for which no deletion of an account is
        in the chain, and count the others."""
        owners = {owner for row, path in erased for owner in _owners(row, path)}
        deleted = await _deleted(owners) if owners else set()
        faulty = {row["_id"] for row, path in erased if deleted.isdisjoint(_owners(row, path))}
        self.erased += len({row["_id"] for row, _ in erased} - faulty)
        for entry in sorted(faulty):
            yield f"entry {entry} lost values, but the account was not deleted"

    # ---- entries that are in no seal

    async def _check_waiting(self) -> AsyncIterator[str]:
        """Yield a fault for each entry that waits for a seal and is missing, unless it is old
        enough to be deleted by age, was changed, or lost values though no account was deleted.
        Count the others, and the changed ones, as `waiting`."""
        cursor = documents(UnsealedEntry.Settings.name).find({}, batch_size=BATCH).sort("_id", 1)
        while waiting := await cursor.to_list(BATCH):
            ids = [each["_id"] for each in waiting]
            rows = {row["_id"]: row async for row in documents(EVENTS).find({"_id": {"$in": ids}})}
            erased: list[tuple[Row, Path]] = []
            for each in waiting:
                row = rows.get(each["_id"])
                if row is None:
                    if not _has_expired(each["_id"]):
                        yield f"entry {each['_id']}, which waits for a seal, is missing"
                    continue
                self.waiting += 1
                for fault in _faults_of_entry(row, each["hash"], erased):
                    yield f"entry {each['_id']}, which waits for a seal, {fault}"
            async for fault in self._check_erased(erased):
                yield fault

    async def _find_unsealed(self) -> AsyncIterator[str]:
        """Yield a fault for each entry that no seal contains and that does not wait for one. Those
        that a worker will adopt (`models.audit.seal`) count as `waiting` instead."""
        head = self.newest or {}
        cursor = documents(EVENTS).find({}, {"_id": 1}, batch_size=BATCH).sort("_id", 1)
        while rows := await cursor.to_list(BATCH):
            ids = [row["_id"] for row in rows]
            known = await known_hashes(ids)
            for entry in ids:
                if entry in known:
                    continue
                if _is_to_be_adopted(entry, head):
                    self.waiting += 1
                else:
                    yield f"entry {entry} is in no seal: it was inserted past the application"


def _may_follow_expired(seal: Row) -> bool:
    """Return whether the seals before this one can have been deleted by age."""
    before = seal["previous_at"]
    return before is not None and before < clock.now() - SEALS_KEPT


def _seals(first: int, last: int) -> str:
    return f"seal {first} is" if first >= last else f"seals {first} to {last} are"


def _faults_of_entry(row: Row, digest: bytes, erased: list[tuple[Row, Path]]) -> Iterator[str]:
    """Yield what is wrong with the entry: its hash is not this one, or a value is not as committed.
    Adds the paths of its erased values to the list, which the caller checks."""
    if hash_of(row) != digest:
        yield "was changed"
    for path in committed_paths(row):
        if is_erased(row, path):
            erased.append((row, path))
        elif not is_as_committed(row, path):
            yield f"was changed: {'.'.join(path)}"


def _owners(row: Row, path: Path) -> set[ObjectId]:
    """Return the accounts whose deletion erases this value of the entry."""
    if path == ("ip",):
        return {row["actor"].id} if row.get("actor") else set()
    owners = {row["subject"].id} if row.get("subject") else set(row.get("erased_for", ()))
    author = row.get("details", {}).get("author")
    return owners | ({author} if path == ("details", "title") and author else set())


async def _deleted(accounts: Collection[ObjectId]) -> set[ObjectId]:
    """Return those of the accounts that are being erased, or whose event ACCOUNT_DELETED is in the
    chain with its hash."""
    named = {"$in": list(accounts)}
    match = {"subject.$id": named, "verb": ACCOUNT_DELETED.audit}
    rows = await documents(EVENTS).find(match).to_list(None)
    hashes = await known_hashes([row["_id"] for row in rows]) if rows else {}
    deleted = {row["subject"].id for row in rows if hashes.get(row["_id"]) == hash_of(row)}
    erasing = {"_id": named, "erasing_until": {"$ne": None}}
    return deleted | {row["_id"] async for row in documents(USERS).find(erasing, {"_id": 1})}


def _is_to_be_adopted(entry: PydanticObjectId, head: Row) -> bool:
    """Return whether a worker will seal this entry, which was inserted without a hash."""
    now = clock.now()
    if now - head.get("since", now) > ADOPTING:
        return False
    looked_to = head.get("adopted_to")
    return looked_to is None or entry > looked_to or _time_of(entry) > now - SETTLED


def _has_expired(entry: ObjectId) -> bool:
    """Return whether an entry of this id is old enough to be deleted by age."""
    return _time_of(entry) < clock.now() - KEPT


def _time_of(entry: ObjectId) -> datetime:
    """Return the time at which the id was created, in whole seconds."""
    return entry.generation_time
