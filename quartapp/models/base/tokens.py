"""Random tokens, of which the database keeps only a digest."""

import hashlib
import secrets

TOKEN_LENGTH = 43


def new_token() -> tuple[str, str]:
    """A random token of 256 bits, and the digest by which it is kept."""
    token = secrets.token_urlsafe(32)
    return token, digest_of(token)


def digest_of(token: str) -> str:
    """SHA-256: enough for a random token, and the same in every worker."""
    return hashlib.sha256(token.encode()).hexdigest()
