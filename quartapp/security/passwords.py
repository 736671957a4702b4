"""Hashing and verifying passwords. `password_policy` decides which passwords are accepted.

A hash is `$quartapp$<key id>$<bcrypt>`. bcrypt hashes a keyed digest of the password, because it
reads 72 bytes at most, and because a stolen database is useless without the key. Hashes of three
schemes of other applications are accepted too (see SCHEMES); the next sign-in replaces them.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import os
import re
import secrets
import string
import threading
import unicodedata
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Literal, Self, TypeVar

import bcrypt
from pydantic import SecretStr

from quartapp.errors import RetryLater
from quartapp.log import log
from quartapp.settings import Settings

# In code points. No longer password is stored, so a longer one fits no hash and is not processed:
# the time that NFC takes grows with the square of a run of combining marks.
MAX_LENGTH = 256
BCRYPT_HASH = re.compile(r"\A\$2[aby]\$(0[4-9]|1[0-4])\$[./A-Za-z0-9]{53}\Z")
# What a stored hash of another application begins with. Flask-Bcrypt hashes the password itself,
# or with BCRYPT_HANDLE_LONG_PASSWORDS the hexadecimal SHA-256 of it; Flask-Security by default the
# base64 of HMAC-SHA512 with its SECURITY_PASSWORD_SALT.
SCHEMES = {
    "flask-bcrypt": "",
    "flask-bcrypt-long": "$flask-bcrypt-long",
    "flask-security": "$flask-security",
}
_PREFIX = "$quartapp$"
_BCRYPT_ALPHABET = f"./{string.ascii_letters}{string.digits}"
_BCRYPT_DIGEST_LENGTH = 31
T = TypeVar("T")


class Busy(RetryLater):
    """Too many passwords wait to be hashed, scored or checked, or one has waited too long."""


class PasswordHasher:
    """Hashes and verifies passwords with bcrypt in a pool of threads with a bounded queue.

    `keys` are the secrets for the keyed digest. The first makes new hashes. A stored hash names
    its key, so older hashes verify after a key was replaced.
    """

    def __init__(
        self, keys: Sequence[bytes], *, cost: int, threads: int, queue: int, salt: bytes = b""
    ) -> None:
        """Derive the keys and create the pool.

        `cost` is that of new hashes. Up to `threads` passwords are hashed at once, and up to
        `queue` more wait. `salt` is the SECURITY_PASSWORD_SALT of an application whose users were
        imported.
        """
        derived = [hmac.digest(key, b"quartapp password", "sha384") for key in keys]
        self._keys = {_key_id(key): key for key in reversed(derived)}
        self._current_key_id = _key_id(derived[0])
        self._cost = cost
        self._salt = salt
        self._capacity = threads + queue
        self._pending = 0
        self._pool = ThreadPoolExecutor(
            threads, thread_name_prefix="bcrypt", initializer=_lower_thread_priority
        )
        # Fits no password. It is checked if there is no such user, so that this takes as long.
        self._dummy_hash = f"{_PREFIX}{self._current_key_id}${_random_bcrypt_hash(cost)}"

    @classmethod
    def of(cls, settings: Settings) -> Self:
        """Return a hasher with the keys SECRET_KEY, which makes new hashes, and
        SECRET_KEY_FALLBACKS; with BCRYPT_COST, BCRYPT_THREADS and BCRYPT_QUEUE; and with
        FLASK_SECURITY_SALT as the salt, empty if it is not set.
        """
        keys = [settings.secret_key, *settings.secret_key_fallbacks]
        return cls(
            [key.get_secret_value().encode() for key in keys],
            cost=settings.bcrypt_cost,
            threads=settings.bcrypt_threads,
            queue=settings.bcrypt_queue,
            salt=(settings.flask_security_salt or SecretStr("")).get_secret_value().encode(),
        )

    def check_capacity(self) -> None:
        """Raise Busy, and log it, if the queue is full. For callers that do other work before."""
        if self._pending >= self._capacity:
            log.warning("excess_rate_limit_exceeded", what="passwords")
            raise Busy

    async def hash(self, password: str) -> str:
        """Return a new hash of the password, made in a thread of the pool.

        Applies no other rule of the password policy. Raises Busy, which is logged, when the queue
        is full, and ValueError for a password of more than 256 code points.
        """
        if len(password) > MAX_LENGTH:
            raise ValueError("the password is too long")
        return await self._run(lambda: self._hash(password))

    async def verify(self, password: str, stored: str | None, *, cost: int = 0) -> bool:
        """Return whether the password fits the hash. None, for an unknown user, fits nothing.

        Runs in a thread of the pool, and counts no attempt. Raises Busy, which is logged, when the
        queue is full. A hash that cannot be read fits nothing, and a password of more than 256 code
        points fits no hash. The time depends on the typed password alone: a hash of a lower cost
        takes as long as one of ours, or of the given cost where that is higher.
        """
        # A password that fits nothing takes the place of one that is too long.
        typed = password if len(password) <= MAX_LENGTH else "\0"
        fits = await self._run(lambda: self._verify_forms(typed, stored, cost))
        return fits and typed == password

    def _hash(self, password: str) -> str:
        """Return a new hash with the newest key. Blocks the thread."""
        digest = _digest(self._keys[self._current_key_id], password)
        hashed = bcrypt.hashpw(digest, bcrypt.gensalt(self._cost))
        return f"{_PREFIX}{self._current_key_id}${hashed.decode()}"

    def _verify_forms(self, password: str, stored: str | None, cost: int) -> bool:
        """Return whether the password fits the hash in one of the forms in which it may have been
        typed. Blocks the thread for one check of each form, at a cost of at least `cost`.

        Another application hashed the bytes that were typed, which are NFC on most keyboards and
        NFD on some; Flask-Security hashed their NFKD. A hash of ours needs one check; it gets as
        many, so that the number of checks says nothing about the account. Without a hash, or if it
        cannot be read or its key is gone, checks a hash of ours that fits no password, and returns
        False.

        Only Flask-Security's hashes may fit the NFKD, and none fits if no salt is configured.
        """
        forms = _normal_forms(password, "NFC", "NFD", "NFKD")
        if stored and (scheme := scheme_of(stored)):
            hashed = stored.removeprefix(SCHEMES[scheme]).encode()
            # All are checked before one is looked at, so that the time is the same.
            fits = [
                self._check_at_cost(self._bcrypt_input(form, scheme), hashed, cost)
                for form in forms
            ]
            if scheme == "flask-security":
                return any(fits) and self._salt != b""
            typed = _normal_forms(password, "NFC", "NFD")
            return any(fit for form, fit in zip(forms, fits, strict=True) if form in typed)
        key_id, hashed = _split(stored or self._dummy_hash)
        key = self._keys.get(key_id)
        if key is None:
            _, hashed = _split(self._dummy_hash)
        digest = _digest(key or b"", password)
        fits = [self._check_at_cost(digest, hashed, cost) for _ in forms]
        return fits[0] and key is not None and stored is not None

    def _bcrypt_input(self, typed: bytes, scheme: str) -> bytes:
        """Return the bytes that the scheme passes to bcrypt for this password, at most 72."""
        if scheme == "flask-bcrypt-long":
            return hashlib.sha256(typed).hexdigest().encode()
        if scheme == "flask-security":
            return base64.b64encode(hmac.digest(self._salt, typed, "sha512"))[:72]
        return typed[:72]

    def _check_at_cost(self, digest: bytes, hashed: bytes, cost: int) -> bool:
        """Return whether the digest fits the bcrypt hash, after the time that a hash of our cost,
        or of the given one if that is higher, takes."""
        fits = _checkpw(digest, hashed)
        # Each cost doubles the work, so these hashes add up to the difference. A correct password
        # takes as long, because the account may be disabled.
        for missing in range(cost_of(hashed), max(self._cost, cost)):
            bcrypt.hashpw(digest, bcrypt.gensalt(missing))
        return fits

    def needs_rehash(self, stored: str) -> bool:
        """Return whether the next sign-in should replace the hash: it was made with another key
        than the newest, at a lower cost than configured, or by another application."""
        key_id, hashed = _split(stored)
        return key_id != self._current_key_id or cost_of(hashed) < self._cost

    def close(self) -> None:
        """Close the pool. Cancels what is queued, and does not wait for running threads. A call of
        `hash` or `verify` after that raises RuntimeError."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    async def _run(self, work: Callable[[], T]) -> T:
        """Run the work in a thread of the pool, and return its result.

        Raises Busy, which is logged, if the queue is full, and RuntimeError after `close`. If the
        caller is cancelled, the work still runs.
        """
        self.check_capacity()
        self._pending += 1
        future = asyncio.get_running_loop().run_in_executor(self._pool, work)
        # Counted until the thread is done, not until the caller is: a caller who was cancelled
        # has not made the thread free.
        future.add_done_callback(lambda _: self._release())
        return await asyncio.shield(future)

    def _release(self) -> None:
        self._pending -= 1


def scheme_of(stored: str) -> str | None:
    """Return the scheme of another application's hash, by its prefix and the form of its bcrypt
    hash. None for a hash of ours, or for any other text."""
    schemes = (
        scheme
        for scheme, prefix in SCHEMES.items()
        if stored.startswith(prefix) and BCRYPT_HASH.match(stored.removeprefix(prefix))
    )
    return next(schemes, None)


def _lower_thread_priority() -> None:
    """Give the current thread a lower priority, so that hashing does not slow the event loop.

    Does nothing where the system has no priorities for threads; only Linux has.
    """
    with suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 10)


def _digest(key: bytes, password: str) -> bytes:
    """Return the keyed digest of the password, 64 characters, which bcrypt reads completely.

    The password is normalized to NFC, because keyboards differ in how they send accents.
    """
    text = unicodedata.normalize("NFC", password).encode("utf-8", "surrogatepass")
    return base64.b64encode(hmac.digest(key, text, "sha384"))


def _normal_forms(password: str, *normal: Literal["NFC", "NFD", "NFKD"]) -> list[bytes]:
    """Return the password as UTF-8: as typed, and in the normal forms that differ from it."""
    typed = (password, *(unicodedata.normalize(form, password) for form in normal))
    return list(dict.fromkeys(text.encode("utf-8", "surrogatepass") for text in typed))


def _key_id(key: bytes) -> str:
    """Return the first eight hexadecimal digits of the key's SHA-256, which name it in hashes."""
    return hashlib.sha256(key).hexdigest()[:8]


def _split(stored: str) -> tuple[str, bytes]:
    """Return the key id and the bcrypt hash of a stored hash of ours. For other texts, the first
    part is no known key id, or the second is no bcrypt hash."""
    key_id, _, hashed = stored.removeprefix(_PREFIX).partition("$")
    return key_id, hashed.encode()


def _random_bcrypt_hash(cost: int) -> str:
    """Return a bcrypt hash with a random salt and a random digest, which belongs to no password.

    Checking a password against it takes as long as against any hash of this cost. Hashing a random
    password instead would take a quarter of a second when a worker starts.
    """
    digest = "".join(secrets.choice(_BCRYPT_ALPHABET) for _ in range(_BCRYPT_DIGEST_LENGTH))
    return bcrypt.gensalt(cost).decode() + digest


def cost_of(hashed: bytes) -> int:
    """Return the cost of a bcrypt hash, or 4, the lowest cost, for anything else."""
    found = re.match(rb"\$2[aby]\$(\d\d)\$", hashed)
    return max(4, int(found[1])) if found else 4


def _checkpw(digest: bytes, hashed: bytes) -> bool:
    """Return whether the digest fits; False for a hash that bcrypt cannot read."""
    try:
        return bcrypt.checkpw(digest, hashed)
    except ValueError:
        return False
