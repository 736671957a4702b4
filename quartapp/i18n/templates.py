"""Translated texts in Jinja templates."""

from __future__ import annotations

from keyword import iskeyword
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.compiler import CodeGenerator, Frame
from markupsafe import Markup, escape

from quartapp.i18n.catalogs import load
from quartapp.i18n.locales import current_locale
from quartapp.i18n.numbers import format_number


def install(environment: jinja2.Environment) -> None:
    """Add the `trans` block, the functions `_`, `gettext` and `ngettext`, and `locale()`.

    Also adds the filter `number`. Texts are HTML, and the words in them are escaped. White space at
    line breaks of a `trans` block becomes one space.
    """
    environment.add_extension("jinja2.ext.i18n")
    environment.policies["ext.i18n.trimmed"] = True
    environment.newstyle_gettext = True  # type: ignore[attr-defined]
    environment.code_generator_class = TextCodeGenerator
    environment.extend(gettext_html=gettext_html, ngettext_html=ngettext_html)
    environment.globals.update(
        _=gettext_html, gettext=gettext_html, ngettext=ngettext_html, locale=current_locale
    )
    environment.filters["number"] = format_number


def gettext_html(message: str, /, **words: Any) -> Markup:
    """Return the text in the current language as HTML, with the words filled in and escaped. Raises
    KeyError for a missing word if there are others."""
    catalog = load(current_locale())
    return _fill(catalog.gettext(message), words) if words else catalog.markup(message)


def ngettext_html(singular: str, plural: str, number: int, /, **words: Any) -> Markup:
    """Return the text for this number in the current language, as `gettext_html` does."""
    text = load(current_locale()).ngettext(singular, plural, number)
    return _fill(text, {"num": number, **words})


def _fill(text: str, words: dict[str, Any]) -> Markup:
    """Return the text with its words escaped. The operator of Markup takes three times as long."""
    return Markup(text % {name: escape(word) for name, word in words.items()})  # noqa: S704


class TextCodeGenerator(CodeGenerator):
    """Calls the functions for texts directly.

    Jinja calls functions through the context of the template, which takes ten times as long as to
    find a text, and a page has some sixty texts.
    """

    FUNCTIONS = {"_": "gettext_html", "gettext": "gettext_html", "ngettext": "ngettext_html"}

    def visit_Call(  # noqa: N802
        self, node: nodes.Call, frame: Frame, forward_caller: bool = False
    ) -> None:
        """Write the call of a function: for the FUNCTIONS a direct one, unless it has arguments
        with `*` or `**` or named by a keyword of Python; otherwise as Jinja does."""
        name = node.node.name if isinstance(node.node, nodes.Name) else ""
        plain = not (node.dyn_args or node.dyn_kwargs or forward_caller)
        if name not in self.FUNCTIONS or not plain or any(iskeyword(k.key) for k in node.kwargs):
            return super().visit_Call(node, frame, forward_caller=forward_caller)
        self.write(f"environment.{self.FUNCTIONS[name]}(")
        for arg in node.args:
            self.visit(arg, frame)
            self.write(", ")
        for kwarg in node.kwargs:
            self.write(f"{kwarg.key}=")
            self.visit(kwarg.value, frame)
            self.write(", ")
        self.write(")")
        return None
