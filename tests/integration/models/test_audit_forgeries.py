"""What somebody can do to the audit log who knows how its hash chain is computed, and is found."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any

import pytest
from beanie import PydanticObjectId
from bson import DBRef
from structlog.testing import capture_logs

from quartapp import clock
from quartapp.activities import ACCOUNT_DELETED, ROLE_CREATED, ROLE_GRANTED, USER_INVITED
from quartapp.db.mongo import Database
from quartapp.jobs import audit_sealer
from quartapp.jobs.audit_sealer import AuditSealer
from quartapp.models.accounts.user import User
from quartapp.models.audit import seal as seals
from quartapp.models.audit import verification as verifying
from quartapp.models.audit.entry_faults import GRACE
from quartapp.models.audit.entry_hash import commitment_fields, hash_of
from quartapp.models.audit.event import Event
from quartapp.models.audit.seal import root_of, seal_hash
from quartapp.models.base.actor import SYSTEM
from quartapp.models.base.record import first_id_at
from quartapp.models.privacy import account_deletion
from tests.integration.models.helpers import not_none, register
from tests.integration.models.test_audit_chain import (
    ADA,
    DAY,
    only_fault,
    record,
    sealed,
    verified,
)

STEP = GRACE - timedelta(seconds=1)


async def append_seal(db: Database, entries: list[dict[str, Any]], **fields: Any) -> int:
    """Append a seal of these entries as a worker does, but with these fields."""
    head = not_none(await db["seals"].find_one({}, sort=[("_id", -1)]))
    seal = {
        **{name: head[name] for name in ("since", "adopted_to")},
        "_id": head["_id"] + 1,
        "at": clock.now(),
        "previous": head["hash"],
        "previous_at": head["at"],
        "root": root_of(entries),
        "complete": True,
        "adopts": False,
        **fields,
    }
    await db["seals"].insert_one({**seal, "hash": seal_hash(seal), "entries": entries})
    return head["_id"] + 1


async def insert_entry(db: Database, **fields: Any) -> dict[str, Any]:
    """Insert an entry past the application; return what a seal has of it."""
    row = {"_id": PydanticObjectId(), "at": clock.now(), "verb": "x", "details": {}, **fields}
    row |= commitment_fields(row)
    await db["events"].insert_one(row)
    return {"id": row["_id"], "hash": hash_of(row)}


# ---- seals that follow correctly from the one before


async def test_a_seal_cannot_open_the_time_without_hashes_again(db: Database) -> None:
    await sealed()
    at = clock.now() - 100 * DAY
    await db["seals"].update_one({"_id": 1}, [{"$set": {"at": at, "since": at}}])
    first = not_none(await db["seals"].find_one({"_id": 1}))
    await db["seals"].update_one({"_id": 1}, {"$set": {"hash": seal_hash(first)}})
    entry = await insert_entry(db, _id=first_id_at(clock.now() - DAY))
    number = await append_seal(db, [entry], since=clock.now(), adopts=True)
    _, faults = await verified()
    assert f"seal {number} gives another time for the first seal" in faults


async def test_the_first_seal_cannot_be_dated_by_its_start(db: Database) -> None:
    await sealed()
    row = not_none(await db["seals"].find_one({"_id": 1})) | {"since": clock.now() + DAY}
    await db["seals"].replace_one({"_id": 1}, row | {"hash": seal_hash(row)})
    assert await only_fault() == "seal 1 gives another time for the first seal"


async def test_seals_that_go_back_in_small_steps_are_found(db: Database) -> None:
    """Otherwise an entry could be inserted with an earlier date afterwards."""
    await sealed()
    at = clock.now()
    for step in (1, 2):
        number = await append_seal(db, [], at=at - step * STEP)
    await append_seal(db, [await insert_entry(db, _id=first_id_at(at - 2 * STEP))])
    _, faults = await verified()
    assert f"seal {number} is older than a seal before it" in faults
    assert "was inserted later than it says" in faults[-1]


async def test_a_seal_with_a_time_in_the_future_is_found(db: Database) -> None:
    await sealed()
    number = await append_seal(db, [], at=clock.now() + DAY)
    assert await only_fault() == f"seal {number} has a time in the future"


async def test_a_seal_cannot_excuse_that_those_before_it_are_missing(db: Database) -> None:
    await sealed()
    number = await append_seal(db, [], previous_at=clock.now() - 2 * seals.SEALS_KEPT)
    assert await only_fault() == f"seal {number} gives another time for seal {number - 1}"


@pytest.mark.parametrize("field", ["_id", "at"])
async def test_an_entry_dated_later_than_its_seal_is_found(db: Database, field: str) -> None:
    await sealed()
    later = clock.now() + DAY
    entry = await insert_entry(db, **{field: first_id_at(later) if field == "_id" else later})
    number = await append_seal(db, [entry])
    assert await only_fault() == (
        f"entry {entry['id']} of seal {number} was inserted earlier than it says"
    )


async def test_receipts_written_into_an_entry_are_found(db: Database) -> None:
    entry = (await sealed())[0].id
    await db["events"].update_one({"_id": entry}, {"$set": {"counted_tabs": 3}})
    assert not (await verified())[1], "a worker of an earlier version may have written them"
    start = not_none(await db["seals"].find_one({"_id": 1})) | {"at": clock.now() - 8 * DAY}
    start |= {"since": start["at"]}
    await db["seals"].replace_one({"_id": 1}, start | {"hash": seal_hash(start)})
    _, faults = await verified()
    assert f"entry {entry} of seal 1 was changed: counted_tabs" in faults


async def test_a_worker_notices_that_the_end_of_the_chain_was_removed(db: Database) -> None:
    job = AuditSealer()
    await record()
    with capture_logs() as lines:
        await job.run()
        await job.run()
        assert all(line["event"] == "audit_sealed" for line in lines)
        newest = not_none(await seals.newest())
        await db["seals"].delete_one({"_id": newest.number})
        await db["events"].delete_many({})
        await record()
        await job.run()
        await job.run()
    assert not (await verified())[1], "the database does not show it"
    (said,) = [line for line in lines if line["event"] == "audit_chain_changed"]
    assert (said["seal"], said["hash"]) == (newest.number, newest.hash)


# ---- values that were erased


async def erase(user: User) -> None:
    past = clock.now() - timedelta(seconds=1)
    await User.change({"_id": user.id}, {"$set": {"deletes_at": past}})
    assert await account_deletion.erase(not_none(await account_deletion.claim()))
    await audit_sealer.seal_all()


async def hide_details(db: Database, entry: PydanticObjectId, account: PydanticObjectId) -> None:
    """Write what erasing the account writes."""
    blank = {"$set": {"details": {}, "erased_for": [account]}, "$unset": {"salts.details": ""}}
    await db["events"].update_one({"_id": entry}, blank)


async def test_the_details_of_invitations_are_erased_with_the_account(db: Database) -> None:
    user = await register("ada")
    invited = await Event.record(USER_INVITED, by=ADA, email=user.email)
    await audit_sealer.seal_all()
    await erase(user)
    row = not_none(await db["events"].find_one({"_id": invited.id}))
    assert "email" not in row["details"]
    deletion = not_none(await db["events"].find_one({"verb": ACCOUNT_DELETED.audit}))
    assert deletion["details"]["erased"] == [invited.id]
    assert not (await verified())[1]


@pytest.mark.parametrize("activity", [ROLE_CREATED, USER_INVITED])
async def test_the_deletion_of_another_account_does_not_excuse_erasing(
    db: Database, activity: Any
) -> None:
    user = await register("ada")
    details = {"permissions": ["users.manage"], "email": "bob@example.org"}
    if activity is ROLE_CREATED:
        del details["email"]
    entry = await Event.record(activity, by=ADA, **details)
    await audit_sealer.seal_all()
    await erase(user)
    await hide_details(db, entry.id, user.id)
    assert await only_fault() == f"entry {entry.id} lost values, but the account was not deleted"


async def hide_address(db: Database, entry: PydanticObjectId) -> None:
    await db["events"].update_one(
        {"_id": entry}, {"$set": {"ip": None}, "$unset": {"salts.ip": ""}}
    )


async def forge_deletion(account: PydanticObjectId) -> None:
    await Event.record(ACCOUNT_DELETED, by=SYSTEM, subject=account, erased=[])
    await audit_sealer.seal_all()


async def test_a_deletion_of_an_account_that_exists_excuses_nothing(db: Database) -> None:
    user = await register("bob")
    entry = await Event.record(ROLE_GRANTED, by=ADA.known_as(user.id, "bob"), subject=user.id)
    await forge_deletion(user.id)
    await hide_address(db, entry.id)
    assert await only_fault() == f"entry {entry.id} lost values, but the account was not deleted"
    # As while an account is erased, but it is not due.
    await db["users"].update_one({"_id": user.id}, {"$set": {"erasing_until": clock.now() + DAY}})
    assert await only_fault() == f"entry {entry.id} lost values, but the account was not deleted"


async def test_a_deletion_excuses_no_entry_that_is_newer(
    db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    account = PydanticObjectId()
    await forge_deletion(account)
    later = clock.now() + DAY
    monkeypatch.setattr(clock, "now", lambda: later)
    entry = await insert_entry(
        db, _id=first_id_at(later), actor=DBRef("users", account), ip="192.0.2.1"
    )
    await db["unsealed"].insert_one({"_id": entry["id"], "hash": entry["hash"]})
    await audit_sealer.seal_all()
    await hide_address(db, entry["id"])
    assert await only_fault() == f"entry {entry['id']} lost values, but the account was not deleted"


# ---- documents that cannot be read

Tampering = Callable[[Database, PydanticObjectId], Awaitable[Any]]
UNREADABLE: dict[str, tuple[Tampering, str]] = {
    "the entries of a seal": (
        lambda db, _: db["seals"].update_one({"_id": 1}, {"$set": {"entries": None}}),
        "seal 1 was changed: it cannot be read",
    ),
    "the time of a seal": (
        lambda db, _: db["seals"].update_one({"_id": 1}, {"$set": {"at": "now"}}),
        "seal 1 was changed: it cannot be read",
    ),
    "the number of a seal": (
        lambda db, _: db["seals"].insert_one({"_id": "last"}),
        "seal last was changed: it cannot be read",
    ),
    "a seal of no number": (
        lambda db, _: db["seals"].insert_one({"_id": float("inf")}),
        "seal inf was changed: it cannot be read",
    ),
    "the id of one entry of a seal": (
        lambda db, _: db["seals"].update_one({"_id": 1}, {"$unset": {"entries.0.id": ""}}),
        "seal 1 was changed: it cannot be read",
    ),
    "the hash of one entry of a seal": (
        lambda db, _: db["seals"].update_one({"_id": 1}, {"$unset": {"entries.0.hash": ""}}),
        "seal 1 was changed: it cannot be read",
    ),
    "the list of entries of a seal": (
        lambda db, entry: db["seals"].update_one({"_id": 1}, {"$set": {"entries": {"id": entry}}}),
        "seal 1 was changed: it cannot be read",
    ),
    "the details of an entry": (
        lambda db, entry: db["events"].update_one({"_id": entry}, {"$set": {"details": "x"}}),
        "entry {} of seal 1 was changed: it cannot be read",
    ),
    "the actor of an entry": (
        lambda db, entry: db["events"].update_one(
            {"_id": entry}, {"$set": {"actor": "x", "ip": None}, "$unset": {"salts.ip": ""}}
        ),
        "entry {} of seal 1 was changed: it cannot be read",
    ),
    "the time of an entry": (
        lambda db, entry: db["events"].update_one({"_id": entry}, {"$set": {"at": 1}}),
        "entry {} of seal 1 was changed",
    ),
    "a hash that waits": (
        lambda db, _: db["unsealed"].insert_one({"_id": PydanticObjectId(bytes(12)), "hash": 1}),
        "the hash of entry 000000000000000000000000, which waits for a seal, was changed",
    ),
    "an id that waits": (
        lambda db, _: db["unsealed"].insert_one({"_id": "x", "hash": bytes(32)}),
        "the hash of entry x, which waits for a seal, was changed",
    ),
    "an id that waits and is a document": (
        lambda db, _: db["unsealed"].insert_one({"_id": {"a": 1}, "hash": bytes(32)}),
        "the hash of entry {{'a': 1}}, which waits for a seal, was changed",
    ),
    "the id of an entry": (
        lambda db, _: db["events"].insert_one({"_id": "x", "at": clock.now()}),
        "entry x is in no seal: it was inserted past the application",
    ),
    "the id of an entry, a document": (
        lambda db, _: db["events"].insert_one({"_id": {"a": 1}, "at": clock.now()}),
        "entry {{'a': 1}} is in no seal: it was inserted past the application",
    ),
    "an entry of no seal": (
        lambda db, _: db["events"].insert_one({"_id": first_id_at(clock.now() - DAY), "at": 1}),
        "",
    ),
}


@pytest.mark.parametrize("what", UNREADABLE)
async def test_a_document_that_cannot_be_read_is_a_fault(db: Database, what: str) -> None:
    tamper, expected = UNREADABLE[what]
    entry = (await sealed())[0].id
    await tamper(db, entry)
    _, faults = await verified()
    assert not expected or expected.format(entry) in faults
    await record()
    if what in ("the entries of a seal", "the time of a seal"):
        return
    await audit_sealer.seal_all()
    found, _ = await verified()
    assert not_none(found.newest)["_id"] >= 2, "sealing goes on"


# ---- retention


async def test_seals_are_deleted_without_a_gap(
    db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A clock that is behind dates a seal earlier than the one before."""
    await sealed(4, size=1)
    at = clock.now()
    limit = timedelta(minutes=1)
    for number, age in {1: 3, 2: 0, 3: 3}.items():
        when = {"$set": {"at": at - age * limit}}
        await db["seals"].update_one({"_id": number}, when)
    monkeypatch.setattr(seals, "SEALS_KEPT", limit)
    assert await seals.expire_seals() == 1
    assert await db["seals"].distinct("_id") == [2, 3, 4]


# ---- size


async def test_many_small_seals_are_read_in_few_queries(
    db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    await sealed(30, size=1)
    entries, asked = verifying._entries, []

    async def ask(ids: Any) -> Any:
        asked.append(len(ids))
        return await entries(ids)

    monkeypatch.setattr(verifying, "_entries", ask)
    monkeypatch.setattr(verifying, "BATCH", 12)
    said = []
    verification = verifying.Verification(on_progress=lambda: said.append(verification.entries))
    assert [fault async for fault in verification.faults()] == []
    assert asked == [12, 12, 6]
    assert said[:3] == [12, 24, 30]
