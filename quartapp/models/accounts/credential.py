"""How one password of a user is told from another, without storing more about it."""

import hashlib
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, Field


class KeptCredential(BaseModel):
    """The credential that a password keeps although it was hashed anew: see `credential_of`."""

    hash: str = Field(repr=False)
    credential: str = Field(repr=False)


def fingerprint(password_hash: str) -> str:
    """Return what tells one password hash from another, and nothing else about it."""
    return hashlib.sha256(password_hash.encode()).hexdigest()[:32]


def credential_of(user: Mapping[str, Any]) -> str:
    """Return what tells one password of a user from another, as the user's document says it.

    What was opened under another password is over: sessions, links, the second step of a sign-in.
    It is the fingerprint of the first hash that the password had here. When the same password is
    hashed anew, the document keeps it beside the fingerprint of the new hash; a hash that any other
    program writes does not fit that, and is another password.
    """
    mark = fingerprint(user["password_hash"])
    kept = user.get("kept_credential") or {}
    return kept["credential"] if kept.get("hash") == mark else mark
