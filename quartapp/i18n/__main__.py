"""`python -m quartapp.i18n`: bring the catalogs up to date with the texts of the code.

Extracts all texts of the package into the `.po` files, and compiles these to the `.mo` files that
the application reads. A new text has no translation yet; texts that are gone are removed. Prints
for each language which texts have no translation.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from pathlib import Path

from babel.messages.catalog import Catalog, Message
from babel.messages.extract import extract_from_dir
from babel.messages.mofile import write_mo
from babel.messages.pofile import read_po, write_po

from quartapp.i18n.catalogs import DOMAIN, FOLDER
from quartapp.i18n.locales import DEFAULT, LOCALES

METHODS = [("**.py", "python"), ("templates/**.html", "jinja2.ext:babel_extract")]
OPTIONS = {"templates/**.html": {"trimmed": "true", "newstyle_gettext": "true", "silent": "false"}}
KEYWORDS = {
    "_": None,
    "gettext": None,
    "lazy_gettext": None,
    "ngettext": (1, 2),
    "lazy_ngettext": (1, 2),
}
HEADERS = ("Language", "Plural-Forms", "MIME-Version", "Content-Type", "Content-Transfer-Encoding")


class StableCatalog(Catalog):
    """A catalog whose files change only with its texts: its header has no dates and versions."""

    @property
    def mime_headers(self) -> list[tuple[str, str]]:  # type: ignore[override]
        return [each for each in super().mime_headers if each[0] in HEADERS]


def extract() -> Catalog:
    """Return the texts of the code and the templates as a catalog without translations."""
    template = Catalog()
    found = extract_from_dir(FOLDER.parent, METHODS, OPTIONS, KEYWORDS)
    for _, _, message, _, context in found:
        template.add(message, context=context)
    return template


def path_of(locale: str, suffix: str) -> Path:
    """Return the path of the `po` or `mo` file of the language."""
    return FOLDER / locale / "LC_MESSAGES" / f"{DOMAIN}.{suffix}"


def read(locale: str) -> Catalog:
    """Return the catalog in the `.po` file of the language, or an empty one if there is none."""
    path = path_of(locale, "po")
    if not path.exists():
        return Catalog(locale=locale)
    with path.open("rb") as file:
        return read_po(file, locale=locale)


def updated(locale: str, template: Catalog) -> Catalog:
    """Return a catalog of exactly the texts of the template, with the translations and flags in the
    `.po` file of the language. English texts are their own translations.

    A translation is dropped if it has plural forms and the text has none, or the reverse.
    """
    old = read(locale)
    new = StableCatalog(locale=locale, header_comment="", fuzzy=False)
    for message in _texts(template):
        known = old.get(message.id, message.context)
        string = message.id if locale == DEFAULT else known.string if known else ""
        if isinstance(string, str) is not isinstance(message.id, str):
            string = ""
        new.add(message.id, string, flags=known.flags if known else (), context=message.context)
    return new


def missing(catalog: Catalog) -> list[Message]:
    """Return the texts without a complete translation, and those that are marked as fuzzy."""
    return [each for each in _texts(catalog) if each.fuzzy or not all(_strings(each))]


def _strings(message: Message) -> Sequence[str]:
    """Return the translations of the text: one, or one for each plural form."""
    return [message.string] if isinstance(message.string, str) else message.string or [""]


def dump(catalog: Catalog) -> dict[str, bytes]:
    """Return the content of the `po` and the `mo` file."""
    po, mo = io.BytesIO(), io.BytesIO()
    write_po(po, catalog, width=100, no_location=True, sort_output=True)
    write_mo(mo, catalog)
    return {"po": po.getvalue().lstrip(), "mo": mo.getvalue()}


def _texts(catalog: Catalog) -> Iterator[Message]:
    """Iterate over the texts, without the header, which has an empty id."""
    return (message for message in catalog if message.id)


def main() -> None:
    """Write the `.po` and `.mo` files of all languages, and print the texts without a translation
    and the number of texts of each."""
    template = extract()
    for locale in LOCALES:
        catalog = updated(locale, template)
        for suffix, content in dump(catalog).items():
            path = path_of(locale, suffix)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        for message in missing(catalog):
            print(f"{locale}: no translation of {message.id!r}")
        print(f"{locale}: {len(catalog)} texts")


if __name__ == "__main__":
    main()
