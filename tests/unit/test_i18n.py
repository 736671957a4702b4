"""Languages: the choice by `Accept-Language`, translated texts, the pseudo-locale, catalogs."""

from datetime import timedelta

import jinja2
import pytest
import zxcvbn_rs_py

from quartapp import i18n
from quartapp.i18n import LOCALES, PSEUDO, catalogs, pseudo, templates, use_locale
from quartapp.i18n.__main__ import dump, path_of, read, updated
from quartapp.security.password_policy import WARNINGS


@pytest.mark.parametrize(
    ("header", "locale"),
    [
        ("", "en"),
        ("de", "de"),
        ("DE-at, en;q=0.5", "de"),
        ("en;q=0.5, de;q=0.9", "de"),
        ("de;q=0.5, en;q=0.5", "de"),
        ("fr, de;q=0.1", "de"),
        ("fr, *;q=0.1", "en"),
        ("de;q=0, *", "en"),
        ("de;q=x", "en"),
        ("de;q=nan", "en"),
        (";;,,;q=1", "en"),
        (PSEUDO, "en"),
        ("de," + "x," * 500, "en"),
    ],
)
def test_accept_language_chooses_the_preferred_language(header: str, locale: str) -> None:
    assert i18n.negotiate(header) == locale


def test_the_pseudo_locale_is_only_offered_on_demand() -> None:
    assert i18n.negotiate("en-xa, de", True) == PSEUDO
    assert i18n.negotiate("en-xa, de") == "en"


def test_an_unknown_locale_means_the_default() -> None:
    for locale in (None, "", "xx", "../de"):
        with use_locale("de"), use_locale(locale):
            assert i18n.current_locale() == "en"


def test_lazy_texts_are_translated_when_they_are_shown() -> None:
    text = i18n.lazy_gettext("Sign in as %(name)s", name="ada")
    assert str(text) == "Sign in as ada" == text
    with use_locale(PSEUDO):
        assert "Šîĝñ îñ åš ada" in str(text)
    counted = i18n.lazy_ngettext("%(num)s tab", "%(num)s tabs", 2)
    assert str(counted) == "2 tabs"


def test_pseudo_texts_are_longer_and_keep_placeholders_and_html() -> None:
    text = "<b class=x>Sign in</b> &amp; see %(name)s, {base} 100%%"
    shown = pseudo.translate(text)
    for fixed in ("<b class=x>", "</b>", "&amp;", "%(name)s", "{base}", "100%%"):
        assert fixed in shown
    assert "Sign" not in shown
    assert pseudo.translate("{base}: %(name)s") == "{base}: %(name)s"
    sentence = "With a second factor, a stolen password is not enough."
    assert len(pseudo.translate(sentence)) >= 1.35 * len(sentence)


def test_templates_translate_and_escape_words_but_not_the_text() -> None:
    environment = jinja2.Environment(autoescape=True)
    templates.install(environment)
    template = environment.from_string(
        "{% trans name=name %}Hello,\n  <b>{{ name }}</b> 5%{% endtrans %}|{{ _('<i>100%%</i>') }}|"
        "{% trans num=2 %}{{ num }} tab{% pluralize %}{{ num }} tabs{% endtrans %}"
    )
    assert template.render(name="<x>") == "Hello, <b>&lt;x&gt;</b> 5%|<i>100%</i>|2 tabs"
    with use_locale(PSEUDO):
        assert "<b>&lt;x&gt;</b>" in template.render(name="<x>")
        assert "Hello" not in template.render(name="<x>")


@pytest.mark.parametrize("locale", LOCALES)
def test_compiled_catalogs_match_their_sources(locale: str) -> None:
    files = dump(updated(locale, read(locale)))
    for suffix, content in files.items():
        assert path_of(locale, suffix).read_bytes() == content, "run python -m quartapp.i18n"
    assert catalogs.load(locale).gettext("") != ""


def test_lengths_of_time_are_written_with_their_units() -> None:
    for seconds, words in (
        (0, "0 seconds"),
        (1, "1 second"),
        (90, "1 minute and 30 seconds"),
        (7200, "2 hours"),
        (90061, "1 day, 1 hour, 1 minute and 1 second"),
    ):
        assert str(i18n.duration(timedelta(seconds=seconds))) == words


def test_texts_of_libraries_are_replaced_in_other_languages() -> None:
    text = i18n.library_text("No @.", i18n.lazy_gettext("This is no address."))
    assert str(text) == "No @."
    with use_locale(PSEUDO):
        assert str(text).startswith("Ţĥîš îš ñö åððŕéšš.")


def test_the_password_policy_knows_the_warnings_of_zxcvbn() -> None:
    names = (name for name in dir(zxcvbn_rs_py.Warning) if not name.startswith("_"))
    warnings = {str(getattr(zxcvbn_rs_py.Warning, name)) for name in names}
    assert warnings == {str(each) for each in WARNINGS}
