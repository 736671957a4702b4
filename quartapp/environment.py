"""Names of settings in the environment and in `.env` that look like ours and are not.

A misspelt name is ignored by whatever reads settings, so the default would be used unnoticed.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from difflib import SequenceMatcher
from functools import partial

# Names that begin so are meant for this application.
PREFIXES = ("QUARTAPP_", "LIMIT_", "BCRYPT_", "SMTP_", "SOCKETS_PER_", "REMEMBERED_")
# Kubernetes describes each service to all containers of its namespace, whatever the service's name.
SERVICE_LINK = re.compile(r"_SERVICE_(HOST|PORT)(_\w+)?$|_PORT(_\d+_(TCP|UDP|SCTP)(_\w+)?)?$")
LEAST_LIKENESS = 0.85
MOST_EDITS = 2
WORTH_A_HINT = 0.8


def misspelt(names: Iterable[str], known: Collection[str]) -> dict[str, str | None]:
    """Return the names that resemble a known one, each with the closest known name.

    The closest is None where only the prefix is ours. Case does not count.
    """
    found: dict[str, str | None] = {}
    for name in sorted({name.upper() for name in names} - set(known)):
        meant = [each for each in known if _resembles(name, each)]
        if not meant and name.startswith(PREFIXES) and not SERVICE_LINK.search(name):
            found[name] = None
            meant = [each for each in known if _likeness(name, each) >= WORTH_A_HINT]
        if meant:
            found[name] = max(meant, key=partial(_likeness, name))
    return found


def _resembles(name: str, known: str) -> bool:
    if _edits(name, known) <= MOST_EDITS:
        return True
    same_family = name.split("_")[0] == known.split("_")[0] and "_" in name
    return same_family and (
        known.startswith(f"{name}_") or _likeness(name, known) >= LEAST_LIKENESS
    )


def _likeness(one: str, other: str) -> float:
    return SequenceMatcher(None, one, other, autojunk=False).ratio()


def _edits(one: str, other: str) -> int:
    """The edit distance of Levenshtein, or more than MOST_EDITS if it is larger than that."""
    if abs(len(one) - len(other)) > MOST_EDITS:
        return MOST_EDITS + 1
    row = list(range(len(other) + 1))
    for i, a in enumerate(one, 1):
        last, row = row, [i]
        for j, b in enumerate(other, 1):
            row.append(min(last[j] + 1, row[-1] + 1, last[j - 1] + (a != b)))
    return row[-1]
