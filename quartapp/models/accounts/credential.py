"""An identifier for each password of a user, which tells nothing else about the password."""

import hashlib
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, Field


class KeptCredential(BaseModel):
    """The credential of a password that was hashed again, with the fingerprint of the new hash."""

    hash: str = Field(repr=False)
    credential: str = Field(repr=False)


def fingerprint(password_hash: str) -> str:
    """Return 32 hexadecimal digits of the SHA-256 of the password hash."""
    return hashlib.sha256(password_hash.encode()).hexdigest()[:32]


def credential_of(user: Mapping[str, Any]) -> str:
    """Return an identifier of the user's password, which changes when the password changes.

    Sessions, links and half-finished sign-ins store it, and are invalid when it is another one. It
    is the fingerprint of the password's first hash. When the same password is hashed again,
    `kept_credential` stores it together with the fingerprint of the new hash. A hash written by
    another program does not match that, so it counts as another password.
    """
    mark = fingerprint(user["password_hash"])
    kept = user.get("kept_credential") or {}
    return kept["credential"] if kept.get("hash") == mark else mark
