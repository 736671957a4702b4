"""Comparing the audit log with its hash chain: every change and every gap is a fault."""

from collections.abc import AsyncIterator, Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from bson import ObjectId

from quartapp import clock
from quartapp.models.audit.entry_faults import (
    GRACE,
    Lost,
    faults_of_entry,
    not_excused,
    times_of,
)
from quartapp.models.audit.entry_hash import MALFORMED
from quartapp.models.audit.event_receipts import KEPT
from quartapp.models.audit.seal import (
    ADOPTING,
    BATCH,
    SEALS,
    SEALS_KEPT,
    SETTLED,
    ZERO,
    UnsealedEntry,
    known_ids,
    root_of,
    seal_hash,
)
from quartapp.models.base.record import documents
from quartapp.models.base.references import EVENTS

Row = Mapping[str, Any]
# Seals that are read at once, with their entries.
SEALS_AT_ONCE = 100
# Fields that the hash of an entry does not cover, and that only entries of earlier versions have.
OF_EARLIER_VERSIONS = ("receipts", "counted_tabs", "silent_worker")


def no_progress() -> None: ...


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
    # Called after each batch.
    on_progress: Callable[[], None] = no_progress
    _found: set[str] = field(default_factory=set)
    # When all entries that had been committed by then were sealed, and the latest time of a seal.
    _complete_at: datetime | None = None
    _latest: datetime | None = None

    async def faults(self) -> AsyncIterator[str]:
        """Yield one line for each fault; none if the log is as the chain says. Changes nothing in
        the database. Raises what the driver raises.

        Also yields a fault for each hash of `expected` that no seal has. If there are no seals at
        all, only `expected` shows it: the log is then like one that was never sealed.
        """
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
        """Yield the faults of the seals, in their order, and those of the entries of each. Counts
        them, and sets `newest`: None if there is no seal that can be read.

        A seal that cannot be read counts, but its entries are not checked, and the next seal yields
        that it is missing.
        """
        cursor = documents(SEALS).find({}, batch_size=SEALS_AT_ONCE).sort("_id", 1)
        seals: list[Row] = []
        async for seal in cursor:
            self.seals += 1
            if not _is_well_formed(seal):
                yield f"seal {seal['_id']} was changed: it cannot be read"
                continue
            seals.append(seal)
            if sum(len(each["entries"]) for each in seals) >= BATCH:
                async for fault in self._check_batch(seals):
                    yield fault
                seals = []
        async for fault in self._check_batch(seals):
            yield fault

    async def _check_batch(self, seals: Sequence[Row]) -> AsyncIterator[str]:
        """Yield the faults of these seals and their entries, which are read with one query.

        Sets `newest` to the last of them and, if hashes are expected, notes the stored hash of
        each, also of a faulty one.
        """
        rows = await _entries([entry["id"] for seal in seals for entry in seal["entries"]])
        for seal in seals:
            for fault in self._faults_of_seal(seal):
                yield fault
            async for fault in self._check_entries(seal, rows):
                yield fault
            self.newest = seal
            self._latest = max(seal["at"], self._latest or seal["at"])
            if self.expected:
                self._found.add(seal["hash"].hex())
            if seal["complete"]:
                self._complete_at = max(seal["at"], self._complete_at or seal["at"])
        self.on_progress()

    def _faults_of_seal(self, seal: Row) -> Iterator[str]:
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
        if before and seal["previous_at"] != before["at"]:
            yield f"seal {number} gives another time for seal {before['_id']}"
        since = before["since"] if before else seal["at"]
        if (before or number == 1) and seal["since"] != since:
            yield f"seal {number} gives another time for the first seal"
        if self._latest and seal["at"] < self._latest - GRACE:
            yield f"seal {number} is older than a seal before it"
        if seal["at"] > clock.now() + GRACE:
            yield f"seal {number} has a time in the future"
        if seal["adopts"] and seal["at"] - seal["since"] > ADOPTING:
            yield f"seal {number} contains entries that were inserted without a hash"

    async def _check_entries(self, seal: Row, rows: Mapping[ObjectId, Row]) -> AsyncIterator[str]:
        """Yield the faults of the entries that the seal contains. `rows` are the stored ones.

        A missing entry that is old enough to be deleted by age is no fault, and counts as
        `expired`. All that are stored count as `entries`, also the faulty ones. "Was inserted later
        than it says" means that the entry's time is more than GRACE before a time up to which
        earlier seals were complete; it is not checked for a seal that adopts entries.
        """
        lost: list[Lost] = []
        for entry in seal["entries"]:
            row = rows.get(entry["id"])
            if row is None:
                if _has_expired(entry["id"]):
                    self.expired += 1
                else:
                    yield f"entry {entry['id']} of seal {seal['_id']} is missing"
                continue
            self.entries += 1
            for fault in faults_of_entry(row, entry["hash"], lost):
                yield f"entry {entry['id']} of seal {seal['_id']} {fault}"
            for fault in self._faults_of_times(row, seal):
                yield f"entry {entry['id']} of seal {seal['_id']} {fault}"
        async for fault in self._check_lost(lost):
            yield fault

    def _faults_of_times(self, row: Row, seal: Row) -> Iterator[str]:
        """Yield what is wrong with an entry whose times do not fit its place in the chain."""
        try:
            first, last = times_of(row)
        except MALFORMED:
            # Already reported: the hash is another one.
            return
        if not seal["adopts"] and self._complete_at and first < self._complete_at - GRACE:
            yield "was inserted later than it says"
        if last > seal["at"] + GRACE:
            yield "was inserted earlier than it says"
        if first > seal["since"] + ADOPTING:
            for name in OF_EARLIER_VERSIONS:
                if name in row:
                    yield f"was changed: {name}"

    async def _check_lost(self, lost: Sequence[Lost]) -> AsyncIterator[str]:
        """Yield a fault for each entry with an erased value for which no deletion of an account is
        in the chain, and count the others as `erased`."""
        faulty = await not_excused(lost)
        self.erased += len({each.entry for each in lost} - faulty)
        for entry in sorted(faulty):
            yield f"entry {entry} lost values, but the account was not deleted"

    # ---- entries that are in no seal

    async def _check_waiting(self) -> AsyncIterator[str]:
        """Yield a fault for each entry that waits for a seal and was changed, lost values though no
        account was deleted, or is missing and not old enough to be deleted by age; also for each
        whose stored hash cannot be read.

        All of them that are stored count as `waiting`, also the faulty ones; missing ones, and
        those without a readable hash, do not.
        """
        cursor = documents(UnsealedEntry.Settings.name).find({}, batch_size=BATCH).sort("_id", 1)
        while waiting := await cursor.to_list(BATCH):
            rows = await _entries(_readable_ids(waiting))
            lost: list[Lost] = []
            for each in waiting:
                digest = each.get("hash")
                if not isinstance(each["_id"], ObjectId) or not isinstance(digest, bytes):
                    yield f"the hash of entry {each['_id']}, which waits for a seal, was changed"
                    continue
                row = rows.get(each["_id"])
                if row is None:
                    if not _has_expired(each["_id"]):
                        yield f"entry {each['_id']}, which waits for a seal, is missing"
                    continue
                self.waiting += 1
                for fault in faults_of_entry(row, digest, lost):
                    yield f"entry {each['_id']}, which waits for a seal, {fault}"
            async for fault in self._check_lost(lost):
                yield fault

    async def _find_unsealed(self) -> AsyncIterator[str]:
        """Yield a fault for each entry that no seal contains, that does not wait for one, and that
        no worker will adopt.

        Those that a worker will adopt count as `waiting`; without any seal, these are all. Needs
        `newest`, so `_check_seals` comes first.
        """
        head = self.newest or {}
        cursor = documents(EVENTS).find({}, {"_id": 1}, batch_size=BATCH).sort("_id", 1)
        while rows := await cursor.to_list(BATCH):
            known = await known_ids(_readable_ids(rows))
            for entry in (row["_id"] for row in rows):
                # An id of another type may not be hashable.
                if isinstance(entry, ObjectId) and entry in known:
                    continue
                if _is_to_be_adopted(entry, head):
                    self.waiting += 1
                else:
                    yield f"entry {entry} is in no seal: it was inserted past the application"
            self.on_progress()


def _readable_ids(rows: Sequence[Row]) -> list[ObjectId]:
    """Return the ids of these documents that are ObjectIds, as those of all entries are."""
    return [row["_id"] for row in rows if isinstance(row["_id"], ObjectId)]


async def _entries(ids: Sequence[ObjectId]) -> dict[ObjectId, Row]:
    """Return the stored entries of these ids."""
    found = documents(EVENTS).find({"_id": {"$in": list(ids)}}, batch_size=BATCH)
    return {row["_id"]: row for row in await found.to_list(None)} if ids else {}


def _is_well_formed(seal: Row) -> bool:
    """Return whether all fields of the stored seal have the types that this version writes."""
    try:
        fields = (
            *((seal["_id"], int), (seal["at"], datetime), (seal["since"], datetime)),
            *((seal[name], bytes) for name in ("previous", "root", "hash")),
            *((seal["complete"], bool), (seal["adopts"], bool), (seal["entries"], list)),
            *((entry["id"], ObjectId) for entry in seal["entries"]),
            *((entry["hash"], bytes) for entry in seal["entries"]),
        )
        previous_at = seal["previous_at"]
    except MALFORMED:
        return False
    typed = all(isinstance(value, kind) for value, kind in fields)
    return typed and (previous_at is None or isinstance(previous_at, datetime))


def _may_follow_expired(seal: Row) -> bool:
    """Return whether the seals before this one can have been deleted by age. False for a seal that
    names none before it."""
    before = seal["previous_at"]
    return before is not None and before < clock.now() - SEALS_KEPT


def _seals(first: int, last: int) -> str:
    return f"seal {first} is" if first >= last else f"seals {first} to {last} are"


def _is_to_be_adopted(entry: Any, head: Row) -> bool:
    """Return whether a worker will seal the entry of this id, which was inserted without a hash.
    False if the id is no ObjectId; else True for every entry if there is no seal (`head` is
    empty)."""
    now = clock.now()
    if not isinstance(entry, ObjectId) or now - head.get("since", now) > ADOPTING:
        return False
    looked_to = head.get("adopted_to")
    return looked_to is None or entry > looked_to or _time_of(entry) > now - SETTLED


def _has_expired(entry: ObjectId) -> bool:
    """Return whether an entry of this id is old enough to be deleted by age."""
    return _time_of(entry) < clock.now() - KEPT


def _time_of(entry: ObjectId) -> datetime:
    """Return the time at which the id was created, in whole seconds."""
    return entry.generation_time
