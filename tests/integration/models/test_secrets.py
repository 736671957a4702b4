"""No collection holds a password, a token or a key in clear."""

from __future__ import annotations

import base64
import hashlib
from typing import Any

import bcrypt
import pytest

from quartapp.db.mongo import Database
from quartapp.models.accounts.one_time_token import issue_setup, make_first_administrator
from quartapp.models.accounts.registration import register as register_account
from quartapp.models.base.actor import SYSTEM
from quartapp.models.posts.comment import Comment
from quartapp.models.posts.post import Post
from quartapp.models.roles.role import Role
from quartapp.models.sessions.reason import Reason
from quartapp.security.passwords import PasswordHasher
from tests.integration.models.helpers import acting, dump, end_reason, reloaded, role, sign_in

FIRST, SECOND, KEY = "canary-first-password", "canary-second-password", b"canary-key" * 4


def words(thing: Any) -> list[str]:
    """Return every text in a document, with its field names and its bytes."""
    if isinstance(thing, dict):
        return [word for pair in thing.items() for each in pair for word in words(each)]
    if isinstance(thing, list):
        return [word for each in thing for word in words(each)]
    return [thing.decode("latin-1") if isinstance(thing, bytes) else str(thing)]


def unkeyed_forms(password: str) -> list[str]:
    """Return the password, and its common digests in hexadecimal and in base64."""
    digests = [
        hashlib.new(name, password.encode()).digest()
        for name in ("md5", "sha1", "sha256", "sha384", "sha512")
    ]
    encoded = [base64.b64encode(digest).decode() for digest in digests]
    return [password, *(digest.hex() for digest in digests), *encoded]


async def test_the_database_has_no_secret_in_clear(db: Database) -> None:
    hasher = PasswordHasher([KEY], cost=4, threads=1, queue=8)
    setup = await issue_setup()
    assert setup is not None
    root = await make_first_administrator(
        setup, "root", "r@b.org", await hasher.hash(FIRST), by=SYSTEM
    )
    unused = await issue_setup()
    ada = await register_account(
        "ada", "ada@b.org", await hasher.hash(FIRST), roles=[await role("member")], by=SYSTEM
    )
    editor = await Role.add("editor", "", [], by=acting(root))
    await ada.grant(editor, by=acting(root))
    kept, first = await sign_in(await reloaded(ada))
    _, second = await sign_in(await reloaded(ada))
    ada = await reloaded(ada)
    renewed = await ada.change_password(await hasher.hash(SECOND), by=acting(ada), keep=kept.id)
    assert renewed is not None
    assert await end_reason(renewed) is None
    await (await reloaded(ada)).upgrade_hash(await hasher.hash(SECOND))
    post = await Post.write("On engines", "…", by=acting(ada))
    await Comment.write(post, "…", by=acting(root))
    await post.remove(by=acting(root))
    await ada.revoke(editor, by=acting(root))
    await editor.remove(by=acting(root))
    await ada.end_sessions(Reason.ENDED_BY_ADMIN, by=acting(root))
    await ada.disable(by=acting(root))
    hasher.close()

    assert unused is None
    everything = await dump(db)
    assert all(everything[name] for name in ("users", "sessions", "tokens", "events", "notices"))
    stored = words(everything)
    for secret in (setup, first, second, renewed, FIRST, SECOND, KEY.decode()):
        for form in (secret, hashlib.sha1(secret.encode()).hexdigest(), secret[::-1]):
            assert not [word for word in stored if form in word]
    # A digest without a key could be searched quickly, because passwords are not random.
    unkeyed = [form for password in (FIRST, SECOND) for form in unkeyed_forms(password)]
    for form in unkeyed:
        assert not [word for word in stored if form in word]
    for token in (setup, second, renewed):
        assert hashlib.sha256(token.encode()).hexdigest() in stored
    for user in everything["users"]:
        head, _, hashed = user["password_hash"].rpartition("$2b$")
        assert head.startswith("$quartapp$")
        for form in unkeyed:
            assert not bcrypt.checkpw(form.encode()[:72], b"$2b$" + hashed.encode())


async def test_a_stored_digest_is_not_accepted_as_a_token(db: Database) -> None:
    ada = await register_account("ada", "ada@b.org", "hash", roles=[], by=SYSTEM)
    session, _ = await sign_in(ada)
    for stolen in (session.digest, session.credential, str(session.id)):
        with pytest.raises(AssertionError):
            await end_reason(stolen)
