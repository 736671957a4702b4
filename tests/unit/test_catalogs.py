"""The catalogs have exactly the texts of the code, and translate each of them."""

import re
from collections import Counter
from collections.abc import Iterator

import pytest
from babel.messages.catalog import Catalog, Message

from quartapp.i18n import LOCALES
from quartapp.i18n.__main__ import extract, missing, read

# Words to fill in, tags and entities. Words may be repeated in a translation.
WORDS = re.compile(r"%\(\w+\)s|\{\w+\}")
TAGS = re.compile(r"</?\w+[^>]*>|&\w+;")
# Words that a singular form may leave out.
NUMBERS = {"%(num)s"}


@pytest.fixture(scope="module")
def code() -> Catalog:
    return extract()


def ids(catalog: Catalog) -> set[str]:
    return {str(message.id) for message in catalog if message.id}


def pairs(catalog: Catalog) -> Iterator[tuple[str, str]]:
    """Yield each translation with the English form that it belongs to."""
    for message in catalog:
        if message.id and isinstance(message.id, str):
            assert isinstance(message.string, str)
            yield message.id, message.string
        elif message.id:
            yield from zip(message.id, message.string or (), strict=True)


@pytest.mark.parametrize("locale", LOCALES)
def test_catalog_has_exactly_the_texts_of_the_code(locale: str, code: Catalog) -> None:
    assert ids(read(locale)) == ids(code), "run python -m quartapp.i18n"


@pytest.mark.parametrize("locale", LOCALES)
def test_every_text_is_translated(locale: str) -> None:
    untranslated: list[Message] = missing(read(locale))
    assert [message.id for message in untranslated] == []


@pytest.mark.parametrize("locale", LOCALES)
def test_translations_keep_the_words_and_the_tags(locale: str) -> None:
    for english, translated in pairs(read(locale)):
        words = set(WORDS.findall(english)) ^ set(WORDS.findall(translated))
        assert words <= NUMBERS, translated
        assert Counter(TAGS.findall(english)) == Counter(TAGS.findall(translated)), translated


@pytest.mark.parametrize("locale", LOCALES)
def test_translations_have_no_new_characters_of_html(locale: str) -> None:
    """Texts of templates are not escaped, also in the values of attributes."""
    for english, translated in pairs(read(locale)):
        plain = TAGS.sub("", translated)
        assert not {*'"<'} & {*plain} - {*english}, translated
        assert english[-1:].isspace() == translated[-1:].isspace(), translated
