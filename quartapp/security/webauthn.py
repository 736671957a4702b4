"""WebAuthn: options for the browser, and verification of its responses. No database, no page."""

from __future__ import annotations

import hmac
import json
import secrets
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any
from urllib.parse import urlsplit

import webauthn
from webauthn.helpers import (
    bytes_to_base64url,
    options_to_json_dict,
    parse_authentication_credential_json,
    parse_client_data_json,
    parse_registration_credential_json,
)
from webauthn.helpers.structs import (
    AuthenticatorSelectionCriteria,
    AuthenticatorTransport,
    PublicKeyCredentialDescriptor,
    ResidentKeyRequirement,
    UserVerificationRequirement,
)

from quartapp import clock

CHALLENGE_LIFETIME = timedelta(minutes=5)
# WebAuthn allows no more (4, "Credential ID"); the largest keys in use have half a kilobyte.
MAX_ID_BYTES, MAX_KEY_BYTES = 1023, 2048
_RANDOM_BYTES, _TIME_BYTES = 16, 8


class VerificationFailed(Exception):
    """A response of the browser is not valid. The text is for the log."""


@dataclass(frozen=True, slots=True)
class RelyingParty:
    """The domain to which passkeys belong, and the origins whose pages may use them."""

    rp_id: str
    origins: tuple[str, ...]

    @classmethod
    def for_origin(cls, origin: str, others: Iterable[str] = ()) -> RelyingParty | None:
        """Return the relying party of the origin, or None if its host is an IP address.

        WebAuthn requires a domain name. Of the other origins it keeps those on subdomains.
        """
        host = urlsplit(origin).hostname or ""
        if not host or ":" in host or host.replace(".", "").isdigit():
            return None
        below = [each for each in others if f".{urlsplit(each).hostname}".endswith(f".{host}")]
        return cls(host, (origin, *below))


@dataclass(frozen=True, slots=True)
class ChallengeSigner:
    """Creates and checks challenges that carry their time and a signature with the server's key.

    `binding` says for what and whom a challenge is, such as a session. Nothing is stored for a
    challenge. The caller has to store one that was answered for CHALLENGE_LIFETIME, so that it is
    not accepted again.
    """

    key: str
    binding: str

    def new_challenge(self) -> bytes:
        """Return a new challenge: random bytes, the time and the signature."""
        said = secrets.token_bytes(_RANDOM_BYTES) + _milliseconds().to_bytes(_TIME_BYTES)
        return said + self._signature(said)

    def check(self, challenge: bytes) -> None:
        """Raise VerificationFailed if the challenge is too old or has another key or binding."""
        said, seal = (
            challenge[: _RANDOM_BYTES + _TIME_BYTES],
            challenge[_RANDOM_BYTES + _TIME_BYTES :],
        )
        if not hmac.compare_digest(seal, self._signature(said)):
            raise VerificationFailed("the challenge is not ours, or not for this page")
        age = _milliseconds() - int.from_bytes(said[_RANDOM_BYTES:])
        if timedelta(milliseconds=age) > CHALLENGE_LIFETIME:
            raise VerificationFailed("the challenge is too old")

    def _signature(self, said: bytes) -> bytes:
        bound = f"passkey {self.binding} ".encode()
        return hmac.digest(self.key.encode(), bound + said, "sha256")


@dataclass(frozen=True, slots=True)
class NewPasskey:
    """A new passkey, from a verified registration response."""

    challenge: bytes
    credential_id: str
    public_key: bytes
    sign_count: int
    transports: tuple[str, ...]
    backed_up: bool


@dataclass(frozen=True, slots=True)
class PasskeyAssertion:
    """A response of a browser that claims to have this passkey. Call `verify` to check it."""

    relying_party: RelyingParty
    challenge: bytes
    credential_id: str
    user_handle: bytes
    _credential: Any

    def verify(self, public_key: bytes) -> tuple[int, bool]:
        """Verify the response with the passkey's public key. Raises VerificationFailed.

        Return the authenticator's counter, and whether the passkey is backed up. The counter is not
        compared with the stored one: see `Passkey.use`.
        """
        try:
            verified = webauthn.verify_authentication_response(
                credential=self._credential,
                expected_challenge=self.challenge,
                expected_rp_id=self.relying_party.rp_id,
                expected_origin=list(self.relying_party.origins),
                credential_public_key=public_key,
                # The library compares the counter before it verifies the signature, so that anyone
                # could make a passkey look copied. `Passkey.use` compares it afterwards.
                credential_current_sign_count=0,
                require_user_verification=True,
            )
        except Exception as error:
            raise VerificationFailed(str(error)) from error
        return verified.new_sign_count, verified.credential_backed_up


def registration_options(
    relying_party: RelyingParty,
    signer: ChallengeSigner,
    *,
    site_name: str,
    user_handle: bytes,
    username: str,
    existing: Iterable[tuple[str, Iterable[str]]],
) -> dict[str, Any]:
    """Return the options for `navigator.credentials.create`, as JSON values.

    They ask for a discoverable passkey with user verification, for sign-in without a username.
    `existing` has the ids and transports of the user's passkeys, whose authenticators refuse.
    """
    options = webauthn.generate_registration_options(
        rp_id=relying_party.rp_id,
        rp_name=site_name,
        user_id=user_handle,
        user_name=username,
        challenge=signer.new_challenge(),
        timeout=int(CHALLENGE_LIFETIME.total_seconds() * 1000),
        authenticator_selection=AuthenticatorSelectionCriteria(
            resident_key=ResidentKeyRequirement.REQUIRED,
            user_verification=UserVerificationRequirement.REQUIRED,
        ),
        exclude_credentials=[_descriptor(*each) for each in existing],
    )
    return options_to_json_dict(options)


def authentication_options(
    relying_party: RelyingParty,
    signer: ChallengeSigner,
    *,
    known: Iterable[tuple[str, Iterable[str]]] = (),
) -> dict[str, Any]:
    """Return the options for `navigator.credentials.get`, as JSON values.

    `known` has the ids and transports of the passkeys that may answer; empty allows any.
    """
    options = webauthn.generate_authentication_options(
        rp_id=relying_party.rp_id,
        challenge=signer.new_challenge(),
        timeout=int(CHALLENGE_LIFETIME.total_seconds() * 1000),
        allow_credentials=[_descriptor(*each) for each in known],
        user_verification=UserVerificationRequirement.REQUIRED,
    )
    return options_to_json_dict(options)


def verify_registration(
    relying_party: RelyingParty, signer: ChallengeSigner, response: str
) -> NewPasskey:
    """Verify the browser's response to `registration_options` and return the new passkey.

    Raises VerificationFailed. Does not check whether the challenge was used before.
    """
    try:
        credential = parse_registration_credential_json(_parse_json(response))
        challenge = _checked_challenge(signer, credential.response.client_data_json)
        verified = webauthn.verify_registration_response(
            credential=credential,
            expected_challenge=challenge,
            expected_rp_id=relying_party.rp_id,
            expected_origin=list(relying_party.origins),
            require_user_verification=True,
        )
    except Exception as error:
        # Malformed input raises many kinds of errors in several libraries.
        raise VerificationFailed(str(error)) from error
    if (
        len(verified.credential_id) > MAX_ID_BYTES
        or len(verified.credential_public_key) > MAX_KEY_BYTES
    ):
        raise VerificationFailed("too long to be kept")
    return NewPasskey(
        challenge,
        bytes_to_base64url(verified.credential_id),
        verified.credential_public_key,
        verified.sign_count,
        tuple(sorted({each.value for each in credential.response.transports or ()})),
        verified.credential_backed_up,
    )


def parse_assertion(
    relying_party: RelyingParty, signer: ChallengeSigner, response: str
) -> PasskeyAssertion:
    """Parse the browser's response to `authentication_options` and check its challenge.

    The signature is not verified yet: see `PasskeyAssertion.verify`. Raises VerificationFailed.
    """
    try:
        credential = parse_authentication_credential_json(_parse_json(response))
        challenge = _checked_challenge(signer, credential.response.client_data_json)
        handle = credential.response.user_handle or b""
        return PasskeyAssertion(
            relying_party, challenge, bytes_to_base64url(credential.raw_id), handle, credential
        )
    except Exception as error:
        raise VerificationFailed(str(error)) from error


def _checked_challenge(signer: ChallengeSigner, client_data: bytes) -> bytes:
    """Return the challenge in the client data. Raises VerificationFailed, also if a page of another
    origin has embedded the asking page."""
    said = parse_client_data_json(client_data)
    if said.cross_origin:
        raise VerificationFailed("asked for by a page inside another one")
    signer.check(said.challenge)
    return said.challenge


def _parse_json(response: str) -> dict[str, Any]:
    read = json.loads(response)
    if not isinstance(read, dict):
        raise VerificationFailed("no credential")
    return read


def _descriptor(credential_id: str, transports: Iterable[str]) -> PublicKeyCredentialDescriptor:
    return PublicKeyCredentialDescriptor(
        id=webauthn.base64url_to_bytes(credential_id),
        transports=[AuthenticatorTransport(each) for each in transports] or None,
    )


def _milliseconds() -> int:
    return int(clock.now().timestamp() * 1000)
