"""A WebAuthn authenticator in software, which can also give wrong answers."""

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
from quartapp.models.base.actor import SYSTEM, Actor
from quartapp.security.webauthn import NewPasskey

PRESENT, VERIFIED, BACKED_UP, HAS_KEY = 0x01, 0x04, 0x18, 0x40


@dataclass
class Authenticator:
    """An authenticator with one key. Tests change the attributes that its answers contain."""

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
        """The public key as a COSE key for ES256."""
        point = self.key.public_key().public_numbers()
        x, y = point.x.to_bytes(32), point.y.to_bytes(32)
        return encode_cbor({1: 2, 3: -7, -1: 1, -2: x, -3: y})

    def register(self, options: dict[str, Any], **answer: Any) -> str:
        """Return the JSON that a browser sends for a new passkey with these options."""
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

    def authenticate(self, options: dict[str, Any], **answer: Any) -> str:
        """Return the JSON that a browser sends for a sign-in with these options."""
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

    def made(self, user: User) -> NewPasskey:
        """Return a registration of this key as if the server had verified it."""
        self.user_handle = user.id.binary
        challenge = secrets.token_bytes(56)
        return NewPasskey(challenge, self.id, self.public_key, self.count, ("internal",), False)

    def _data(self, rp_id: str, flags: int) -> bytes:
        name = hashlib.sha256((self.rp_id or rp_id).encode()).digest()
        return name + bytes([flags]) + self.count.to_bytes(4)

    def _client_data(self, kind: str, options: dict[str, Any]) -> bytes:
        fields = {"type": kind, "challenge": options["challenge"], "origin": self.origin}
        return json.dumps({**fields, "crossOrigin": False, **self.client_data}).encode()

    def _answer(self, response: dict[str, bytes], **more: Any) -> str:
        fields: dict[str, Any] = {
            name: bytes_to_base64url(value) for name, value in response.items() if value
        }
        return json.dumps(
            {
                "id": self.id,
                "rawId": self.id,
                "type": "public-key",
                "authenticatorAttachment": "platform",
                "response": {**fields, **more},
            }
        )


async def create_passkey(user: User, *, by: Actor = SYSTEM, name: str = "Phone") -> Authenticator:
    """Add a passkey to the account without using a page, and return its authenticator."""
    device = Authenticator()
    await Passkey.add(user, device.made(user), name=name, by=by)
    return device
