"""Names of devices in the language of the reader."""

from __future__ import annotations

from quartapp.i18n.texts import gettext as _

# What is stored for a device of which nothing is known.
UNKNOWN = "Unknown device"


def browser_name(stored: str) -> str:
    """Return the browser of a device, which is stored as "Firefox on Linux"; empty if it is not
    known."""
    return "" if stored == UNKNOWN else stored.partition(" on ")[0]


def system_name(stored: str) -> str:
    """Return the operating system of a device; empty if it is not known."""
    return stored.partition(" on ")[2]


def device_name(stored: str) -> str:
    """Return a device, which is stored as "Firefox on Linux", in the current language."""
    browser, on, system = stored.partition(" on ")
    if on:
        return _("%(browser)s on %(system)s", browser=browser, system=system)
    return _("Unknown device") if stored == UNKNOWN else stored
