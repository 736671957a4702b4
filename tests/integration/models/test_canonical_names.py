"""All spellings of a username or of an email address lead to one account."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any

import pytest

from quartapp import clock, models
from quartapp.db.mongo import Database
from quartapp.models import Invitation, Role, User
from quartapp.models.accounts import canonical
from quartapp.models.accounts.account import Taken, address_fields
from quartapp.models.accounts.registration import register as register_account
from quartapp.models.base.actor import SYSTEM
from quartapp.models.invitations.invitation import InvitedAlready
from tests.integration.models.helpers import concurrently, not_none, reloaded

UNICODE, ASCII = "ada@bücher.example", "ada@xn--bcher-kva.example"
SPELLINGS = [UNICODE, ASCII, "ADA@BÜCHER.EXAMPLE", "Ada@XN--BCHER-KVA.example"]
ALIKE = ["b\u00adob", "b\u200bob", "bob\u200d", "ｂｏｂ", "bob\0"]  # noqa: RUF001


def without_canonical_names(name: str, email: str, days_ago: int = 0) -> dict[str, Any]:
    """Return a user document as a version without canonical names writes it."""
    at = clock.now() - timedelta(days=days_ago)
    return {"username": name, "email": email, "password_hash": "hash", "created_at": at}


async def register(name: str, email: str) -> User:
    return await register_account(name, email, "hash", roles=[], by=SYSTEM)


@pytest.mark.parametrize("stored", SPELLINGS)
async def test_each_spelling_of_an_address_finds_its_account(db: Database, stored: str) -> None:
    ada = await register("ada", stored)
    for typed in SPELLINGS:
        assert not_none(await User.by_login(typed)).id == ada.id
        with pytest.raises(Taken, match="address is taken"):
            await register("other", typed)


async def test_concurrent_registrations_of_one_mailbox_create_one_account(db: Database) -> None:
    for number in range(5):
        spelled = [f"{number}{SPELLINGS[i % 4]}" for i in range(20)]
        wanted = [register(f"a{number}-{i}", email) for i, email in enumerate(spelled)]
        assert len(await concurrently(*wanted, unless=Taken)) == 1


@pytest.mark.parametrize("typed", ALIKE)
async def test_names_with_invisible_characters_match_no_account(db: Database, typed: str) -> None:
    await register("bob", "bob@example.org")
    await Role.add("bob", "", [], by=SYSTEM)
    assert await User.by_login(typed) is None
    assert await User.by_login(f"{typed}@example.org") is None
    assert await Role.named(typed) is None
    assert not_none(await Role.named("BOB")).name == "bob"


async def test_an_account_without_canonical_names_is_found(db: Database) -> None:
    """An older version or another program wrote it after the database was prepared."""
    await db["users"].insert_many(
        [without_canonical_names("Ada", ASCII), without_canonical_names("Bob", "Bob@Example.org")]
    )
    for typed in ("ADA", *SPELLINGS):
        assert not_none(await User.by_login(typed)).username == "Ada"
    for typed in ("bob", "BOB@example.ORG"):
        assert not_none(await User.by_login(typed)).username == "Bob"
    assert await User.by_login("b\u00adob") is None


async def test_an_address_edited_in_the_database_finds_its_account(db: Database) -> None:
    """The stored canonical form is wrong until the next `quartapp migrate`."""
    ada = await register("ada", "ada@example.org")
    by_hand = {"email": "Ada@New.example", "username": "Countess"}
    await db["users"].update_one({"_id": ada.id}, {"$set": by_hand})
    for typed in ("ada@new.example", "countess"):
        assert not_none(await User.by_login(typed)).id == ada.id
    for typed in ("ada@example.org", "ada"):
        assert await User.by_login(typed) is None
    assert await canonical.correct_all() == []
    stored = not_none(await reloaded(ada))
    assert (stored.canonical_username, stored.canonical_email) == ("countess", "ada@new.example")
    await register("ada", "ada@example.org")


async def test_preparing_fills_in_missing_canonical_names(
    db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(canonical, "BATCH", 3)
    await db["users"].insert_many(
        [without_canonical_names(f"User{i}", f"User{i}@bücher{i}.example") for i in range(10)]
    )
    await models.prepare()
    rows = await db["users"].find({}).to_list(None)
    assert {row["canonical_username"] for row in rows} == {f"user{i}" for i in range(10)}
    assert all(row["canonical_email"].startswith(row["canonical_username"]) for row in rows)
    assert {row["email"] for row in rows} == {f"User{i}@bücher{i}.example" for i in range(10)}


async def test_accounts_without_canonical_names_are_found_by_index(db: Database) -> None:
    await db["users"].insert_many(
        [without_canonical_names(f"u{i}", f"u{i}@b.org") for i in range(10)]
    )
    await models.prepare()
    looked = db["users"].find({"canonical_email": None}).sort("created_at", 1)
    assert "not_canonical" in str((await looked.explain())["queryPlanner"]["winningPlan"])


@pytest.mark.parametrize("younger_first", [False, True])
async def test_the_older_of_two_accounts_with_one_mailbox_signs_in_by_address(
    db: Database, younger_first: bool
) -> None:
    rows = [
        without_canonical_names("older", UNICODE, 9),
        without_canonical_names("younger", ASCII, 1),
    ]
    rows.append(without_canonical_names("third", "third@example.org"))
    await db["users"].insert_many(rows[::-1] if younger_first else rows)
    (conflict,) = await canonical.fill_in()
    assert all(word in str(conflict) for word in ("older", "younger", ASCII, "older only"))
    for typed in SPELLINGS:
        assert not_none(await User.by_login(typed)).username == "older"
    assert not_none(await User.by_login("younger")).email == ASCII
    assert not_none(await User.by_login("third@EXAMPLE.org")).canonical_email == "third@example.org"
    # The conflict is reported at each start, until one of the addresses changes.
    assert await canonical.fill_in() == await canonical.correct_all() == [conflict]
    change = {"$set": address_fields("older@example.org")}
    await db["users"].update_one({"username": "older"}, change)
    assert not_none(await User.by_login(UNICODE)).username == "younger"
    assert await canonical.fill_in() == []
    with pytest.raises(Taken):
        await register("other", UNICODE)


async def test_a_stale_canonical_name_is_corrected(db: Database) -> None:
    stale = await register("stale", "wanted@example.org")
    await db["users"].update_one({"_id": stale.id}, {"$set": {"email": "other@example.org"}})
    await db["users"].insert_one(without_canonical_names("owner", "wanted@example.org"))
    assert await canonical.fill_in() == []
    assert not_none(await reloaded(stale)).canonical_email == "other@example.org"
    assert (
        not_none(await User.by_email("wanted@example.org")).canonical_email == "wanted@example.org"
    )


async def test_documents_with_unexpected_types_do_not_stop_preparation(db: Database) -> None:
    odd: list[Any] = [None, 5, "", "a\0b", ["a@b.org"], "x" * 300]
    await db["users"].insert_many(
        [{"username": f"odd{i}", "email": email, "n": i} for i, email in enumerate(odd)]
    )
    await models.prepare()
    assert await db["users"].count_documents({"canonical_username": {"$ne": None}}) == len(odd)


async def test_all_spellings_of_an_address_share_one_invitation(db: Database) -> None:
    await Invitation.write(UNICODE, None, by=SYSTEM)
    for typed in SPELLINGS:
        with pytest.raises(InvitedAlready):
            await Invitation.write(typed, None, by=SYSTEM)
    await register("eve", "eve@xn--bcher-kva.example")
    with pytest.raises(Taken):
        await Invitation.write("eve@bücher.example", None, by=SYSTEM)


@pytest.mark.parametrize("text", [UNICODE, ASCII, "ada@büch", "ADA"])
async def test_the_admin_search_finds_an_account_by_each_spelling(db: Database, text: str) -> None:
    await register("ada", UNICODE)
    assert [user.username for user in await User.search(text)] == ["ada"]


LOOKUPS: dict[str, Callable[[str], Awaitable[object]]] = {
    "username": User.by_username,
    "email": User.by_email,
    "role": Role.named,
}


@pytest.mark.parametrize("lookup", LOOKUPS)
@pytest.mark.parametrize("text", ["", "x" * 10**6, "@" * 10**6, "a\ud800", "a@\udfff.org"])
async def test_text_that_is_no_valid_name_matches_no_account(
    db: Database, lookup: str, text: str
) -> None:
    assert await LOOKUPS[lookup](text) is None
