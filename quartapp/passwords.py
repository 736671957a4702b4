"""Passwords: how strong one must be, and how its hash is made and checked.

A hash is `$quartapp$<key id>$<bcrypt>`, where bcrypt sees a keyed digest of the password: bcrypt
itself reads 72 bytes at most, and a stolen database alone cannot be searched without the key.
A plain bcrypt hash, as Flask-Bcrypt makes them, is read too, and is outdated from the start.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import os
import re
import threading
import unicodedata
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Self, TypeVar

import bcrypt
from zxcvbn_rs_py import zxcvbn

from quartapp.later import TryLater
from quartapp.log import log
from quartapp.policy import BUILT_IN_ROLES
from quartapp.settings import Settings

SHORTEST, LONGEST = 8, 256
# What anybody would try here. Words that are known of a person come to these.
CONTEXT_WORDS = ("quartapp", "administrator", *BUILT_IN_ROLES)
# Those of the 20,000 passwords most often found in leaks that zxcvbn takes for good ones.
COMMON = frozenset(Path(__file__).with_name("common_passwords.txt").read_text("utf-8").split())
PLAIN = re.compile(r"\A\$2[aby]\$(0[4-9]|1[0-4])\$[./A-Za-z0-9]{53}\Z")
LEAST_SCORE = 3
_PREFIX = "$quartapp$"
T = TypeVar("T")


class Busy(TryLater):
    """More passwords wait to be checked than the queue holds."""


def weakness(password: str, *, context: Sequence[str] = ()) -> str | None:
    """Why this password is refused, as a sentence for the person who chose it; None if it is good.

    Length in code points, at least 8 and at most 256 (ASVS 6.2.1, 6.2.9); no rule of composition
    (6.2.5); none that is common (6.2.4, 6.2.12); and none that is little more than a word of the
    context, such as the username (6.2.11): those words count for nothing.
    """
    if len(password) < SHORTEST:
        return f"Use at least {SHORTEST} characters."
    if len(password) > LONGEST:
        return f"Use at most {LONGEST} characters."
    if "\0" in password or any(0xD800 <= ord(c) <= 0xDFFF for c in password):
        return "This password has a character that cannot be stored."
    known = (*context, *(part for word in context for part in word.split("@")))
    words = [word for word in (*CONTEXT_WORDS, *known) if word]
    if len(_without(words, password)) < SHORTEST:
        return "This password is little more than a word that anybody would try here."
    if password.strip().lower() in COMMON:
        return "This password is too easy to guess. It was found in leaks again and again."
    # Scoring is quadratic; what makes a password strong is decided well before 100 characters.
    result = zxcvbn(password[:100], words)
    if int(result.score) >= LEAST_SCORE:
        return None
    advice = [str(result.feedback.warning)] if result.feedback and result.feedback.warning else []
    return " ".join(["This password is too easy to guess.", *advice])


def _without(words: Sequence[str], password: str) -> str:
    """What is left of the password, the longest words taken out first. Very short ones stay: they
    are in everything."""
    left = password.casefold()
    for word in sorted(words, key=len, reverse=True):
        if len(word) >= 3:
            left = left.replace(word.casefold(), "")
    return left


class PasswordHasher:
    """bcrypt in threads of its own, never on the event loop, with a queue that has an end.

    `keys` are the secrets for the keyed digest: the first makes new hashes, all are tried by
    the id in a stored hash, so that a key can be replaced while people sign in.
    """

    def __init__(self, keys: Sequence[bytes], *, cost: int, threads: int, queue: int) -> None:
        derived = [hmac.digest(key, b"quartapp password", "sha384") for key in keys]
        self._keys = {_key_id(key): key for key in reversed(derived)}
        self._current = _key_id(derived[0])
        self._cost = cost
        self._room = threads + queue
        self._pending = 0
        self._pool = ThreadPoolExecutor(
            threads, thread_name_prefix="bcrypt", initializer=_let_others_first
        )
        # Fits no password: checked when there is no user, so that nobody can tell (P9).
        self._dummy = (
            f"{_PREFIX}{self._current}$" + bcrypt.hashpw(b"", bcrypt.gensalt(cost)).decode()
        )

    @classmethod
    def of(cls, settings: Settings) -> Self:
        keys = [settings.secret_key, *settings.secret_key_fallbacks]
        return cls(
            [key.get_secret_value().encode() for key in keys],
            cost=settings.bcrypt_cost,
            threads=settings.bcrypt_threads,
            queue=settings.bcrypt_queue,
        )

    def check_room(self) -> None:
        """Raises Busy when the queue is full, for whoever has work to do before."""
        if self._pending >= self._room:
            log.warning("excess_rate_limit_exceeded", what="passwords")
            raise Busy

    async def hash(self, password: str) -> str:
        """Awaits a thread of the pool. Raises Busy when the queue is full."""
        digest = _digest(self._keys[self._current], password)
        hashed = await self._run(lambda: bcrypt.hashpw(digest, bcrypt.gensalt(self._cost)))
        return f"{_PREFIX}{self._current}${hashed.decode()}"

    async def verify(self, password: str, stored: str | None, *, cost: int = 0) -> bool:
        """Whether the password fits; None, for nobody, takes as long as somebody.

        Awaits a thread of the pool. Raises Busy when the queue is full. A hash that cannot be
        read fits nothing. One of a lower cost takes as long as one of ours, or of the given cost
        where that is higher.
        """
        if stored and PLAIN.match(stored):
            # As Flask-Bcrypt had it: the bytes as they were typed, of which bcrypt read 72.
            plain = password.encode("utf-8", "surrogatepass")[:72]
            return await self._run(lambda: self._check(plain, stored.encode(), cost))
        key_id, hashed = _split(stored or self._dummy)
        key = self._keys.get(key_id)
        if key is None:
            _, hashed = _split(self._dummy)
        digest = _digest(key or b"", password)
        fits = await self._run(lambda: self._check(digest, hashed, cost))
        return fits and key is not None and stored is not None

    def _check(self, digest: bytes, hashed: bytes, cost: int) -> bool:
        fits = _checkpw(digest, hashed)
        # Each cost is twice the work of the one before: together they make up the difference. Also
        # where it fits, for the account may be a closed one.
        for missing in range(cost_of(hashed), max(self._cost, cost)):
            bcrypt.hashpw(digest, bcrypt.gensalt(missing))
        return fits

    def outdated(self, stored: str) -> bool:
        """Whether the hash was made with an older key or a lower cost, so should be made anew."""
        key_id, hashed = _split(stored)
        return key_id != self._current or cost_of(hashed) < self._cost

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)

    async def _run(self, work: Callable[[], T]) -> T:
        self.check_room()
        self._pending += 1
        future = asyncio.get_running_loop().run_in_executor(self._pool, work)
        # Counted until the thread is done, not until the caller is: a caller who was cancelled
        # has not made the thread free.
        future.add_done_callback(lambda _: self._release())
        return await asyncio.shield(future)

    def _release(self) -> None:
        self._pending -= 1


def _let_others_first() -> None:
    """A thread that hashes takes a whole core, which the event loop may need. Linux alone gives
    single threads a priority; elsewhere they stay as they are."""
    with suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 10)


def _digest(key: bytes, password: str) -> bytes:
    """64 characters that bcrypt reads whole. NFC, so that one password is one on each keyboard."""
    text = unicodedata.normalize("NFC", password).encode("utf-8", "surrogatepass")
    return base64.b64encode(hmac.digest(key, text, "sha384"))


def _key_id(key: bytes) -> str:
    return hashlib.sha256(key).hexdigest()[:8]


def _split(stored: str) -> tuple[str, bytes]:
    key_id, _, hashed = stored.removeprefix(_PREFIX).partition("$")
    return key_id, hashed.encode()


def cost_of(hashed: bytes) -> int:
    """The cost of a bcrypt hash; for what is none, the lowest that there is."""
    found = re.match(rb"\$2[aby]\$(\d\d)\$", hashed)
    return max(4, int(found[1])) if found else 4


def _checkpw(digest: bytes, hashed: bytes) -> bool:
    try:
        return bcrypt.checkpw(digest, hashed)
    except ValueError:
        return False
