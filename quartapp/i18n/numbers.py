"""Numbers in the language of the reader."""

from __future__ import annotations

from functools import cache

from babel.numbers import get_decimal_symbol, get_group_symbol

from quartapp.i18n.locales import DEFAULT, PSEUDO, current_locale


def format_number(number: int) -> str:
    """Return the number with separators between thousands, such as "20,000", or "20.000" in
    German."""
    return f"{number:,}".replace(",", _separator(current_locale()))


def format_capped(number: int, more: bool) -> str:
    """Return the number, followed by "+" if there are more than were counted."""
    return f"{format_number(number)}+" if more else format_number(number)


def format_seconds(seconds: float) -> str:
    """Return a short duration, in milliseconds below a second: "4 ms", "2.5 s"."""
    if seconds < 0.9995:
        return f"{round(seconds * 1000)} ms"
    locale = current_locale()
    point = get_decimal_symbol(DEFAULT if locale == PSEUDO else locale)
    return f"{round(seconds, 1):g} s".replace(".", point)


@cache
def _separator(locale: str) -> str:
    return get_group_symbol(DEFAULT if locale == PSEUDO else locale)
