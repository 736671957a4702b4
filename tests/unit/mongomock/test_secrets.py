"""The repr of an object does not contain the secrets that it holds."""

from __future__ import annotations

from pathlib import Path

import pytest
from beanie import PydanticObjectId
from pydantic import SecretStr

from quartapp import auth, clock
from quartapp.authority.session_rule import Principal
from quartapp.models.accounts.credential import fingerprint
from quartapp.models.accounts.one_time_token import Purpose, Token
from quartapp.models.accounts.user import User
from quartapp.models.base.references import user_ref
from quartapp.models.base.tokens import digest_of, new_token
from quartapp.models.sessions.session import Session
from quartapp.security.passwords import PasswordHasher
from quartapp.settings import Settings

CANARY = "canary-of-a-password"


def secrets_of_a_session() -> tuple[Session, list[str]]:
    token, digest = new_token()
    now = clock.now()
    session = Session(
        digest=digest,
        user=user_ref(PydanticObjectId()),
        device="Firefox",
        created_at=now,
        seen_at=now,
        expires_at=now,
        idle_seconds=60,
        confirmed_at=now,
        credential=fingerprint(CANARY),
    )
    return session, [token, digest, fingerprint(CANARY)]


async def test_the_repr_of_a_document_contains_no_secret(mocked: object) -> None:
    session, secrets = secrets_of_a_session()
    token, digest = new_token()
    now = clock.now()
    setup = Token(purpose=Purpose.SETUP, digest=digest, created_at=now, expires_at=now)
    user = User(username="ada", email="ada@example.org", password_hash=CANARY)
    for thing in (session, setup, user):
        for text in (repr(thing), str(thing), f"{thing}", repr([thing]), f"{thing!a}"):
            for secret in (*secrets, token, digest, CANARY):
                assert secret not in text
    assert "ada" in repr(user)


def test_the_repr_of_settings_and_hasher_contains_no_key(tmp_path: Path) -> None:
    settings = Settings.load(
        data=tmp_path,
        secret_key=SecretStr(CANARY),
        secret_key_fallbacks=[SecretStr(CANARY + "-older")],
        mongodb_uri=SecretStr(f"mongodb://root:{CANARY}@db.example"),
        bcrypt_cost=4,
    )
    hasher = PasswordHasher.of(settings)
    hasher.close()
    for thing in (settings, hasher):
        assert CANARY not in repr(thing)
        assert CANARY not in str(thing)
    assert CANARY not in settings.model_dump_json()


@pytest.mark.parametrize("signed_in", [True, False])
async def test_the_repr_of_the_current_user_contains_no_token(signed_in: bool) -> None:
    token, _ = new_token()
    user = auth.CurrentUser(token)
    if signed_in:
        ids, now = PydanticObjectId(), clock.now()
        user._state = Principal(
            *(ids, ids, "ada", ("member",), frozenset(), 1, None, 0, 0, now, now, 60.0)
        )
    for text in (repr(user), str(user), f"{user}", repr([user])):
        assert token not in text
        assert digest_of(token) not in text
    assert ("ada" in repr(user)) is signed_in
