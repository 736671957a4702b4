"""Pictures of the pages: the icons of static/icons.svg, and avatars of initials."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from markupsafe import Markup

# The classes avatar-0 to avatar-7 of app.css set their colours.
COLOURS = 8
_COMPUTERS = ("Linux", "Windows", "Mac", "Ubuntu", "Chrome OS", "Fedora", "Debian", "FreeBSD")


def names(sprite: Path) -> list[str]:
    """Return the names of the icons in the sprite."""
    return re.findall(r'<symbol id="([\w-]+)"', sprite.read_text())


def renderer(sprite: Path, url: str) -> Callable[..., Markup]:
    """Return the function `icon(name, text="")` for the templates.

    It returns the icon with this name in the sprite, which is served at `url`. An icon without a
    text is hidden from screen readers, because text beside it says the same. Raises KeyError for a
    name that is not in the sprite.
    """
    use = Markup('<use href="{}#{}"/>')
    uses = {name: use.format(url, name) for name in names(sprite)}

    def icon(name: str, text: str = "") -> Markup:
        kind = "logo" if name == "logo" else "icon"
        if text:
            labelled = Markup('<svg class="{}" role="img" aria-label="{}">{}</svg>')
            return labelled.format(kind, text, uses[name])
        return Markup('<svg class="{}" aria-hidden="true">{}</svg>').format(kind, uses[name])

    return icon


def avatar(user: Any, big: bool = False) -> Markup:
    """Return the initials of a user in the colour of their id; "?" for a deleted user.

    `user` is a User, the current user or another object with `username` and `id` or `user_id`. The
    avatar is hidden from screen readers, because the name stands beside it.
    """
    name = getattr(user, "display_name", "") or getattr(user, "username", "")
    key = str(getattr(user, "user_id", "") or getattr(user, "id", "") or "0")
    size = " avatar-big" if big else ""
    return Markup('<span class="avatar avatar-{}{}" aria-hidden="true">{}</span>').format(
        _colour(key), size, initials(name)
    )


def device_icon(device: str) -> str:
    """Return the name of the icon for a device such as "Firefox on Linux"."""
    system = device.rpartition(" on ")[2]
    if "iPad" in system:
        return "tablet"
    if system.startswith(("Android", "iOS")):
        return "phone"
    return "laptop" if system.startswith(_COMPUTERS) else "globe"


def initials(name: str) -> str:
    """Return the first letters of the first and the last word, or of a single word the first two;
    "?" without a name."""
    words = re.findall(r"[^\W_]+", name)
    if len(words) > 1:
        return (words[0][0] + words[-1][0]).upper()
    return words[0][:2].upper() if words else "?"


def _colour(key: str) -> int:
    """Return the number of a colour for an id. The last digits of an ObjectId are a counter."""
    return int(key[-6:], 16) % COLOURS if re.fullmatch("[0-9a-f]+", key) else 0
