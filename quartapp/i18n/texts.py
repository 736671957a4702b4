"""Translating texts in Python code, now or when they are shown."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from quartapp.i18n.catalogs import load
from quartapp.i18n.locales import current_locale


def gettext(message: str, /, **words: Any) -> str:
    """Return the text in the current language.

    If there are `words`, `%(name)s` in the text is replaced by them and `%%` by one percent sign.
    Lazy words are translated as well.
    """
    text = load(current_locale()).gettext(message)
    return text % words if words else text


def ngettext(singular: str, plural: str, number: int, /, **words: Any) -> str:
    """Return the text for this number in the current language. The text may contain `%(num)s`."""
    text = load(current_locale()).ngettext(singular, plural, number)
    return text % {"num": number, **words}


class LazyText:
    """A text that is translated each time it is shown.

    `str`, `%`, templates and comparisons with a str use the language that is current then. It keeps
    the English text and the words apart, so the same object can be shown in several languages.
    """

    __slots__ = ("_arguments", "_words")

    def __init__(self, *arguments: Any, **words: Any) -> None:
        self._arguments = arguments
        self._words = words

    def __str__(self) -> str:
        if len(self._arguments) == 1:
            return gettext(*self._arguments, **self._words)
        return ngettext(*self._arguments, **self._words)

    def __mod__(self, words: Mapping[str, Any] | tuple[Any, ...]) -> str:
        return str(self) % words

    def __repr__(self) -> str:
        return f"LazyText({', '.join(map(repr, self._arguments))})"

    def __eq__(self, other: object) -> bool:
        return str(self) == str(other) if isinstance(other, str | LazyText) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._arguments)

    def __bool__(self) -> bool:
        return bool(self._arguments[0])


def lazy_gettext(message: str, /, **words: Any) -> LazyText:
    """Return the text as one that is translated when it is shown."""
    return LazyText(message, **words)


def lazy_ngettext(singular: str, plural: str, number: int, /, **words: Any) -> LazyText:
    """Return the text for this number as one that is translated when it is shown."""
    return LazyText(singular, plural, number, **words)
