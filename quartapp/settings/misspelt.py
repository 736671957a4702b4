"""Finding names in the environment and in `.env` that are probably misspelt settings.

Pydantic ignores names that it does not know, so the default would be used unnoticed.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from difflib import SequenceMatcher
from functools import partial

# Names with these prefixes are meant for this application.
PREFIXES = ("QUARTAPP_", "LIMIT_", "BCRYPT_", "SMTP_", "SOCKETS_PER_", "REMEMBERED_")
# Kubernetes gives every container variables that describe each service of its namespace. A service
# may be called quartapp or smtp.
SERVICE_LINK = re.compile(r"_SERVICE_(HOST|PORT)(_\w+)?$|_PORT(_\d+_(TCP|UDP|SCTP)(_\w+)?)?$")
LEAST_SIMILARITY = 0.85
MOST_EDITS = 2
LEAST_SIMILARITY_OF_A_HINT = 0.8


def misspelt(names: Iterable[str], known: Collection[str]) -> dict[str, str | None]:
    """Return the names that resemble a known name, in upper case, with the most similar known one.

    A name that has one of our prefixes (PREFIXES) and resembles no known name is returned too: with
    the most similar known name if the similarity is at least LEAST_SIMILARITY_OF_A_HINT, else with
    None. Not if Kubernetes may have set it to describe a service (SERVICE_LINK). Known names are
    left out. Upper and lower case are the same.
    """
    found: dict[str, str | None] = {}
    for name in sorted({name.upper() for name in names} - set(known)):
        meant = [each for each in known if _resembles(name, each)]
        if not meant and name.startswith(PREFIXES) and not SERVICE_LINK.search(name):
            found[name] = None
            meant = [
                each for each in known if _similarity(name, each) >= LEAST_SIMILARITY_OF_A_HINT
            ]
        if meant:
            found[name] = max(meant, key=partial(_similarity, name))
    return found


def _resembles(name: str, known: str) -> bool:
    """Whether the names differ in at most two letters, or share their first word and are similar.

    "SMTP" for "SMTP_HOST" does not count, "SESSION_IDLE" for "SESSION_IDLE_SECONDS" does.
    """
    if _edits(name, known) <= MOST_EDITS:
        return True
    same_first_word = name.split("_")[0] == known.split("_")[0] and "_" in name
    return same_first_word and (
        known.startswith(f"{name}_") or _similarity(name, known) >= LEAST_SIMILARITY
    )


def _similarity(one: str, other: str) -> float:
    """Return how similar the texts are, from 0 to 1."""
    return SequenceMatcher(None, one, other, autojunk=False).ratio()


def _edits(one: str, other: str) -> int:
    """Return the Levenshtein distance of the texts.

    If there are more than MOST_EDITS, stop counting and return a number greater than that.
    """
    if abs(len(one) - len(other)) > MOST_EDITS:
        return MOST_EDITS + 1
    row = list(range(len(other) + 1))
    for i, a in enumerate(one, 1):
        last, row = row, [i]
        for j, b in enumerate(other, 1):
            row.append(min(last[j] + 1, row[-1] + 1, last[j - 1] + (a != b)))
        # No row has a smaller minimum than the one before it.
        if min(row) > MOST_EDITS:
            return MOST_EDITS + 1
    return row[-1]
