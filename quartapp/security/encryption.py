"""Encryption with keys that are derived from the secret key."""

from __future__ import annotations

import base64
import json
import secrets
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from quartapp import clock
from quartapp.settings import Settings

_NONCE = 12


class Encryption:
    """AES-256-GCM with the secret key; decrypts also what a fallback key has encrypted.

    `context` says what the text is and whose. It is authenticated, not encrypted: a text decrypts
    only with the context with which it was encrypted, so it cannot be moved to another account or
    to another use.
    """

    def __init__(self, keys: Sequence[str]) -> None:
        self._keys = [AESGCM(_derived(key)) for key in keys]

    @classmethod
    def of(cls, settings: Settings) -> Encryption:
        """Return an Encryption with SECRET_KEY and SECRET_KEY_FALLBACKS."""
        keys = (settings.secret_key, *settings.secret_key_fallbacks)
        return cls([key.get_secret_value() for key in keys])

    def encrypt(self, text: str, context: str) -> str:
        """Return the text encrypted with the secret key, as URL-safe base64.

        A random nonce makes each result different.
        """
        nonce = secrets.token_bytes(_NONCE)
        encrypted = self._keys[0].encrypt(nonce, text.encode(), context.encode())
        return base64.urlsafe_b64encode(nonce + encrypted).decode()

    def decrypt(self, encrypted: str, context: str) -> str | None:
        """Return the text, with the first key that decrypts it.

        Return None if it is malformed or was changed, has another context, or was encrypted with a
        key that is not among ours; and for a text that is empty when decrypted.
        """
        return next(
            (text for key in self._keys if (text := _decrypt(key, encrypted, context))), None
        )

    def outdated(self, encrypted: str, context: str) -> bool:
        """Return whether a fallback key decrypts the text and the secret key does not.

        False for a text that no key decrypts.
        """
        newest = _decrypt(self._keys[0], encrypted, context)
        return not newest and self.decrypt(encrypted, context) is not None

    def encrypt_value(self, value: Any, context: str) -> str:
        """Encrypt a value that JSON can represent, with the current time, for a browser to keep.

        Raises TypeError for a value that JSON cannot represent.
        """
        text = json.dumps([clock.now().timestamp(), value], ensure_ascii=False)
        return self.encrypt(text, context)

    def decrypt_value(self, encrypted: Any, context: str, *, max_age: timedelta) -> Any:
        """Return the value of `encrypt_value`.

        Return None if it is no text, does not decrypt, or was encrypted longer ago than `max_age`;
        not for a time that is ahead of this host's clock. Raises ValueError or TypeError for a text
        that `encrypt` made with the same context.
        """
        text = self.decrypt(encrypted, context) if isinstance(encrypted, str) else None
        if text is None:
            return None
        at, value = json.loads(text)
        return value if clock.now().timestamp() - at <= max_age.total_seconds() else None


def _decrypt(key: AESGCM, encrypted: str, context: str) -> str | None:
    """Return the text, or None if it is malformed or not encrypted with this key and context."""
    try:
        raw = base64.urlsafe_b64decode(encrypted.encode("ascii"))
        return key.decrypt(raw[:_NONCE], raw[_NONCE:], context.encode()).decode()
    except (InvalidTag, ValueError):
        return None


def _derived(key: str) -> bytes:
    """Return 32 bytes for AES, derived from the key by HKDF with SHA-256."""
    return HKDF(SHA256(), length=32, salt=None, info=b"quartapp sealed").derive(key.encode())
