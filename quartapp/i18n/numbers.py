"""Numbers in the language of the reader."""

from __future__ import annotations

from functools import cache

from babel.numbers import get_group_symbol

from quartapp.i18n.locales import DEFAULT, PSEUDO, current_locale


def format_number(number: int) -> str:
    """Return the number with separators between thousands, such as "20,000", or "20.000" in
    German."""
    return f"{number:,}".replace(",", _separator(current_locale()))


@cache
def _separator(locale: str) -> str:
    return get_group_symbol(DEFAULT if locale == PSEUDO else locale)
