"""Passwords that are known from data breaches, by the range protocol of Have I Been Pwned.

The service is sent the first five digits of the password's SHA-1 and answers with the rest of all
hashes that begin so (k-anonymity): it learns neither the password nor its hash.
"""

from __future__ import annotations

import asyncio
import hashlib
import unicodedata

import httpx

from quartapp.log import log

TIMEOUT_SECONDS = 1.0
PREFIX_DIGITS = 5
# An answer has about 2,000 lines of 45 bytes.
MAX_RESPONSE_BYTES = 1024 * 1024
# Padding makes the answers similar in length, so that their size does not name the five digits.
HEADERS = {"Add-Padding": "true", "User-Agent": "quartapp", "Accept-Encoding": "identity"}


class BreachedPasswords:
    """A client of the service at `url`, to which the first five digits are appended."""

    def __init__(self, url: str) -> None:
        self._url = url.rstrip("/")
        self._client: httpx.AsyncClient | None = None

    async def contains(self, password: str) -> bool:
        """Return whether the password is known from a breach.

        Sends the first five digits of the SHA-1 of the password in NFC. Returns False, and logs
        `breached_passwords_unavailable`, when the service has not answered within TIMEOUT_SECONDS
        or its answer cannot be used: a new password does not depend on it.
        """
        # As it is hashed here (passwords.py): in NFC.
        text = unicodedata.normalize("NFC", password).encode()
        digest = hashlib.sha1(text, usedforsecurity=False).hexdigest().upper()
        try:
            async with asyncio.timeout(TIMEOUT_SECONDS):
                suffixes = await self._known_suffixes(digest[:PREFIX_DIGITS])
        except (TimeoutError, httpx.HTTPError, httpx.InvalidURL, ValueError) as error:
            log.warning("breached_passwords_unavailable", error=type(error).__name__)
            return False
        return digest[PREFIX_DIGITS:] in suffixes

    async def close(self) -> None:
        """Close the connections of the HTTP client, if `contains` has created one."""
        if self._client:
            await self._client.aclose()

    async def _known_suffixes(self, prefix: str) -> set[str]:
        """Ask the service, and return the rest of each known hash with this prefix.

        The first call creates the client. Hashes with a count of 0, which are padding, are left
        out. Raises HTTPError, also for an error status, and ValueError if the answer is longer than
        MAX_RESPONSE_BYTES or not ASCII.
        """
        if self._client is None:
            self._client = httpx.AsyncClient(headers=HEADERS, timeout=TIMEOUT_SECONDS)
        text = b""
        async with self._client.stream("GET", f"{self._url}/{prefix}") as answer:
            answer.raise_for_status()
            async for part in answer.aiter_raw():
                text += part
                if len(text) > MAX_RESPONSE_BYTES:
                    raise ValueError("the answer is too long")
        pairs = (line.partition(":") for line in text.decode("ascii").upper().splitlines())
        # Lines with a count of 0 are padding.
        return {rest.strip() for rest, _, count in pairs if count.strip().strip("0")}
