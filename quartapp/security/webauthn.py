"""WebAuthn: the options for the browser, and the verification of its responses.

Reads and writes no database. `quartapp.models` stores passkeys and remembers used challenges.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
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

from quartapp.security.challenges import (
    CHALLENGE_LIFETIME,
    ChallengeSigner,
    VerificationFailed,
)

# WebAuthn allows no more (4, "Credential ID"); the largest keys in use have half a kilobyte.
MAX_ID_BYTES, MAX_KEY_BYTES = 1023, 2048


@dataclass(frozen=True, slots=True)
class RelyingParty:
    """The host name that passkeys belong to, and the origins whose pages may ask for them."""

    rp_id: str
    origins: tuple[str, ...]

    @classmethod
    def for_origin(cls, origin: str, others: Iterable[str] = ()) -> RelyingParty | None:
        """Return the relying party whose name is the host of the origin.

        Its origins are this one and those of `others` whose host is the same or a subdomain of it.
        Return None if the host is an IP address, for which WebAuthn has no passkeys, or is missing.
        """
        host = urlsplit(origin).hostname or ""
        if not host or ":" in host or host.replace(".", "").isdigit():
            return None
        below = [each for each in others if f".{urlsplit(each).hostname}".endswith(f".{host}")]
        return cls(host, (origin, *below))


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
    """A response of a browser to `authentication_options`. Do not trust it before `verify`.

    `user_handle` is empty if the browser sent none.
    """

    relying_party: RelyingParty
    challenge: bytes
    credential_id: str
    user_handle: bytes
    _credential: Any

    def verify(self, public_key: bytes) -> tuple[int, bool]:
        """Verify the signature with the stored public key.

        Return the authenticator's counter, and whether the passkey is backed up. The counter is not
        compared with the stored one: see `Passkey.use`. Also checks the origin, the relying party
        and that the authenticator has verified its user. Raises VerificationFailed, whatever goes
        wrong.
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
    """Return the options for `navigator.credentials.create`, as a value for JSON.

    They have a new challenge of the signer and ask for a discoverable passkey, which signs in
    without a username, with user verification (fingerprint, face or PIN) required. `existing` are
    the id and the transports of each passkey that the user has; authenticators that hold one of
    them are excluded. Stores nothing. Raises ValueError for an unknown transport.
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
    """Return the options for `navigator.credentials.get`, as a value for JSON.

    They have a new challenge of the signer, and require user verification. `known` are the id and
    the transports of the passkeys that are accepted; without any, each discoverable passkey of the
    site is. Stores nothing. Raises ValueError for an unknown transport.
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
    """Verify the browser's response to `registration_options`, and return the new passkey.

    `response` is the credential as JSON. Checks the challenge (that the signer created it, at most
    CHALLENGE_LIFETIME ago, but not whether it was used before), the origin, the relying party and
    that the authenticator has verified its user. Also refuses a page inside a page of another
    origin, and ids and keys longer than MAX_ID_BYTES and MAX_KEY_BYTES. Raises VerificationFailed,
    whatever goes wrong. Stores neither the passkey nor the challenge.
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
    """Parse the browser's response to `authentication_options`, and check its challenge.

    `response` is the credential as JSON. Call `verify` of the result with the public key that is
    stored for its `credential_id`: signature and origin are not checked here. Raises
    VerificationFailed for a malformed response, a challenge that the signer has not created within
    CHALLENGE_LIFETIME, and a page inside a page of another origin. Accepts a challenge that was
    used before.
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
    """Return the challenge in the client data.

    Raises VerificationFailed if the signer has not created it within CHALLENGE_LIFETIME, or if the
    page was inside a page of another origin.
    """
    data = parse_client_data_json(client_data)
    if data.cross_origin:
        raise VerificationFailed("asked for by a page inside another one")
    signer.check(data.challenge)
    return data.challenge


def _parse_json(response: str) -> dict[str, Any]:
    """Return the JSON object. Raises ValueError for text that is no JSON, and VerificationFailed
    for JSON that is no object."""
    read = json.loads(response)
    if not isinstance(read, dict):
        raise VerificationFailed("no credential")
    return read


def _descriptor(credential_id: str, transports: Iterable[str]) -> PublicKeyCredentialDescriptor:
    """Return the descriptor of a passkey, without transports if there are none.

    Raises ValueError for an unknown transport, or an id that is not base64url.
    """
    return PublicKeyCredentialDescriptor(
        id=webauthn.base64url_to_bytes(credential_id),
        transports=[AuthenticatorTransport(each) for each in transports] or None,
    )
