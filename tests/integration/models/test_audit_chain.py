"""The hash chain of the audit log, and its verification."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from datetime import timedelta
from typing import Any

import pytest
from beanie import PydanticObjectId
from bson import DBRef, ObjectId

from quartapp import clock
from quartapp.activities import POST_REMOVED, ROLE_GRANTED, SIGNED_IN
from quartapp.db.mongo import Database
from quartapp.jobs import audit_sealer
from quartapp.models.accounts.user import User
from quartapp.models.audit import seal as seals
from quartapp.models.audit.entry_hash import LASTING, commitment_fields, hash_of
from quartapp.models.audit.event import Event
from quartapp.models.audit.event_receipts import KEPT
from quartapp.models.audit.seal import Seal, seal_hash
from quartapp.models.audit.verification import Verification
from quartapp.models.base.actor import Actor
from quartapp.models.base.record import first_id_at
from quartapp.models.privacy import account_deletion
from tests.integration.models.helpers import concurrently, register

DAY = timedelta(days=1)
IDS = [PydanticObjectId(bytes([1] * 11 + [n])) for n in range(3)]
ADA, BOB = Actor(IDS[0], "ada", ip="192.0.2.1"), Actor(IDS[1], "bob", ip="192.0.2.2")


async def record(count: int = 1, **details: Any) -> list[Event]:
    details = {"role": "editor", "device": "Firefox", **details}
    return [
        await Event.record(ROLE_GRANTED, by=ADA, subject=BOB.user_id, **details)
        for _ in range(count)
    ]


async def sealed(batches: int = 1, size: int = 3) -> list[Event]:
    """Record entries and seal them, in this many seals."""
    entries = []
    for _ in range(batches):
        entries += await record(size)
        await audit_sealer.seal_all()
    return entries


async def verified(*expected: str) -> tuple[Verification, list[str]]:
    verification = Verification(expected)
    return verification, [fault async for fault in verification.faults()]


async def only_fault() -> str:
    _, (fault,) = await verified()
    return fault


# ---- sealing


async def test_an_unchanged_log_has_no_faults(db: Database) -> None:
    entries = await sealed(2)
    await record()
    found, faults = await verified()
    assert not faults
    assert (found.entries, found.waiting, found.seals, found.erased) == (len(entries), 1, 2, 0)
    assert await db["unsealed"].count_documents({}) == 1


async def test_concurrent_writers_and_sealers_leave_one_chain(db: Database) -> None:
    async def seal_often() -> None:
        for _ in range(6):
            await audit_sealer.seal_all()

    await concurrently(*(record(10) for _ in range(8)), seal_often(), seal_often())
    await audit_sealer.seal_all()
    found, faults = await verified()
    assert not faults
    assert (found.entries, found.waiting) == (80, 0)
    numbers = [row["_id"] async for row in db["seals"].find({}).sort("_id", 1)]
    assert numbers == list(range(1, len(numbers) + 1))


async def test_an_aborted_transaction_leaves_nothing_to_seal(db: Database) -> None:
    event = Event.of(ROLE_GRANTED, by=ADA)
    await event.insert()
    with pytest.raises(Exception, match="duplicate key"):
        await event.insert()
    assert await db["unsealed"].count_documents({}) == 1


async def test_a_long_backlog_is_sealed_in_batches(
    db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(seals, "BATCH", 4)
    await sealed(1, size=10)
    counts = [(len(row["entries"]), row["complete"]) async for row in db["seals"].find({})]
    assert counts == [(4, False), (4, False), (2, True)]
    assert not (await verified())[1]


async def test_entries_of_earlier_versions_are_sealed_once(
    db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(seals, "BATCH", 4)
    old = [
        {
            "_id": first_id_at(clock.now() - n * DAY),
            "verb": SIGNED_IN.audit,
            "actor": DBRef("users", ADA.user_id),
            "subject": None,
            "ip": "192.0.2.1",
            "at": clock.now() - n * DAY,
            "details": {"device": "Firefox"},
            "receipts": [],
        }
        for n in range(1, 7)
    ]
    await db["events"].insert_many(old)
    await record(2)
    found, faults = await verified()
    assert (faults, found.waiting) == ([], 8)
    adopted_to = await audit_sealer.seal_all()
    await audit_sealer.seal_all(adopted_to)
    found, faults = await verified()
    assert (faults, found.entries, found.waiting) == ([], 8, 0)
    await db["events"].update_one({"_id": old[0]["_id"]}, {"$set": {"details.device": "x"}})
    assert "was changed: details.device" in await only_fault()


async def test_the_chain_outlives_its_oldest_seals(
    db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    await sealed(3, size=1)
    later = clock.now() + seals.SEALS_KEPT + DAY
    monkeypatch.setattr(clock, "now", lambda: later)
    # What the TTL index does.
    await db["events"].delete_many({})
    found, faults = await verified()
    assert (faults, found.expired) == ([], 3)
    assert await seals.expire_seals() == 2
    assert await seals.expire_seals() == 0, "the newest stays"
    await sealed(1)
    found, faults = await verified()
    assert (faults, found.seals, found.entries) == ([], 2, 3)


# ---- tampering with entries

CHANGES: dict[str, dict[str, Any]] = {
    "the kind": {"verb": "role.revoked"},
    "the actor": {"actor": DBRef("users", IDS[2])},
    "the subject": {"subject": None},
    "the session": {"session": ObjectId()},
    "the address": {"ip": "192.0.2.9"},
    "the time": {"at": clock.now() + DAY},
    "a detail that stays": {"details.role": "admin"},
    "a detail that can be erased": {"details.device": "Chrome"},
    "a new detail": {"details.new": 1},
    "all details": {"details": {}},
    "a salt": {"salts.ip": b"0123456789abcdef"},
    "a commitment": {"commitments.ip": bytes(32)},
    "a new field": {"new": 1},
}


@pytest.mark.parametrize("waiting", [False, True], ids=["sealed", "waiting"])
async def test_a_change_of_any_field_is_found(db: Database, waiting: bool) -> None:
    entries = await record(3) if waiting else await sealed()
    tampered = entries[1].id
    before = await db["events"].find_one({"_id": tampered})
    assert before is not None
    for what, change in CHANGES.items():
        await db["events"].update_one({"_id": tampered}, {"$set": change})
        _, faults = await verified()
        assert faults, what
        assert all(str(tampered) in fault for fault in faults), what
        await db["events"].replace_one({"_id": tampered}, before)
    assert not (await verified())[1]


async def test_a_removed_entry_is_found(db: Database) -> None:
    gone = (await sealed())[1].id
    waits = (await record())[0].id
    await db["events"].delete_many({"_id": {"$in": [gone, waits]}})
    _, faults = await verified()
    assert faults == [
        f"entry {gone} of seal 1 is missing",
        f"entry {waits}, which waits for a seal, is missing",
    ]


async def test_an_entry_inserted_past_the_application_is_found(
    db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    await sealed()
    monkeypatch.setattr(seals, "ADOPTING", timedelta(0))
    monkeypatch.setattr("quartapp.models.audit.verification.ADOPTING", timedelta(0))
    forged = Event.of(ROLE_GRANTED, by=ADA).model_dump(include={"verb", "at"})
    forged = {"_id": PydanticObjectId(), **forged, "details": {}}
    await db["events"].insert_one(forged)
    await audit_sealer.seal_all()
    assert "is in no seal: it was inserted past the application" in await only_fault()


async def test_a_backdated_entry_is_found_though_it_is_sealed(db: Database) -> None:
    await sealed()
    for field in ("_id", "at"):
        before = clock.now() - DAY
        dated = {"_id": first_id_at(before)} if field == "_id" else {"at": before}
        forged = {"_id": PydanticObjectId(), "at": clock.now(), "verb": "x", "details": {}, **dated}
        forged |= commitment_fields(forged)
        await db["events"].insert_one(forged)
        await db["unsealed"].insert_one({"_id": forged["_id"], "hash": hash_of(forged)})
        await audit_sealer.seal_all()
        _, faults = await verified()
        assert f"entry {forged['_id']} of seal" in faults[-1]
        assert "was inserted later than it says" in faults[-1]


# ---- tampering with seals


async def reseal(db: Database, number: int, **fields: Any) -> None:
    """Change a seal and compute its hash again."""
    row = await db["seals"].find_one({"_id": number})
    assert row is not None
    row |= fields
    row["root"] = seals.root_of(row["entries"])
    await db["seals"].replace_one({"_id": number}, row | {"hash": seal_hash(row)})


async def swap(db: Database) -> None:
    second, third = [row async for row in db["seals"].find({"_id": {"$in": [2, 3]}}).sort("_id", 1)]
    await db["seals"].replace_one({"_id": 2}, third | {"_id": 2})
    await db["seals"].replace_one({"_id": 3}, second | {"_id": 3})


async def reorder_entries(db: Database) -> None:
    row = await db["seals"].find_one({"_id": 2})
    assert row is not None
    await db["seals"].update_one({"_id": 2}, {"$set": {"entries": row["entries"][::-1]}})


async def insert_seal(db: Database) -> None:
    row = await db["seals"].find_one({"_id": 4})
    assert row is not None
    await db["seals"].insert_one(row | {"_id": 5})


SEAL_CHANGES: dict[str, tuple[Callable[[Database], Coroutine[Any, Any, Any]], str]] = {
    "removed": (lambda db: db["seals"].delete_one({"_id": 2}), "seal 2 is missing"),
    "several removed": (
        lambda db: db["seals"].delete_many({"_id": {"$lt": 3}}),
        "seals 1 to 2 are missing",
    ),
    "time changed": (
        lambda db: db["seals"].update_one({"_id": 2}, {"$set": {"at": clock.now() - DAY}}),
        "seal 2 was changed",
    ),
    "entries removed": (
        lambda db: db["seals"].update_one({"_id": 2}, {"$set": {"entries": []}}),
        "seal 2 was changed",
    ),
    "rewritten": (lambda db: reseal(db, 2, entries=[]), "seal 3 does not follow from seal 2"),
    "swapped": (swap, "seal 2 does not follow from seal 1"),
    "entries reordered": (reorder_entries, "seal 2 was changed"),
    "inserted": (insert_seal, "seal 5 does not follow from seal 4"),
}


@pytest.mark.parametrize("change", SEAL_CHANGES)
async def test_a_change_of_a_seal_is_found(db: Database, change: str) -> None:
    await sealed(4, size=2)
    work, expected = SEAL_CHANGES[change]
    await work(db)
    _, faults = await verified()
    assert expected in faults


async def test_a_removed_end_is_found_by_the_hash_of_a_seal(db: Database) -> None:
    await sealed(3, size=1)
    newest = await db["seals"].find_one({"_id": 3})
    assert newest is not None
    digest = newest["hash"].hex()
    assert not (await verified(digest))[1]
    await db["seals"].delete_one({"_id": 3})
    await db["events"].delete_one({"_id": newest["entries"][0]["id"]})
    assert not (await verified())[1]
    _, (fault,) = await verified(digest)
    assert fault.startswith(f"no seal has the hash {digest}")


# ---- erasing


async def erased_accounts(db: Database) -> User:
    """Record what two users did, and delete the account of one of them."""
    ada, bob = await register("ada"), await register("bob")
    by = Actor(ada.id, "ada", ip="192.0.2.1")
    for subject in (ada, bob):
        await Event.record(SIGNED_IN, by=by, subject=subject.id, device="Firefox")
    await Event.record(POST_REMOVED, by=by, subject=bob.id, title="Secret", author=ada.id)
    await audit_sealer.seal_all()
    past = clock.now() - timedelta(seconds=1)
    await User.change({"_id": ada.id}, {"$set": {"deletes_at": past}})
    claimed = await account_deletion.claim()
    assert claimed is not None
    assert await account_deletion.erase(claimed)
    return ada


async def test_erasing_an_account_keeps_the_chain_valid(db: Database) -> None:
    ada = await erased_accounts(db)
    async for row in db["events"].find({"actor.$id": ada.id}):
        assert row["ip"] is None
        assert "ip" not in row.get("salts", {})
    assert await db["events"].count_documents({"details.title": "Secret"}) == 0
    found, faults = await verified()
    assert not faults
    assert found.erased >= 3
    await audit_sealer.seal_all()
    assert not (await verified())[1]


async def test_erasing_without_a_deleted_account_is_found(db: Database) -> None:
    entry = (await sealed())[0].id
    await db["events"].update_one(
        {"_id": entry}, {"$set": {"ip": None}, "$unset": {"salts.ip": ""}}
    )
    assert await only_fault() == f"entry {entry} lost values, but the account was not deleted"


async def test_a_forged_deletion_does_not_excuse_erasing(
    db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = (await sealed())[0].id
    await db["events"].update_one(
        {"_id": entry}, {"$set": {"ip": None}, "$unset": {"salts.ip": ""}}
    )
    subject = DBRef("users", ADA.user_id)
    forged = {"verb": "user.erased", "subject": subject, "at": clock.now(), "details": {}}
    await db["events"].insert_one({"_id": PydanticObjectId(), **forged})
    _, faults = await verified()
    assert f"entry {entry} lost values, but the account was not deleted" in faults


async def test_only_lasting_details_are_hashed_themselves(db: Database) -> None:
    (event,) = await record(email="bob@example.org")
    row = await db["events"].find_one({"_id": event.id})
    assert row is not None
    assert set(row["commitments"]["details"]) == {"device", "email"}
    assert not set(row["commitments"]["details"]) & set(LASTING)


# ---- append only


@pytest.mark.parametrize("document", [Event, Seal])
async def test_a_document_of_the_log_has_no_method_that_changes_it(
    db: Database, document: type[Event] | type[Seal]
) -> None:
    for method in ("change", "change_all", "erase"):
        with pytest.raises(TypeError, match="never changed"):
            await getattr(document, method)({}, {})
    (event,) = await record()
    for method in ("save", "update", "replace", "delete"):
        with pytest.raises(TypeError, match="never changed"):
            await getattr(event, method)()


async def test_a_write_past_these_methods_is_found() -> None:
    from tests.query_plans import forbidden_write

    origin = "models/audit/event.py, of"
    erasing = "models/audit/erasing.py, erase_titles"
    for command in (
        {"update": "events", "updates": []},
        {"delete": "events", "deletes": []},
        {"findAndModify": "seals"},
        {"delete": "seals", "deletes": []},
        {"drop": "events"},
        {"aggregate": "users", "pipeline": [{"$merge": {"into": "events"}}]},
        {"aggregate": "users", "pipeline": [{"$out": "seals"}]},
    ):
        assert forbidden_write(command, origin), command
    assert forbidden_write({"update": "events"}, erasing) is None
    assert forbidden_write({"insert": "events"}, origin) is None
    assert forbidden_write({"update": "users"}, origin) is None


def test_entries_are_kept_for_less_time_than_their_seals() -> None:
    assert KEPT < seals.SEALS_KEPT
