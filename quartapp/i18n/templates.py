"""Translated texts in Jinja templates."""

from __future__ import annotations

from typing import Any

import jinja2
from markupsafe import Markup

from quartapp.i18n.catalogs import load
from quartapp.i18n.locales import current_locale


def install(environment: jinja2.Environment) -> None:
    """Add the `trans` block, the functions `_`, `gettext` and `ngettext`, and `locale()`.

    Texts are HTML, and the words in them are escaped. White space at line breaks of a `trans` block
    becomes one space. The extension's own functions look up each text through the context of the
    template, which takes three times as long.
    """
    environment.add_extension("jinja2.ext.i18n")
    environment.policies["ext.i18n.trimmed"] = True
    environment.newstyle_gettext = True  # type: ignore[attr-defined]
    environment.globals.update(
        _=gettext_html, gettext=gettext_html, ngettext=ngettext_html, locale=current_locale
    )


def gettext_html(message: str, /, **words: Any) -> Markup:
    """Return the text in the current language as HTML, with the words filled in and escaped."""
    catalog = load(current_locale())
    if not words:
        return catalog.markup(message)
    return Markup(catalog.gettext(message)) % words  # noqa: S704


def ngettext_html(singular: str, plural: str, number: int, /, **words: Any) -> Markup:
    """Return the text for this number in the current language, as `gettext_html` does."""
    text = load(current_locale()).ngettext(singular, plural, number)
    return Markup(text) % {"num": number, **words}  # noqa: S704
