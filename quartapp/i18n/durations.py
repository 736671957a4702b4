"""Lengths of time in words."""

from __future__ import annotations

from datetime import timedelta

from quartapp.i18n.texts import lazy_gettext as _
from quartapp.i18n.texts import lazy_ngettext


def duration(length: timedelta) -> str:
    """Return the length in words, such as "1 minute and 30 seconds", as a lazy text.

    It can follow "in" or "within": languages with cases use the one of these words. Units that are
    zero and fractions of a second are left out; less than a second is "0 seconds".
    """
    seconds = int(length.total_seconds())
    minutes, seconds = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    parts = [
        part
        for number, part in (
            (days, lazy_ngettext("%(num)s day", "%(num)s days", days)),
            (hours, lazy_ngettext("%(num)s hour", "%(num)s hours", hours)),
            (minutes, lazy_ngettext("%(num)s minute", "%(num)s minutes", minutes)),
            (seconds, lazy_ngettext("%(num)s second", "%(num)s seconds", seconds)),
        )
        if number
    ]
    if not parts:
        return lazy_ngettext("%(num)s second", "%(num)s seconds", 0)
    words = parts.pop(0)
    while len(parts) > 1:
        words = _("%(first)s, %(second)s", first=words, second=parts.pop(0))
    return _("%(first)s and %(second)s", first=words, second=parts[0]) if parts else words
