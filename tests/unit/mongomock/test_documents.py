from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from itertools import count
from typing import Any

import pytest
from beanie import PydanticObjectId

from quartapp import clock
from quartapp.models.accounts.credential import fingerprint
from quartapp.models.accounts.user import User
from quartapp.models.base import record
from quartapp.models.base.references import linked_id, role_ref, user_ref
from quartapp.models.base.tokens import digest_of, new_token
from quartapp.models.factors import recovery_codes, totp
from quartapp.models.posts.post import Post
from quartapp.models.roles.role import Role
from quartapp.policy import Permission


def post(body: str) -> Post:
    return Post(author=user_ref(PydanticObjectId()), title="t", body=body)


@pytest.mark.parametrize("turn", [0, 2**24 - 1])
def test_ids_of_all_workers_are_ordered_by_millisecond(
    monkeypatch: pytest.MonkeyPatch, turn: int
) -> None:
    moment = datetime(2026, 1, 1, 12, 0, 0, 999_000, UTC)
    monkeypatch.setattr(record, "_turns", count(2**23))
    monkeypatch.setattr(clock, "now", lambda: moment)
    one, next_of_it = record.new_id(), record.new_id()
    assert one < next_of_it
    assert one.generation_time == moment.replace(microsecond=0)
    # Another process has another counter.
    monkeypatch.setattr(record, "_turns", count(turn))
    monkeypatch.setattr(clock, "now", lambda: moment + timedelta(milliseconds=1))
    assert next_of_it < record.new_id()


@pytest.mark.parametrize(
    ("body", "excerpt"),
    [
        ("", ""),
        ("short", "short"),
        ("  two\n\n lines\t", "two lines"),
        ("x" * 200, "x" * 200),
        ("x" * 201, "x" * 200 + "…"),
        ("word " * 40, ("word " * 40).strip()),
        ("word " * 41, "word " * 39 + "word…"),
        ("ä" * 190 + " " + "ö" * 20, "ä" * 190 + "…"),
    ],
)
async def test_an_excerpt_is_one_line_cut_between_words(
    mocked: object, body: str, excerpt: str
) -> None:
    assert post(body).excerpt == excerpt


async def test_a_record_has_its_own_id_before_it_is_stored(mocked: object) -> None:
    first, second = post(""), post("")
    assert first.id != second.id
    await first.insert()
    found = await Post.get(first.id)
    assert found is not None
    assert found.id == first.id


async def test_a_stored_document_is_read_back_unchanged(mocked: object) -> None:
    user = User(username="Ada", email="Ada@Example.org", password_hash="hash")
    await user.insert()
    found = await User.get(user.id)
    assert found is not None
    assert found == user
    assert found.created_at.tzinfo is not None


async def test_a_change_applies_only_where_the_filter_matches(mocked: object) -> None:
    user = await User(username="ada", email="a@b.cd", password_hash="hash").insert()
    is_open = {"_id": user.id, "disabled_at": None}
    close = {"$set": {"disabled_at": user.created_at}}
    assert await User.change(is_open, close)
    assert not await User.change(is_open, close)
    assert await User.change_all({}, {"$inc": {"notice_seq": 1}}) == 1


async def test_concurrent_conditional_changes_succeed_once(mocked: object) -> None:
    user = await User(username="ada", email="a@b.cd", password_hash="hash").insert()
    changes = [
        User.change({"_id": user.id, "authz_version": 1}, {"$inc": {"authz_version": 1}})
        for _ in range(20)
    ]
    assert sum(await asyncio.gather(*changes)) == 1


async def test_a_document_is_erased_once(mocked: object) -> None:
    stored = await post("").insert()
    assert await Post.erase(stored.id)
    assert not await Post.erase(stored.id)
    assert await Post.get(stored.id) is None


async def test_references_are_stored_as_references(mocked: Any) -> None:
    stored = await post("").insert()
    raw = await mocked["posts"].find_one()
    assert raw["author"].collection == "users"
    assert raw["author"].id == stored.author_id
    assert user_ref(None) is None


async def test_a_link_has_the_same_id_fetched_or_not(mocked: object) -> None:
    user = User(username="ada", email="a@b.cd", password_hash="hash")
    assert linked_id(user) == user.id
    assert linked_id(Post(author=user_ref(user.id), title="", body="").author) == user.id


async def test_a_role_tells_known_permissions_from_unknown_ones(mocked: Any) -> None:
    words = ["posts.write", "moon.land", "posts.moderate"]
    await mocked["roles"].insert_one({"name": "editor", "permissions": words})
    found = await Role.find_one({})
    assert found is not None
    assert found.known == [Permission.POSTS_WRITE, Permission.POSTS_MODERATE]
    assert (found.permissions, found.unknown) == (words, ["moon.land"])


def test_a_token_is_random_and_stored_as_its_digest() -> None:
    tokens = [new_token() for _ in range(100)]
    assert len({token for token, _ in tokens}) == 100
    for token, digest in tokens:
        assert len(token) >= 43  # 256 bits in base64
        assert digest == digest_of(token)
        assert len(digest) == 64
        assert token not in digest


def test_app_secrets_and_recovery_codes_are_random() -> None:
    secrets = {totp.new_secret() for _ in range(20)}
    codes = {code for _ in range(20) for code in recovery_codes.make()}
    assert (len(secrets), len(codes)) == (20, 20 * recovery_codes.HOW_MANY)
    assert {len(secret) for secret in secrets} == {32}  # 160 bits in base32
    # 24 characters of 5 bits each. All of them occur in 200 codes, with near certainty.
    assert {len(recovery_codes.read(code)) for code in codes} == {24}
    assert set("".join(map(recovery_codes.read, codes))) == set(recovery_codes.ALPHABET)


def test_fingerprints_distinguish_hashes_and_do_not_contain_them() -> None:
    assert fingerprint("a") != fingerprint("b")
    assert "$2b$" not in fingerprint("$2b$")


async def test_fetching_links_keeps_documents_that_were_fetched_before(mocked: object) -> None:
    role, fetched = Role(name="editor"), Role(name="auditor")
    await role.insert()
    links: list[Any] = [role_ref(role.id), fetched, role_ref(PydanticObjectId())]
    user = User(username="ada", email="ada@example.org", password_hash="x", roles=links)
    for _ in range(2):
        await record.fetch_links([user], ["roles"])
        assert [getattr(each, "name", None) for each in user.roles] == ["editor", "auditor"]


async def test_links_to_documents_of_the_same_id_are_told_apart(mocked: object) -> None:
    same = PydanticObjectId()
    await User(id=same, username="ada", email="ada@example.org", password_hash="x").insert()
    await Role(id=same, name="editor").insert()
    bob = User(
        username="bob",
        email="bob@example.org",
        password_hash="x",
        roles=[role_ref(same)],
        authz_by=user_ref(same),
    )
    await record.fetch_links([bob], ["roles", "authz_by"])
    assert isinstance(bob.authz_by, User)
    assert [type(role) for role in bob.roles] == [Role]
