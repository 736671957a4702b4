"""The languages, the one of the current task, and the choice among them by `Accept-Language`."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import lru_cache

# The names are in the languages themselves, so that everyone finds their own.
LOCALES = {"en": "English", "de": "Deutsch"}
DEFAULT = "en"
# English with accents and longer words, for development: it shows texts that are not in a catalog
# and layouts that are too narrow.
PSEUDO = "en-XA"

# No browser sends more. Longer headers get the default instead of our time.
LONGEST_HEADER = 512

_locale: ContextVar[str] = ContextVar("locale", default=DEFAULT)
# Return the code of the language of the current task, such as "de".
current_locale = _locale.get


def set_locale(locale: str | None) -> None:
    """Set the language for the rest of the current task, and of the tasks that it starts later.

    None or an unknown one means the default.
    """
    _locale.set(_known(locale))


@contextmanager
def use_locale(locale: str | None) -> Iterator[None]:
    """Set the language for the length of the block. None or an unknown one means the default."""
    token = _locale.set(_known(locale))
    try:
        yield
    finally:
        _locale.reset(token)


def _known(locale: str | None) -> str:
    return locale if locale and (locale in LOCALES or locale == PSEUDO) else DEFAULT


@lru_cache(256)
def negotiate(header: str, pseudo: bool = False) -> str:
    """Return the language that an `Accept-Language` header prefers (RFC 9110 12.5.4), or the
    default.

    A range such as `de-AT` finds `de`, by the lookup of RFC 4647 3.4. A language whose range has
    the quality 0, or a malformed one, is not chosen; but if no other fits, or the header is longer
    than LONGEST_HEADER, the default is returned in any case. The pseudo-locale is only offered if
    `pseudo` is set.
    """
    if len(header) > LONGEST_HEADER:
        return DEFAULT
    offered = {*LOCALES, PSEUDO} if pseudo else {*LOCALES}
    ranges = [_range(part) for part in header.split(",")]
    refused = {tag for tag, quality in ranges if not quality}
    # Sorting is stable, so the first one of those with the same quality is preferred.
    for tag, quality in sorted(ranges, key=lambda each: -each[1]):
        found = _lookup(tag, offered - refused)
        if quality and found:
            return found
    return DEFAULT


def _range(part: str) -> tuple[str, float]:
    """Return the language range and its quality; 0 if the quality is malformed."""
    tag, _, parameter = part.partition(";")
    name, _, value = parameter.partition("=")
    if not parameter:
        return tag.strip(), 1.0
    try:
        quality = float(value) if name.strip() == "q" else 0.0
    except ValueError:
        return tag.strip(), 0.0
    return tag.strip(), quality if 0 <= quality <= 1 else 0.0


def _lookup(tag: str, offered: Collection[str]) -> str | None:
    """Return the offered language that the range names, without subtags at its end if needed; for
    `*` the default. None if that is not offered."""
    if tag == "*":
        return DEFAULT if DEFAULT in offered else None
    by_lower = {locale.lower(): locale for locale in offered}
    words = tag.lower().split("-")
    prefixes = ("-".join(words[:count]) for count in range(len(words), 0, -1))
    return next((by_lower[prefix] for prefix in prefixes if prefix in by_lower), None)
