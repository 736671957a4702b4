"""Making an account (P8, ASVS 2.2, 6.2)."""

import asyncio

import pytest

from tests.conftest import PASSWORD
from tests.routes.conftest import Town, Visitor, documents

# All different, and not in the order of the alphabet that emoji have.
EMOJI = "".join(chr(0x1F600 + 27 * n % 64) for n in range(64))
LONG = "correct horse battery staple " * 8


async def test_a_new_account_is_signed_in_as_a_member(nobody: Visitor) -> None:
    answer = await nobody.register("ada")
    assert (answer.status, answer.location) == (303, "/")
    me = await nobody.me()
    assert me is not None
    assert (me["username"], me["roles"], me["permissions"]) == ("ada", ["member"], ["posts.write"])


@pytest.mark.parametrize(
    ("field", "fields"),
    [
        ("username", {"username": "ADA", "email": "other@example.org"}),
        ("email", {"username": "other", "email": "Ada@Example.ORG"}),
    ],
)
async def test_a_name_that_is_taken_in_another_case_is_an_error_of_its_field(
    town: Town, field: str, fields: dict[str, str]
) -> None:
    await town.member("ada")
    nobody = town.nobody()
    answer = await nobody.register(**fields)
    assert answer.status == 422
    assert "is taken" in answer.error(field)
    assert len(await documents("users")) == 1
    assert await nobody.me() is None


async def test_both_spellings_of_an_address_are_one_account(town: Town) -> None:
    """Browsers send the address in Punycode, whatever was typed; people and programs may not."""
    unicode, ascii_form = "idn@müller.example", "idn@xn--mller-kva.example"
    visitor = town.nobody()
    assert (await visitor.register("idn", email=ascii_form)).status == 303
    assert unicode in (await visitor.get("/account")).text
    for number, typed in enumerate((unicode, ascii_form, "IDN@MÜLLER.example")):
        answer = await town.nobody().register(f"other{number}", email=typed)
        assert (answer.status, answer.error("email")) == (422, "This email address is taken.")
        assert (await visitor.another_device().sign_in(typed)).status == 303
        assert (await town.nobody().post("/forgot", email=typed)).status == 303


async def test_of_ten_who_want_one_name_at_once_one_gets_it(town: Town) -> None:
    visitors = [town.nobody() for _ in range(10)]
    answers = await asyncio.gather(
        *(
            visitor.register(name, email=f"a{number}@example.org")
            for number, (visitor, name) in enumerate(
                zip(visitors, ["ada", "Ada", "ADA", "aDa", "adA"] * 2, strict=True)
            )
        )
    )
    assert sorted(answer.status for answer in answers) == [303] + 9 * [422]
    assert all("is taken" in a.error("username") for a in answers if a.status == 422)
    assert len(await documents("users")) == 1


REFUSED = [
    ("username", ""),
    ("username", "   "),
    ("username", "a b"),
    ("username", "ada\0"),
    ("username", "a\x1b[31m"),
    ("username", "a\u202eb"),
    ("username", "a@b"),
    ("username", "-ada"),
    ("username", "ада"),
    ("username", "a" * 33),
    ("email", ""),
    ("email", "ada"),
    ("email", "ada@localhost"),
    ("email", "ada\0@example.org"),
    ("email", "ada\x1b[31m@example.org"),
    ("email", "ada\x9b31m@example.org"),
    ("email", "a\u202eda@example.org"),
    ("email", f"{'a' * 64}@{'b' * 186}.org"),
    ("password", ""),
    ("password", "aV7!kq2"),
    ("password", "password1"),
    ("password", "quartapp1"),
    ("password", "valentina@example.org"),
    ("password", (LONG * 2)[:257]),
    ("password", f"{PASSWORD}\0"),
]


async def test_what_cannot_be_used_is_said_beside_its_field_and_the_rest_is_kept(
    nobody: Visitor,
) -> None:
    good = {"username": "valentina", "email": "valentina@example.org", "password": PASSWORD}
    for field, value in REFUSED:
        typed = {**good, field: value}
        answer = await nobody.register(**typed, confirm=typed["password"])
        assert answer.status == 422, (field, value)
        assert answer.error(field), (field, value)
        shown = answer.fields
        for name in {"username", "email"} - {field}:
            assert shown[name] == typed[name]
        assert shown["password"] == shown["confirm"] == ""
        text = answer.text.replace(typed["email"], "")
        assert not typed["password"] or typed["password"] not in text
    assert await documents("users") == []


async def test_of_many_who_want_one_address_at_once_the_losers_are_told_what_a_later_one_is(
    town: Town,
) -> None:
    people = [Visitor(town.app, f"p{number}") for number in range(12)]
    tokens = [await each.csrf_token() for each in people]
    emails = [("ada@example.org", "ADA@Example.org")[number % 2] for number in range(12)]
    forms = [
        {"username": each.username, "email": email, "password": PASSWORD, "confirm": PASSWORD}
        for each, email in zip(people, emails, strict=True)
    ]
    answers = await asyncio.gather(
        *(
            each.send("/register", {"csrf_token": token, **form})
            for each, token, form in zip(people, tokens, forms, strict=True)
        )
    )
    assert sorted(answer.status for answer in answers) == [303] + 11 * [422]
    for answer, form in zip(answers, forms, strict=True):
        if answer.status == 422:
            later = await town.nobody().post("/register", **form)
            assert later.error("email") == "This email address is taken."
            assert (answer.status, answer.anonymized) == (later.status, later.anonymized)
    assert len(await documents("users")) == 1


async def test_passwords_that_differ_are_refused(nobody: Visitor) -> None:
    answer = await nobody.register("ada", confirm=f"{PASSWORD} ")
    assert answer.status == 422
    assert "do not match" in answer.error("confirm")
    assert await documents("users") == []


@pytest.mark.parametrize(
    "password",
    [LONG[:256], "purple otter sings at dawn", " spaces around count as much ", EMOJI],
    ids=["256 characters", "letters alone", "spaces", "64 emoji"],
)
async def test_a_good_password_is_taken_whole_and_as_it_is(town: Town, password: str) -> None:
    answer = await town.nobody().register("ada", password=password, confirm=password)
    assert answer.status == 303, answer.error("password")
    assert (await Visitor(town.app, "ada").sign_in(password=password)).status == 303
    for other in (password[:-1], f"{password[:-1]}x", f"{password}x", password.swapcase()):
        if other != password:
            assert (await Visitor(town.app, "ada").sign_in(password=other)).status == 422


async def test_who_is_signed_in_is_led_away_from_registering(ada: Visitor) -> None:
    assert (await ada.get("/register")).location == "/"
    assert (await ada.register("another")).location == "/"
    assert len(await documents("users")) == 1
