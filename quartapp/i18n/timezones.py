"""The time zones that a user can choose, by their names in the database of the IANA."""

from __future__ import annotations

from functools import cache
from importlib import resources
from zoneinfo import ZoneInfo

# First parts of the names to choose from.
REGIONS = (
    *("Africa", "America", "Antarctica", "Asia", "Atlantic", "Australia", "Europe"),
    *("Indian", "Pacific"),
)


@cache
def names() -> frozenset[str]:
    """Return the names of all zones, also outdated ones, which some browsers report."""
    text = (resources.files("tzdata") / "zones").read_text(encoding="ascii")
    return frozenset(text.split())


def find(name: str | None) -> ZoneInfo | None:
    """Return the zone of this name, or None for any other text and for None.

    The name may come from a cookie or from another program: only those in `names` are looked up.
    """
    return ZoneInfo(name) if name and name in names() else None


@cache
def by_region() -> dict[str, list[str]]:
    """Return the names of the zones to choose from by region, in alphabetical order.

    These are the zones that the database lists for a country, at least one for each."""
    folder = resources.files("tzdata") / "zoneinfo"
    lines = (folder / "zone.tab").read_text(encoding="utf-8").splitlines()
    rows = [line.split("\t") for line in lines if not line.startswith("#")]
    listed = sorted(row[2] for row in rows)
    return {
        region: [name for name in listed if name.startswith(f"{region}/")] for region in REGIONS
    }
