"""An authenticator made of software: what a phone or a key for USB does, and what none would."""

from __future__ import annotations

import hashlib
import json
import secrets
from dataclasses import dataclass, field
from typing import Any

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from webauthn import base64url_to_bytes
from webauthn.helpers import bytes_to_base64url, encode_cbor

from quartapp.models import Passkey, User
from quartapp.models.base.actor import NOBODY, Actor
from quartapp.security.webauthn import Made

PRESENT, VERIFIED, BACKED_UP, HAS_KEY = 0x01, 0x04, 0x18, 0x40


@dataclass
class Authenticator:
    """Holds one key. Whatever a test changes here it says in its next answer."""

    origin: str = "http://localhost"
    rp_id: str | None = None
    counts: bool = True
    count: int = 0
    flags: int = PRESENT | VERIFIED
    key: ec.EllipticCurvePrivateKey = field(
        default_factory=lambda: ec.generate_private_key(ec.SECP256R1())
    )
    credential_id: bytes = field(default_factory=lambda: secrets.token_bytes(32))
    user_handle: bytes = b""
    client_data: dict[str, Any] = field(default_factory=dict)

    @property
    def id(self) -> str:
        return bytes_to_base64url(self.credential_id)

    @property
    def public_key(self) -> bytes:
        """As COSE writes a key for ES256."""
        point = self.key.public_key().public_numbers()
        x, y = point.x.to_bytes(32), point.y.to_bytes(32)
        return encode_cbor({1: 2, 3: -7, -1: 1, -2: x, -3: y})

    def make(self, options: dict[str, Any], **answer: Any) -> str:
        """What a browser answers to options for a new passkey, as JSON."""
        self.user_handle = base64url_to_bytes(options["user"]["id"])
        size = len(self.credential_id).to_bytes(2)
        key = bytes(16) + size + self.credential_id + self.public_key
        data = self._data(options["rp"]["id"], self.flags | HAS_KEY) + key
        attestation = encode_cbor({"fmt": "none", "attStmt": {}, "authData": data})
        return self._answer(
            {
                "clientDataJSON": self._client_data("webauthn.create", options),
                "attestationObject": attestation,
            },
            transports=["internal", "hybrid", "of a later century"],
            **answer,
        )

    def show(self, options: dict[str, Any], **answer: Any) -> str:
        """What a browser answers to options for signing in, as JSON."""
        self.count += self.counts
        data = self._data(options["rpId"], self.flags)
        client_data = self._client_data("webauthn.get", options)
        signed = data + hashlib.sha256(client_data).digest()
        return self._answer(
            {
                "clientDataJSON": client_data,
                "authenticatorData": data,
                "signature": self.key.sign(signed, ec.ECDSA(hashes.SHA256())),
                "userHandle": self.user_handle,
            },
            **answer,
        )

    def made(self, user: User) -> Made:
        """The same as `make`, for tests without pages: as if it had been verified."""
        self.user_handle = user.id.binary
        challenge = secrets.token_bytes(56)
        return Made(challenge, self.id, self.public_key, self.count, ("internal",), False)

    def _data(self, rp_id: str, flags: int) -> bytes:
        name = hashlib.sha256((self.rp_id or rp_id).encode()).digest()
        return name + bytes([flags]) + self.count.to_bytes(4)

    def _client_data(self, kind: str, options: dict[str, Any]) -> bytes:
        said = {"type": kind, "challenge": options["challenge"], "origin": self.origin}
        return json.dumps({**said, "crossOrigin": False, **self.client_data}).encode()

    def _answer(self, response: dict[str, bytes], **more: Any) -> str:
        said: dict[str, Any] = {
            name: bytes_to_base64url(value) for name, value in response.items() if value
        }
        return json.dumps(
            {
                "id": self.id,
                "rawId": self.id,
                "type": "public-key",
                "authenticatorAttachment": "platform",
                "response": {**said, **more},
            }
        )


async def a_passkey(user: User, *, by: Actor = NOBODY, name: str = "Phone") -> Authenticator:
    """One that was added to the account, past the pages."""
    device = Authenticator()
    await Passkey.add(user, device.made(user), name=name, by=by)
    return device
