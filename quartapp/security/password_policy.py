"""Which passwords are accepted: one rule for forms and commands."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Self

from quartapp.i18n import lazy_gettext
from quartapp.i18n import lazy_gettext as _
from quartapp.policy import BUILT_IN_ROLES
from quartapp.security.password_scoring import MAX_WAITING, PasswordScorer
from quartapp.security.passwords import MAX_LENGTH
from quartapp.settings import Settings

if TYPE_CHECKING:
    from quartapp.security.breached_passwords import BreachedPasswords

MIN_LENGTH = 8
MIN_SCORE = 3
# Words that many people would try here. Words that are known of a person come to these.
CONTEXT_WORDS = ("quartapp", "administrator", *BUILT_IN_ROLES)
# Those of the 20,000 passwords most often found in leaks that zxcvbn takes for good ones.
COMMON_PASSWORDS = frozenset(
    Path(__file__).with_name("common_passwords.txt").read_text("utf-8").split()
)
# The warnings of zxcvbn, which are the ids of their translations.
WARNINGS = (
    _("Straight rows of keys are easy to guess."),
    _("Short keyboard patterns are easy to guess."),
    _('Repeats like "aaa" are easy to guess.'),
    _('Repeats like "abcabcabc" are only slightly harder to guess than "abc".'),
    _("This is a top-10 common password."),
    _("This is a top-100 common password."),
    _("This is a very common password."),
    _("This is similar to a commonly used password."),
    _("Sequences like abc or 6543 are easy to guess."),
    _("Recent years are easy to guess."),
    _("A word by itself is easy to guess."),
    _("Dates are often easy to guess."),
    _("Names and surnames by themselves are easy to guess."),
    _("Common names and surnames are easy to guess."),
)


def obvious_weakness(password: str, *, context: Sequence[str] = ()) -> str | None:
    """Return why the password is refused without scoring it, as a sentence for the user, or None.

    Refuses, in this order, a password of fewer than 8 or more than 256 code points (ASVS 6.2.1,
    6.2.9); one with a NUL or a lone surrogate; one of which fewer than 8 characters are left when
    the words of the context, such as the username, and CONTEXT_WORDS are removed (6.2.11); and one
    that is in COMMON_PASSWORDS, in any case (6.2.4, 6.2.12). There is no rule of composition
    (6.2.5). Takes microseconds.
    """
    if len(password) < MIN_LENGTH:
        return _("Use at least %(num)s characters.", num=MIN_LENGTH)
    if len(password) > MAX_LENGTH:
        return _("Use at most %(num)s characters.", num=MAX_LENGTH)
    if "\0" in password or any(0xD800 <= ord(c) <= 0xDFFF for c in password):
        return _("This password contains a character that cannot be used.")
    if len(_remove_words(_all_words(context), password)) < MIN_LENGTH:
        return _("This password is too similar to your username or another obvious word.")
    if password.strip().lower() in COMMON_PASSWORDS:
        return _("This password is too easy to guess. It is on lists of leaked passwords.")
    return None


@dataclass(frozen=True, slots=True)
class Rating:
    """How good a password is. `score` is zxcvbn's, and below MIN_SCORE for a password that is
    refused. `weakness` says why it is refused, or is None."""

    score: int
    weakness: str | None = None


class PasswordPolicy:
    """The complete rule: `obvious_weakness`, zxcvbn's score, and, if configured, known breaches.

    `close` ends the scoring process and the connections to the service for breached passwords.
    """

    def __init__(self, breached: BreachedPasswords | None = None, *, site_name: str = "") -> None:
        """Without `breached`, breaches are not looked up. The name of the site and its words belong
        to the context of every password."""
        self._scorer = PasswordScorer()
        self._breached = breached
        self._site_words = (site_name, *site_name.split())

    @classmethod
    def of(cls, settings: Settings) -> Self:
        """Return the policy for the settings. It asks BREACHED_PASSWORDS, unless that is off."""
        breached = None
        if settings.breached_passwords:
            # Importing the HTTP client is slow, and most commands do not need it.
            from quartapp.security.breached_passwords import BreachedPasswords

            breached = BreachedPasswords(settings.breached_passwords)
        return cls(breached, site_name=settings.site_name)

    @property
    def has_room(self) -> bool:
        """Whether the scorer has a place for a password whose score is not needed, as while a user
        types it. Half of the places are kept for passwords that must be scored."""
        return self._scorer.waiting < MAX_WAITING // 2

    async def weakness(self, password: str, *, context: Sequence[str] = ()) -> str | None:
        """Return why the password is refused, as a sentence for the user, or None if it is good.

        See `rate`.
        """
        return (await self.rate(password, context=context)).weakness

    async def rate(self, password: str, *, context: Sequence[str] = ()) -> Rating:
        """Return the score of the password, and why it is refused, as a sentence for the user.

        Refuses an `obvious_weakness`, then a score below MIN_SCORE (the sentence ends with zxcvbn's
        warning), then a password that is known from a breach. Each check runs only if the ones
        before it passed. A breach service that does not answer refuses nothing.

        Raises Busy, which the scorer logs, when the scoring process has too many passwords waiting,
        does not answer or cannot be started. Counts no limits: callers do that before.
        """
        context = (*context, *self._site_words)
        if reason := obvious_weakness(password, context=context):
            return Rating(0, reason)
        scored = await self._scorer.score(password, _all_words(context))
        if scored.score < MIN_SCORE:
            reason = _("This password is too easy to guess.")
            if scored.warning:
                why = lazy_gettext(scored.warning)
                reason = _("This password is too easy to guess. %(why)s", why=why)
            return Rating(scored.score, reason)
        if self._breached and await self._breached.contains(password):
            known = _("This password is known from a data breach. Choose a different one.")
            return Rating(1, known)
        return Rating(scored.score)

    async def close(self) -> None:
        """End the scoring process and close the connections."""
        await self._scorer.close()
        if self._breached:
            await self._breached.close()


def _all_words(context: Sequence[str]) -> list[str]:
    """Return CONTEXT_WORDS, the words of the context and the parts of its email addresses, without
    empty words and words longer than MAX_LENGTH."""
    known = (*context, *(part for word in context for part in word.split("@")))
    # No longer word can be in a password.
    return [word for word in (*CONTEXT_WORDS, *known) if word and len(word) <= MAX_LENGTH]


def _remove_words(words: Sequence[str], password: str) -> str:
    """Return the password, casefolded, without the words. The longest word is removed first.

    Words of one or two characters are not removed: they are in most passwords.
    """
    left = password.casefold()
    for word in sorted(words, key=len, reverse=True):
        if len(word) >= 3:
            left = left.replace(word.casefold(), "")
    return left
