"""Translating texts in Python code, now or when they are shown."""

from __future__ import annotations

from typing import Any, cast

from quartapp.i18n.catalogs import load
from quartapp.i18n.locales import DEFAULT, current_locale


def gettext(message: str, /, **words: Any) -> str:
    """Return the text in the current language.

    If there are `words`, `%(name)s` in the text is replaced by them and `%%` by one percent sign; a
    missing one raises KeyError. Lazy words are translated as well.
    """
    text = load(current_locale()).gettext(message)
    return text % words if words else text


def ngettext(singular: str, plural: str, number: int, /, **words: Any) -> str:
    """Return the text for this number in the current language. The text may contain `%(num)s`."""
    text = load(current_locale()).ngettext(singular, plural, number)
    return text % {"num": number, **words}


class LazyText:
    """A text that is translated each time it is shown.

    It keeps the English text and the words apart, so one object can be shown in several languages.
    `str`, formatting, templates, comparisons and the methods of str use the language that is
    current then. It is no subclass of str: such an object would be shown untranslated where the
    interpreter reads the characters of a str directly.
    """

    __slots__ = ("_arguments", "_words")

    def __init__(self, *arguments: Any, **words: Any) -> None:
        self._arguments = arguments
        self._words = words

    def __str__(self) -> str:
        if len(self._arguments) == 1:
            return gettext(*self._arguments, **self._words)
        return ngettext(*self._arguments, **self._words)

    def __contains__(self, part: str) -> bool:
        return part in str(self)

    def __mod__(self, words: Any) -> str:
        return str(self) % words

    def __getattr__(self, name: str) -> Any:
        return getattr(str(self), name)

    def __repr__(self) -> str:
        return f"LazyText({', '.join(map(repr, self._arguments))})"

    def __eq__(self, other: object) -> bool:
        return str(self) == str(other) if isinstance(other, str | LazyText) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._arguments)

    def __bool__(self) -> bool:
        return bool(self._arguments[0])


class LibraryText(LazyText):
    """The English text of a library, and the text that replaces it in other languages."""

    __slots__ = ()

    def __str__(self) -> str:
        english, other = self._arguments
        return english if current_locale() == DEFAULT else str(other)


def lazy_gettext(message: str, /, **words: Any) -> str:
    """Return the text as one that is translated when it is shown: a LazyText.

    The declared type is str, because forms, errors and templates take it where they take a str.
    """
    return cast(str, LazyText(message, **words))


def lazy_ngettext(singular: str, plural: str, number: int, /, **words: Any) -> str:
    """Return the text for this number as `lazy_gettext` does."""
    return cast(str, LazyText(singular, plural, number, **words))


def library_text(english: str, other: str) -> str:
    """Return a text that exists only in English as a lazy text, shown as `other` in all other
    languages."""
    return cast(str, LibraryText(english, other))
