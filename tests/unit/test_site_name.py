"""SITE_NAME changes what people read, and nothing that keys, passwords or cookies depend on."""

from __future__ import annotations

from email import message_from_bytes
from email.policy import default
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import pytest
from bson import ObjectId

from quartapp import clock, create_app
from quartapp.activities import catalogue
from quartapp.email import messages
from quartapp.models.email.outbox import Mail
from quartapp.models.factors import totp
from quartapp.security.encryption import Encryption
from quartapp.security.password_policy import PasswordPolicy
from quartapp.security.passwords import PasswordHasher
from quartapp.settings import Settings

NAME = 'Müller & "Söhne"'
SECRET = "JBSWY3DPEHPK3PXPJBSWY3DPEHPK3PXP"
# Created by a site called "quartapp" with the key below.
ENCRYPTED = "3-zm78LyDuwcY2jAIwlvPFE-KFTFzSWKQWiFOtXPispWEiLk"
HASH = "$quartapp$61342732$$2b$04$YpMm2oIk4YCghR7d86FJ6.DPU4nK9Z5A4PDsOeUhGs.yRS7aiAiOG"


def _serializer(app: Any) -> Any:
    return app.session_interface.get_signing_serializer(app)


def settings(name: str) -> Settings:
    return Settings.load(secret_key="k" * 32, site_name=name, bcrypt_cost=4, bcrypt_threads=1)


async def test_stored_passwords_and_secrets_do_not_depend_on_the_name() -> None:
    for name in ("quartapp", NAME):
        assert Encryption.of(settings(name)).decrypt(ENCRYPTED, "test") == "a secret"
        hasher = PasswordHasher.of(settings(name))
        try:
            assert await hasher.verify("correct horse", HASH)
            assert not hasher.needs_rehash(HASH)
        finally:
            hasher.close()


def test_signed_cookies_do_not_depend_on_the_name() -> None:
    one, other = create_app(settings("quartapp")), create_app(settings(NAME))
    (manager,), (other_manager,) = one.extensions["QUART_AUTH"], other.extensions["QUART_AUTH"]
    token = manager.dump_token("token", one)
    assert other_manager.load_token(token, other) == "token"
    first, second = _serializer(one), _serializer(other)
    assert second.loads(first.dumps({"visit": 1})) == {"visit": 1}
    assert one.config["SESSION_COOKIE_NAME"] == other.config["SESSION_COOKIE_NAME"]
    assert manager.cookie_name == other_manager.cookie_name


@pytest.mark.parametrize("name", ["quartapp", NAME, "People: Berlin", "a" * 60])
def test_the_otpauth_uri_names_the_issuer(name: str) -> None:
    uri = urlsplit(totp.uri(SECRET, "ada", issuer=name))
    issuer = name.replace(":", "")
    assert (uri.scheme, uri.netloc) == ("otpauth", "totp")
    assert uri.path.count(":") == 1
    assert unquote(uri.path) == f"/{issuer}:ada"
    assert parse_qs(uri.query)["issuer"] == [issuer]
    assert parse_qs(uri.query)["secret"] == [SECRET]


@pytest.mark.parametrize("kind", catalogue.emails)
@pytest.mark.parametrize("name", ["quartapp", NAME, "Ops, <admins@example.org>"])
def test_every_email_names_the_site_in_its_subject_and_sender(kind: str, name: str) -> None:
    email = catalogue.emails[kind]
    mail = Mail.model_construct(id=ObjectId(), created_at=clock.now(), data={})
    names = ("token", "code", "account", "username", "inviter", "roles", "factor", "by", "left")
    words: dict[str, str] = dict.fromkeys((*names, "notification", "what", "when", "until"), "-")
    message = messages.compose(
        mail,
        email=email,
        to="ada@example.org",
        receiver="ada@example.org",
        sender="no-reply@example.org",
        site_name=name,
        base="https://example.org",
        words=words,
    )
    read = message_from_bytes(message.as_bytes(), policy=default)
    assert read["Subject"] == f"[{name}] {email.subject}"
    (sender,) = read["From"].addresses
    assert (sender.display_name, sender.addr_spec) == (name, "no-reply@example.org")
    if any("{site}" in line for line in email.text):
        assert f"at {name}" in read.get_content()


async def test_a_password_that_repeats_the_name_is_refused() -> None:
    for name, accepted in (("quartapp", True), ("Zuzanna Wrobel", False)):
        policy = PasswordPolicy.of(settings(name))
        try:
            assert (await policy.weakness("zuzanna-wrobel-7") is None) is accepted
        finally:
            await policy.close()
