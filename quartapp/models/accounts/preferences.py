"""How a user prefers to see the pages, and what they are told by email."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Any

from pydantic import BaseModel

from quartapp.i18n import timezones


class Theme(StrEnum):
    """A colour scheme of the pages. Without a choice, they follow the system."""

    LIGHT = "light"
    DARK = "dark"


class Preferences(BaseModel):
    """The preferences of a user. None leaves the choice to the browser.

    `language` is the tag of a language, `timezone` the name of a zone, and `theme` a Theme. They
    are plain strings, because the database may hold a value that this version does not know:
    readers treat it like None. `emailed` has the names of the groups of notifications that are also
    sent by email.
    """

    language: str | None = None
    timezone: str | None = None
    theme: str | None = None
    emailed: list[str] = []


def stored_preference(user: Mapping[str, Any], name: str) -> str | None:
    """Return this preference of a user document, or None for one that is missing or no string."""
    preferences = user.get("preferences")
    value = preferences.get(name) if isinstance(preferences, Mapping) else None
    return value if isinstance(value, str) else None


def stored_theme(user: Mapping[str, Any]) -> str | None:
    """Return the theme of a user document, or None for a value that is no Theme."""
    theme = stored_preference(user, "theme")
    return theme if theme in set(Theme) else None


def stored_timezone(user: Mapping[str, Any]) -> str | None:
    """Return the time zone of a user document, or None for a value that names no zone."""
    zone = stored_preference(user, "timezone")
    return zone if timezones.find(zone) else None


def stored_groups(user: Mapping[str, Any]) -> frozenset[str]:
    """Return the groups of notifications that the user of the document gets by email."""
    preferences = user.get("preferences")
    groups = preferences.get("emailed") if isinstance(preferences, Mapping) else None
    return frozenset(each for each in groups if isinstance(each, str)) if groups else frozenset()
