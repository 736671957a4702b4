"""Setting the canonical forms of usernames and addresses in documents that lack them.

Documents that an older version or another program wrote have none. Such accounts are found all the
same (see `Account.by_email`), but only the canonical form has a unique index.
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
    """Two accounts whose usernames or addresses have one canonical form. `finds` is the username of
    the account that has it.
    """

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
    """Set the canonical forms in users without a `canonical_email`, and return the conflicts.

    Oldest users first: of two with one canonical form, the older gets it, unless the younger has it
    already. The other is left without, and can be signed in to only by what does not conflict.
    """
    return await _set_forms({"canonical_email": None}, "created_at")


async def correct_all() -> list[Conflict]:
    """Correct the canonical forms of all users, missing and wrong ones, and return the conflicts.
    Reads all users.
    """
    return await _set_forms({}, "_id")


async def _set_forms(match: Mapping[str, Any], sort: str) -> list[Conflict]:
    """Correct the canonical forms of the users that match, read in this order and written in
    batches. Return the conflicts."""
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
    """Write the batch in one bulk write. Changes that the database rejects, as by the unique index,
    are tried again one by one (`_write_one`). Return the conflicts; an empty list for an empty
    batch."""
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
    """Set one canonical form, and return the conflicts.

    If the unique index rejects it because another user rightly has this form, removes the form of
    this user and returns that conflict. If the other user's stored form is outdated, corrects that
    first and then tries again.
    """
    users, name = User.get_motor_collection(), f"canonical_{field}"
    try:
        await users.update_one(*_update(row, field, canonical))
    except DuplicateKeyError:
        holder = await users.find_one({name: canonical}, LOOKED_AT)
        if holder and _form(holder, field) == canonical:
            await users.update_one(*_update(row, field, None))
            owners = str(holder.get("username")), str(row.get("username"))
            return [Conflict(field, str(row[field]), *owners)]
        # The other user was deleted, or its form is outdated.
        freed = await _write_one(holder, field, _form(holder, field)) if holder else []
        return freed + await _write_one(row, field, canonical)
    return []


def _update(row: Row, field: str, canonical: str | None) -> tuple[Row, Row]:
    """Return the filter and the update that sets one form, or removes it if `canonical` is None.
    The filter matches nothing if the user has changed since the row was read."""
    name = f"canonical_{field}"
    unchanged = {"_id": row["_id"], field: row.get(field), name: row.get(name)}
    return unchanged, {"$set": {name: canonical}} if canonical else {"$unset": {name: ""}}


def _form(row: Row, field: str) -> str | None:
    """Return the canonical form of the stored value; None if the value is missing or its form is
    empty.
    """
    stored = row.get(field)
    return (FORMS[field](stored) or None) if isinstance(stored, str) else None
