"""What must be read again but not by everybody: encrypted under keys made from the secret key."""

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


class Seal:
    """Seals with the secret key, and opens what was sealed with it or with one of its fallbacks.

    `about` is what is sealed and whose it is. What was sealed about one thing opens as no other,
    so nothing can be carried from one account, or from one use, to the next.
    """

    def __init__(self, keys: Sequence[str]) -> None:
        self._keys = [AESGCM(_derived(key)) for key in keys]

    @classmethod
    def of(cls, settings: Settings) -> Seal:
        keys = (settings.secret_key, *settings.secret_key_fallbacks)
        return cls([key.get_secret_value() for key in keys])

    def close(self, text: str, about: str) -> str:
        nonce = secrets.token_bytes(_NONCE)
        sealed = self._keys[0].encrypt(nonce, text.encode(), about.encode())
        return base64.urlsafe_b64encode(nonce + sealed).decode()

    def open(self, sealed: str, about: str) -> str | None:
        """None for what was sealed by nobody, about something else, or under a key that is gone."""
        return next((text for key in self._keys if (text := _open(key, sealed, about))), None)

    def outdated(self, sealed: str, about: str) -> bool:
        """Whether it opens, but not with the newest key."""
        return not _open(self._keys[0], sealed, about) and self.open(sealed, about) is not None

    def hand_out(self, what: Any, about: str) -> str:
        """For what a browser keeps for us: it says when it was handed out."""
        text = json.dumps([clock.now().timestamp(), what], ensure_ascii=False)
        return self.close(text, about)

    def take_back(self, sealed: Any, about: str, *, within: timedelta) -> Any:
        """What was handed out so lately, else None."""
        text = self.open(sealed, about) if isinstance(sealed, str) else None
        if text is None:
            return None
        at, what = json.loads(text)
        return what if clock.now().timestamp() - at <= within.total_seconds() else None


def _open(key: AESGCM, sealed: str, about: str) -> str | None:
    try:
        raw = base64.urlsafe_b64decode(sealed.encode("ascii"))
        return key.decrypt(raw[:_NONCE], raw[_NONCE:], about.encode()).decode()
    except (InvalidTag, ValueError):
        return None


def _derived(key: str) -> bytes:
    return HKDF(SHA256(), length=32, salt=None, info=b"quartapp sealed").derive(key.encode())
