"""Random tokens for cookies and links. The database stores only their digests."""

import hashlib
import secrets

TOKEN_LENGTH = 43


def new_token() -> tuple[str, str]:
    """Return a random token of 256 bits in URL-safe characters, and the digest to store."""
    token = secrets.token_urlsafe(32)
    return token, digest_of(token)


def digest_of(token: str) -> str:
    """Return the SHA-256 of the token in hexadecimal.

    An unsalted digest suffices, because a random token cannot be guessed. It is the same in all
    workers.
    """
    return hashlib.sha256(token.encode()).hexdigest()
