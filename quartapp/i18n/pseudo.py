"""The pseudo-locale: English texts with an accent on each letter, and 40 % longer.

A text without accents is not from a catalog. A layout that it breaks will be broken by a real
translation too.
"""

from __future__ import annotations

import re

_PLAIN = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_ACCENTED = "ÅƁÇÐÉƑĜĤÎĴĶĻṀÑÖÞǪŔŠŢÛṼŴẊÝŽåƀçðéƒĝĥîĵķļɱñöþǫŕšţûṽŵẋýž"
_ACCENTS = str.maketrans(_PLAIN, _ACCENTED)
_GROWTH = 0.4
# What stays as it is: words to fill in, percent signs, tags and entities.
_FIXED = re.compile(r"(%\(\w+\)[sd]|%%|\{[^{}]*\}|<[^<>]*>|&#?\w+;)")
_FILLING = "öñé ţŵö ţĥŕéé ƒöûŕ ƒîṽé šîẋ šéṽéñ éîĝĥţ ñîñé ţéñ "


def translate(text: str) -> str:
    """Return the text with accents, and with further words at its end. Placeholders and HTML are
    unchanged, and so is a text without letters."""
    parts = _FIXED.split(text)
    # Every second part is one that the pattern has found.
    letters = sum(map(len, parts[::2]))
    if not any(char.isalpha() for part in parts[::2] for char in part):
        return text
    parts[::2] = (part.translate(_ACCENTS) for part in parts[::2])
    extra = max(1, round(letters * _GROWTH) - 1)
    filling = (_FILLING * (extra // len(_FILLING) + 1))[:extra].strip()
    joined = "".join(parts)
    body = joined.rstrip()
    return f"{body} {filling}{joined[len(body) :]}"
