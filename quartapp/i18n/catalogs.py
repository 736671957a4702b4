"""The catalogs of translated texts, each read from its `.mo` file when it is first used."""

from __future__ import annotations

import gettext
from functools import cache
from pathlib import Path
from typing import Protocol

from markupsafe import Markup

from quartapp.i18n import pseudo
from quartapp.i18n.locales import PSEUDO

FOLDER = Path(__file__).parents[1] / "translations"
DOMAIN = "messages"


class Texts(Protocol):
    """The translated texts of one language."""

    def gettext(self, message: str) -> str: ...

    def ngettext(self, msgid1: str, msgid2: str, n: int) -> str: ...


class PseudoTexts:
    """The texts of the pseudo-locale, computed from the English ones."""

    def gettext(self, message: str) -> str:
        return pseudo.translate(message)

    def ngettext(self, msgid1: str, msgid2: str, n: int) -> str:
        return pseudo.translate(msgid1 if n == 1 else msgid2)


class Catalog:
    """The texts of one language, and a cache of those that templates use without variables."""

    def __init__(self, texts: Texts) -> None:
        self.gettext = texts.gettext
        self.ngettext = texts.ngettext
        # Ids are constants of the code, so the cache is not larger than the catalog.
        self._markup: dict[str, Markup] = {}

    def markup(self, message: str) -> Markup:
        """Return the translation of a text without variables as HTML, with `%%` as one percent
        sign. It is HTML already, so nothing is escaped. Cached."""
        try:
            return self._markup[message]
        except KeyError:
            text = self.gettext(message).replace("%%", "%")
            return self._markup.setdefault(message, Markup(text))  # noqa: S704


@cache
def load(locale: str) -> Catalog:
    """Return the catalog of the language. Reads its file once in each process.

    A text that the catalog lacks is shown in English. English has a catalog too, so that operators
    can reword texts without changing code. Raises FileNotFoundError for an unknown language.
    """
    if locale == PSEUDO:
        return Catalog(PseudoTexts())
    path = FOLDER / locale / "LC_MESSAGES" / f"{DOMAIN}.mo"
    with path.open("rb") as file:
        return Catalog(gettext.GNUTranslations(file))
