"""Which passwords are accepted: one rule for forms and commands."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Self

from quartapp.policy import BUILT_IN_ROLES
from quartapp.security.breached_passwords import BreachedPasswords
from quartapp.security.password_scoring import PasswordScorer
from quartapp.security.passwords import MAX_LENGTH
from quartapp.settings import Settings

MIN_LENGTH = 8
MIN_SCORE = 3
# Words that many people would try here. Words that are known of a person come to these.
CONTEXT_WORDS = ("quartapp", "administrator", *BUILT_IN_ROLES)
# Those of the 20,000 passwords most often found in leaks that zxcvbn takes for good ones.
COMMON_PASSWORDS = frozenset(
    Path(__file__).with_name("common_passwords.txt").read_text("utf-8").split()
)


def obvious_weakness(password: str, *, context: Sequence[str] = ()) -> str | None:
    """Return why the password is refused without scoring it, as a sentence for the user, or None.

    Length in code points, at least 8 and at most 256 (ASVS 6.2.1, 6.2.9); no rule of composition
    (6.2.5); none that is common (6.2.4, 6.2.12); and none that is little more than a word of the
    context, such as the username (6.2.11): those words count for nothing. Takes microseconds.
    """
    if len(password) < MIN_LENGTH:
        return f"Use at least {MIN_LENGTH} characters."
    if len(password) > MAX_LENGTH:
        return f"Use at most {MAX_LENGTH} characters."
    if "\0" in password or any(0xD800 <= ord(c) <= 0xDFFF for c in password):
        return "This password contains a character that cannot be used."
    if len(_remove_words(_all_words(context), password)) < MIN_LENGTH:
        return "This password is too similar to your username or another obvious word."
    if password.strip().lower() in COMMON_PASSWORDS:
        return "This password is too easy to guess. It is on lists of leaked passwords."
    return None


class PasswordPolicy:
    """The whole rule: what is obvious, zxcvbn's score, and, if configured, known breaches.

    `close` ends its process and its connections.
    """

    def __init__(self, breached: BreachedPasswords | None = None, *, site_name: str = "") -> None:
        self._scorer = PasswordScorer()
        self._breached = breached
        self._site_words = (site_name, *site_name.split())

    @classmethod
    def of(cls, settings: Settings) -> Self:
        url = settings.breached_passwords
        breached = BreachedPasswords(url) if url else None
        return cls(breached, site_name=settings.site_name)

    async def weakness(self, password: str, *, context: Sequence[str] = ()) -> str | None:
        """Return why the password is refused, as a sentence for the user, or None if it is good.

        Awaits the scoring process, and asks for breaches only for a password that is good
        otherwise. Raises Busy when too many wait for the process. Callers count limits before.
        """
        context = (*context, *self._site_words)
        if reason := obvious_weakness(password, context=context):
            return reason
        scored = await self._scorer.score(password, _all_words(context))
        if scored.score < MIN_SCORE:
            return " ".join(["This password is too easy to guess.", scored.warning]).rstrip()
        if self._breached and await self._breached.contains(password):
            return "This password is known from a data breach. Choose a different one."
        return None

    async def close(self) -> None:
        await self._scorer.close()
        if self._breached:
            await self._breached.close()


def _all_words(context: Sequence[str]) -> list[str]:
    known = (*context, *(part for word in context for part in word.split("@")))
    # No longer word can be in a password.
    return [word for word in (*CONTEXT_WORDS, *known) if word and len(word) <= MAX_LENGTH]


def _remove_words(words: Sequence[str], password: str) -> str:
    """What is left of the password, the longest words taken out first. Very short ones stay: they
    are in everything."""
    left = password.casefold()
    for word in sorted(words, key=len, reverse=True):
        if len(word) >= 3:
            left = left.replace(word.casefold(), "")
    return left
