"""Filling in the canonical forms of usernames and addresses, where documents lack them.

Documents written by an older version, by another program or by hand have none. They are found all
the same (see `User.by_email`), but only the canonical form is unique by an index.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pymongo import UpdateOne
from pymongo.errors import BulkWriteError, DuplicateKeyError

from quartapp import validation
from quartapp.models.accounts.user import User

Row = Mapping[str, Any]
Change = tuple[Row, str, str | None]

BATCH = 500
FORMS = {"username": validation.canonical_username, "email": validation.canonical_email}
LOOKED_AT = {field: 1 for name in FORMS for field in (name, f"canonical_{name}")}


@dataclass(frozen=True)
class Conflict:
    """Two accounts whose usernames or addresses have one canonical form."""

    field: str
    value: str
    finds: str
    other: str

    def __str__(self) -> str:
        what = "address" if self.field == "email" else "username"
        return (
            f"the accounts {self.finds} and {self.other} have one {what}, {self.value}: "
            f"it signs in to {self.finds} only. Change it in one of them."
        )


async def fill_in() -> list[Conflict]:
    """Set the canonical forms that are missing. Return the conflicts that are left.

    Where two accounts have one canonical form, the older account gets it, unless the younger has
    it already. The other one keeps its address as it is and can be signed in to by its username.
    """
    return await _set_forms({"canonical_email": None}, "created_at")


async def set_right() -> list[Conflict]:
    """The same for all accounts, also where a form is there and wrong. Reads all accounts."""
    return await _set_forms({}, "_id")


async def _set_forms(match: Mapping[str, Any], sort: str) -> list[Conflict]:
    conflicts: list[Conflict] = []
    batch: list[Change] = []
    async for row in User.get_motor_collection().find(match, LOOKED_AT).sort(sort, 1):
        for field in FORMS:
            canonical = _form(row, field)
            if row.get(f"canonical_{field}") != canonical:
                batch.append((row, field, canonical))
        if len(batch) >= BATCH:
            conflicts += await _write(batch)
            batch = []
    return conflicts + await _write(batch)


async def _write(batch: Sequence[Change]) -> list[Conflict]:
    """Many at once; those that an index refuses, one by one."""
    if not batch:
        return []
    try:
        updates = [UpdateOne(*_update(*change)) for change in batch]
        await User.get_motor_collection().bulk_write(updates, ordered=False)
    except BulkWriteError as error:
        failed = sorted(each["index"] for each in error.details["writeErrors"])
        found = [await _write_one(*batch[index]) for index in failed]
        return [conflict for conflicts in found for conflict in conflicts]
    return []


async def _write_one(row: Row, field: str, canonical: str | None) -> list[Conflict]:
    users, name = User.get_motor_collection(), f"canonical_{field}"
    try:
        await users.update_one(*_update(row, field, canonical))
    except DuplicateKeyError:
        holder = await users.find_one({name: canonical}, LOOKED_AT)
        if holder and _form(holder, field) == canonical:
            await users.update_one(*_update(row, field, None))
            owners = str(holder.get("username")), str(row.get("username"))
            return [Conflict(field, str(row[field]), *owners)]
        # The holder is gone, or has another address by now, of which its form does not know.
        freed = await _write_one(holder, field, _form(holder, field)) if holder else []
        return freed + await _write_one(row, field, canonical)
    return []


def _update(row: Row, field: str, canonical: str | None) -> tuple[Row, Row]:
    """The filter and the change: none if the account has another address by now."""
    name = f"canonical_{field}"
    unchanged = {"_id": row["_id"], field: row.get(field), name: row.get(name)}
    return unchanged, {"$set": {name: canonical}} if canonical else {"$unset": {name: ""}}


def _form(row: Row, field: str) -> str | None:
    stored = row.get(field)
    return (FORMS[field](stored) or None) if isinstance(stored, str) else None
