"""Comparing an entry of the audit log with its hash, and judging the values that it has lost."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from bson import DBRef, ObjectId

from quartapp import clock
from quartapp.activities import ACCOUNT_DELETED
from quartapp.models.audit.entry_hash import (
    MALFORMED,
    Path,
    committed_paths,
    hash_of,
    is_as_committed,
    is_erased,
)
from quartapp.models.audit.seal import known_hashes
from quartapp.models.base.record import documents
from quartapp.models.base.references import EVENTS, USERS

Row = Mapping[str, Any]
# How much earlier than its commit an entry can have been created, with clocks that differ.
GRACE = timedelta(minutes=10)
THEIR_ADDRESS = ("details", "email")


@dataclass(frozen=True)
class Lost:
    """A value that was erased from an entry, and the accounts whose deletion erases it.

    `listed` means that the event ACCOUNT_DELETED must name the entry, because the entry itself
    does not tell which account it is about.
    """

    entry: ObjectId
    created: datetime
    owners: frozenset[ObjectId]
    listed: bool = False


def faults_of_entry(row: Row, digest: bytes, lost: list[Lost]) -> Iterator[str]:
    """Yield what is wrong with the stored entry, and add its erased values to the list, also if it
    has faults. Whether an account was deleted is not checked here (`not_excused`)."""
    try:
        faults = list(_compare(row, digest, lost))
    except MALFORMED:
        faults = ["was changed: it cannot be read"]
    yield from faults


def times_of(row: Row) -> tuple[datetime, datetime]:
    """Return the times that the entry gives for itself, the earlier one first: that of its id, in
    whole seconds, and `at`. Raises MALFORMED."""
    created, at = row["_id"].generation_time, row["at"]
    return min(created, at), max(created, at)


def _compare(row: Row, digest: bytes, lost: list[Lost]) -> Iterator[str]:
    if hash_of(row) != digest:
        yield "was changed"
    for path in committed_paths(row):
        if is_erased(row, path):
            lost.append(_lost(row, path))
        elif not is_as_committed(row, path):
            yield f"was changed: {'.'.join(path)}"


def _lost(row: Row, path: Path) -> Lost:
    entry, created = row["_id"], times_of(row)[0]
    if path == ("ip",):
        owners = {row["actor"].id} if row.get("actor") else set()
        return Lost(entry, created, frozenset(owners))
    author = row.get("details", {}).get("author")
    if path == ("details", "title") and author:
        subject = {row["subject"].id} if row.get("subject") else set()
        return Lost(entry, created, frozenset({author, *subject}))
    if row.get("subject"):
        return Lost(entry, created, frozenset({row["subject"].id}))
    # `erased_for` is not part of the hash. Only entries about an address have it.
    about_address = THEIR_ADDRESS in set(committed_paths(row))
    owners = set(row.get("erased_for", ())) if about_address else set()
    return Lost(entry, created, frozenset(owners), listed=True)


async def not_excused(lost: Sequence[Lost]) -> set[ObjectId]:
    """Return those of the entries that lost a value although no account was deleted to which it
    belonged."""
    owners = {owner for each in lost for owner in each.owners}
    deletions = await _deletions(owners) if owners else {}
    return {
        each.entry
        for each in lost
        if not any(_excuses(deletions[owner], each) for owner in each.owners & deletions.keys())
    }


@dataclass(frozen=True)
class Deletion:
    """The deletion of an account: its time, None while it is under way; and the entries without a
    subject that lost details, None for a deletion by an earlier version, which does not list
    them."""

    at: datetime | None
    erased: frozenset[ObjectId] | None = None


def _excuses(deletion: Deletion, lost: Lost) -> bool:
    """Return whether the deletion of the account is the reason why the entry lost the value."""
    if deletion.at is not None and lost.created > deletion.at + GRACE:
        return False
    return not lost.listed or deletion.erased is None or lost.entry in deletion.erased


async def _deletions(accounts: Collection[ObjectId]) -> dict[ObjectId, Deletion]:
    """Return the deletions of these accounts: those that are under way, and those whose event
    ACCOUNT_DELETED is in the chain with its hash, if the account does not exist any more."""
    named = {"$in": list(accounts)}
    fields = {"erasing_until": 1, "deletes_at": 1}
    users = {row["_id"]: row async for row in documents(USERS).find({"_id": named}, fields)}
    match = {"subject.$id": named, "verb": ACCOUNT_DELETED.audit, "_id": {"$type": "objectId"}}
    told = documents(EVENTS).find(match)
    rows = [row async for row in told if isinstance(row["subject"], DBRef)]
    hashes = await known_hashes([row["_id"] for row in rows]) if rows else {}
    found = {account: Deletion(None) for account, user in users.items() if _is_being_erased(user)}
    for row in rows:
        account = row["subject"].id
        if account not in users and not list(faults_of_entry(row, hashes.get(row["_id"], b""), [])):
            erased = row["details"].get("erased")
            found[account] = Deletion(row["at"], None if erased is None else frozenset(erased))
    return found


def _is_being_erased(user: Row) -> bool:
    due = user.get("deletes_at")
    is_due = isinstance(due, datetime) and due <= clock.now()
    return user.get("erasing_until") is not None and is_due
