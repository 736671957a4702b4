from __future__ import annotations

import pytest

from quartapp.names import EMAIL, NAME


@pytest.mark.parametrize("name", ["a", "Ada", "ada-1", "a.b_c-d", "0", "a" * 32, "a..b"])
def test_names_of_letters_digits_and_marks_between_them(name: str) -> None:
    assert NAME.match(name)


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


@pytest.mark.parametrize(
    "address",
    [
        *("a@b.cd", "a.b+c@sub.example.org", "ä@bücher.example", "A@B.ORG", "o'brien@example.org"),
        "a" * 64 + "@" + "b" * 186 + ".org",
    ],
)
def test_addresses_that_could_be_real(address: str) -> None:
    assert EMAIL.match(address)


@pytest.mark.parametrize(
    "address",
    [
        *("", "a", "@b.cd", "a@", "a@b", "a@b.", "a@b.c", "a@@b.cd", "a@b@c.de", "a b@c.de"),
        *("a@b.cd ", "a@b.cd\n", "a@b.cd\r\nBcc: x@y.zz", "<a@b.cd>", "a,b@c.de", "a@b.cd;x"),
        *('"a"@b.cd', "a\\@b.cd", "a" * 65 + "@b.cd", "a@" + "b" * 191 + ".org"),
    ],
)
def test_addresses_that_could_not_be_real_or_would_do_harm_in_a_header(address: str) -> None:
    assert not EMAIL.match(address)


def test_no_name_is_an_address() -> None:
    """A login of a username and one of an address are told apart by this."""
    assert not NAME.match("ada@example.org")
    assert "@" not in "".join(chr(c) for c in range(0x3000) if NAME.match(f"a{chr(c)}b"))
