# ruff: noqa: RUF001  These tests are about letters that look alike.
from __future__ import annotations

import random
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from time import process_time

import pytest

from quartapp import validation
from quartapp.i18n import use_locale
from quartapp.validation import NAME, Invalid


@pytest.mark.parametrize("name", ["a", "Ada", "ada-1", "a.b_c-d", "0", "a" * 32, "a..b"])
def test_names_have_letters_digits_and_separators_between_them(name: str) -> None:
    assert NAME.match(name)
    assert validation.check_username(name) == name
    assert validation.check_role_name(name) == name


@pytest.mark.parametrize(
    "name",
    [
        *("", "a" * 33, "-a", "a-", ".a", "a.", "_a", "a_", "..", "$a", "a$b", "a'b", "a<b", "%2e"),
        *("a b", "a@b", "a/b", "a\\b", "a\n", "\na", "a\r\nb", "a\0", "a\u200bb", "a\u202eb"),
        *("ädä", "\N{CYRILLIC SMALL LETTER A}da", "\N{FULLWIDTH DIGIT ONE}"),
    ],
)
def test_other_names_are_refused(name: str) -> None:
    assert not NAME.match(name)
    for check in (validation.check_username, validation.check_role_name):
        with pytest.raises(Invalid, match="Use 1 to 32 letters"):
            check(name)


@pytest.mark.parametrize(
    ("entered", "stored"),
    [
        *[
            ("Ada Lovelace", "Ada Lovelace"),
            ("", ""),
            ("  Ada \t\n  L. ", "Ada L."),
            ("x" * 50,) * 2,
        ],
        *[("A\N{COMBINING DIAERESIS}da", "Äda"), ("👩\u200d🔬 Ada",) * 2, ("علی\u200cرضا",) * 2],
    ],
)
def test_a_display_name_is_stored_without_superfluous_space(entered: str, stored: str) -> None:
    assert validation.check_display_name(entered) == stored


@pytest.mark.parametrize(
    "name",
    [
        *("x" * 51, "a\0b", "a\x1bb", "a\u202eb", "a\u2067b", "a\u200eb", "a\u200bb", "a\ufeffb"),
        *("a\ud800", "a\ue000", "\u200d", "\N{COMBINING DIAERESIS}"),
    ],
)
def test_a_display_name_has_no_invisible_characters(name: str) -> None:
    with pytest.raises(Invalid):
        validation.check_display_name(name)


@pytest.mark.parametrize("name", ["new", "New", "NEW"])
def test_a_role_cannot_have_the_name_of_a_page(name: str) -> None:
    with pytest.raises(Invalid, match="This name is reserved"):
        validation.check_role_name(name)


@pytest.mark.parametrize("name", ["new", "Bulk"])
def test_a_user_cannot_have_the_name_of_a_page(name: str) -> None:
    with pytest.raises(Invalid, match="This name is reserved"):
        validation.check_username(name)


# The address as typed, as shown, and as sent to mail servers.
ADDRESSES = [
    ("a@b.cd", "a@b.cd", "a@b.cd"),
    ("A.b+c@Sub.Example.ORG", "A.b+c@sub.example.org", "A.b+c@sub.example.org"),
    ("o'brien@example.org", "o'brien@example.org", "o'brien@example.org"),
    ("ada@bücher.example", "ada@bücher.example", "ada@xn--bcher-kva.example"),
    ("ada@XN--BCHER-KVA.example", "ada@bücher.example", "ada@xn--bcher-kva.example"),
    ("ada@BU\u0308CHER.example", "ada@bücher.example", "ada@xn--bcher-kva.example"),
    ("ada@ｅxample。org", "ada@example.org", "ada@example.org"),
    ("ada@straße.example", "ada@straße.example", "ada@xn--strae-oqa.example"),
    ("ada@mail.corp.local", "ada@mail.corp.local", "ada@mail.corp.local"),
    *2 * [("a" * 64 + f"@{'b' * 63}.{'c' * 63}.{'d' * 57}.org",) * 3],
]


@pytest.mark.parametrize(("typed", "shown", "sent"), ADDRESSES)
def test_an_address_is_shown_in_unicode_and_sent_to_in_ascii(
    typed: str, shown: str, sent: str
) -> None:
    assert validation.check_email(typed) == shown
    assert validation.mail_address(typed) == validation.mail_address(shown) == sent
    spelled = {typed, shown, sent, typed.upper(), *validation.spellings(typed)} - {
        "ADA@STRASSE.EXAMPLE"
    }
    assert {validation.canonical_email(each) for each in spelled} == {sent.lower()}
    assert {shown.lower(), sent.lower()} <= {each.lower() for each in validation.spellings(typed)}


@pytest.mark.parametrize(
    "address",
    [
        *("", "a", "@b.cd", "a@", "a@b", "a@b.", "a@@b.cd", "a@b@c.de", "a b@c.de", "a@localhost"),
        *("a@b.cd ", "a@b.cd\n", "a@b.cd\r\nBcc: x@y.zz", "<a@b.cd>", "a,b@c.de", "a@b.cd;x"),
        *('"a"@b.cd', '"a b"@b.cd', "a\\@b.cd", "(ada)a@b.cd", "a@b.cd(ada)", "Ada <a@b.cd>"),
        *("a@b..cd", "a..b@b.cd", ".a@b.cd", "a.@b.cd", "a@.b.cd", "a@b.cd.", "a@-b.cd", "a@b_.cd"),
        *("a@[1.2.3.4]", "a@[IPv6:::1]", "a@1.2.3.4", "a@x.123", "a@xn--a.cd", "a@☃.example"),
        *("=?utf-8?q?victim?=@example.org", "=?x@b.cd", "a@=?utf-8?q?b?=.cd"),
        *("a" * 65 + "@b.cd", "a@" + "b" * 64 + ".org", "a" * 64 + "@" + "b.c" * 64 + ".org"),
        *("ä@b.cd", "a\u00ada@b.cd", "a\u200b@b.cd", "a@b\u202ec.cd", "a\0@b.cd", "a\ud800@b.cd"),
        *("\N{KELVIN SIGN}im@b.cd", "ﬁ@b.cd", "ａ@b.cd", "a＠b.cd", "a@\ufdfa.cd"),
    ],
)
def test_invalid_email_addresses_are_refused(address: str) -> None:
    with pytest.raises(Invalid):
        validation.check_email(address)


def test_a_local_part_that_needs_smtputf8_is_refused_for_new_accounts_only() -> None:
    with pytest.raises(Invalid, match="before the @-sign"):
        validation.check_email("jürgen@bücher.example")
    assert validation.mail_address("jürgen@bücher.example") == "jürgen@xn--bcher-kva.example"


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("bob", "b\u00adob"),
        ("bob", "b\u200bob"),
        ("bob", "ｂｏｂ"),
        ("bob", "bob "),
        ("if", "ıf"),
        ("if", "İf"),
        ("fig", "ﬁg"),
        ("sam", "ſam"),
        ("cafe", "café"),
        ("strasse", "straße"),
        ("ada@strasse.example", "ada@straße.example"),
        ("ada@example.org", "ada@example.org."),
        ("ada@example.org", "ada＠example.org"),
        ("ada@example.org", "a\u00adda@example.org"),
        ("a.b@example.org", "ab@example.org"),
    ],
)
def test_logins_that_only_look_alike_have_different_canonical_forms(one: str, other: str) -> None:
    assert validation.canonical_login(one) != validation.canonical_login(other)


@pytest.mark.parametrize("text", ["", "a" * 255, "a" * 300 + "@b.cd", "a\ud800@b.cd", "\udfff"])
def test_text_that_is_no_login_has_one_canonical_form(text: str) -> None:
    assert validation.canonical_login(text) == ""


@pytest.mark.parametrize("cases", [3_000, pytest.param(30_000, marks=pytest.mark.long)])
def test_canonical_forms_are_stable_and_agree_with_validation(cases: int) -> None:
    dice = random.Random(13)
    plain, strange = "abAB01.-_", "üÜ@=?ßſKİıﬁａ。＠\u00ad\u200b\u0308\u202e☃本ك\ufdfa\ud800 "

    def part() -> str:
        return "".join(dice.choices(plain + strange * dice.randint(0, 1), k=dice.randint(1, 5)))

    valid = 0
    for _ in range(cases):
        text = f"{part()}@{part()}.{part()}"
        canonical = validation.canonical_login(text)
        assert validation.canonical_login(canonical) == canonical, ascii(text)
        with suppress(Invalid):
            shown = validation.check_email(text)
            valid += 1
            assert validation.check_email(shown) == shown
            assert validation.canonical_email(shown) == canonical
            assert canonical == validation.mail_address(text).lower()
            assert canonical.isascii()
    assert valid > cases // 50


@pytest.mark.parametrize(
    "check",
    [
        validation.check_email,
        validation.canonical_email,
        validation.canonical_username,
        validation.spellings,
    ],
    ids=lambda check: check.__name__,
)
@pytest.mark.parametrize("length", [254, 1_000_000])
def test_no_text_takes_long_to_validate(check: Callable[[str], object], length: int) -> None:
    """Use text that takes quadratic time to decode or normalize, in each part of an address."""
    for unit in ("ü", "\ufdfa", "本", ".ü", "\u0300\u0323", "xn--9", "\u0661", "\u0628\u200c", "@"):
        for text in (
            f"a@{unit * length}",
            f"a@{unit * length}"[:254],
            (unit * length)[:250] + "@b",
        ):
            start = process_time()
            with suppress(Invalid):
                check(text)
            assert process_time() - start < 0.1, ascii(unit)


def test_no_username_is_a_valid_address() -> None:
    """This distinguishes a login by username from one by address."""
    assert not NAME.match("ada@example.org")
    assert "@" not in "".join(chr(c) for c in range(0x3000) if NAME.match(f"a{chr(c)}b"))


NOON = datetime(2030, 6, 1, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    ("text", "until"),
    [
        ("2h", timedelta(hours=2)),
        ("1m", timedelta(minutes=1)),
        (" 1W 2d 3H 4m ", timedelta(days=9, hours=3, minutes=4)),
        ("90m", timedelta(minutes=90)),
        ("3660d", timedelta(days=3660)),
        ("2030-06-01T14:00", timedelta(hours=2)),
        ("2030-06-01 14:00:30Z", timedelta(hours=2, seconds=30)),
        ("2030-06-01T14:00+02:00", timedelta()),
        ("2030-06-02", timedelta(hours=12)),
    ],
)
def test_the_end_of_a_grant_is_a_duration_or_a_time(text: str, until: timedelta) -> None:
    if until:
        assert validation.check_grant_end(text, NOON) == NOON + until
    else:
        with pytest.raises(validation.Invalid, match="between one minute and ten years"):
            validation.check_grant_end(text, NOON)


@pytest.mark.parametrize(
    "text",
    [
        *("", "soon", "2", "h", "-2h", "2h2h", "0m", "59s", "3661d", "99999999m", "٢h", "1" * 300),
        *("2030-13-01", "2030-06-01T12:00:59", "9999-12-31T23:59:59-23:59"),
        "0001-01-01T00:00+23:59",
    ],
)
def test_other_ends_of_a_grant_are_refused(text: str) -> None:
    with pytest.raises(validation.Invalid):
        validation.check_grant_end(text, NOON)


@pytest.mark.parametrize(
    ("check", "expected"),
    [
        (lambda: validation.check_username("new"), "Dieser Name ist reserviert"),
        (lambda: validation.check_grant_end("soon", NOON), "Geben Sie eine Dauer"),
        (lambda: validation.check_grant_end("2020-01-01", NOON), "höchstens zehn Jahre"),
    ],
)
def test_names_and_ends_are_refused_in_german(check: Callable[[], object], expected: str) -> None:
    with use_locale("de"), pytest.raises(Invalid, match=expected):
        check()
