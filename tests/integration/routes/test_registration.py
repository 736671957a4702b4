"""Registering an account (ASVS 2.2, 6.2)."""

import asyncio

import pytest

from tests.conftest import PASSWORD
from tests.integration.routes.conftest import Visitor, Visitors, documents

# All different, and not in the order of their code points.
EMOJI = "".join(chr(0x1F600 + 27 * n % 64) for n in range(64))
LONG = "correct horse battery staple " * 8


async def test_a_new_account_is_signed_in_as_a_member(anonymous: Visitor) -> None:
    answer = await anonymous.register("ada")
    assert (answer.status, answer.location) == (303, "/")
    me = await anonymous.me()
    assert me is not None
    assert (me["username"], me["roles"], me["permissions"]) == ("ada", ["member"], ["posts.write"])


@pytest.mark.parametrize(
    ("field", "fields"),
    [
        ("username", {"username": "ADA", "email": "other@example.org"}),
        ("email", {"username": "other", "email": "Ada@Example.ORG"}),
    ],
)
async def test_a_name_taken_in_another_case_is_a_field_error(
    visitors: Visitors, field: str, fields: dict[str, str]
) -> None:
    await visitors.member("ada")
    anonymous = visitors.anonymous()
    answer = await anonymous.register(**fields)
    assert answer.status == 422
    assert "is taken" in answer.error(field)
    assert len(await documents("users")) == 1
    assert await anonymous.me() is None


async def test_all_errors_of_the_form_are_shown_at_once(visitors: Visitors) -> None:
    await visitors.member("ada")
    fields = {"email": "nowhere", "password": "qwertyuiop", "confirm": "else"}
    answer = await visitors.anonymous().register("ada", **fields)
    assert answer.status == 422
    assert "is taken" in answer.error("username")
    assert "@-sign" in answer.error("email")
    assert "too easy to guess" in answer.error("password")
    assert "do not match" in answer.error("confirm")


async def test_the_unicode_and_punycode_forms_of_an_address_are_one_account(
    visitors: Visitors,
) -> None:
    """Browsers send the domain in Punycode; programs may send it in Unicode."""
    unicode, ascii_form = "idn@müller.example", "idn@xn--mller-kva.example"
    visitor = visitors.anonymous()
    assert (await visitor.register("idn", email=ascii_form)).status == 303
    assert unicode in (await visitor.get("/account")).text
    for number, typed in enumerate((unicode, ascii_form, "IDN@MÜLLER.example")):
        answer = await visitors.anonymous().register(f"other{number}", email=typed)
        assert (answer.status, answer.error("email")) == (422, "This email address is taken.")
        assert (await visitor.another_device().sign_in(typed)).status == 303
        assert (await visitors.anonymous().post("/forgot", email=typed)).status == 303


async def test_ten_concurrent_registrations_of_one_name_create_one_account(
    visitors: Visitors,
) -> None:
    browsers = [visitors.anonymous() for _ in range(10)]
    answers = await asyncio.gather(
        *(
            visitor.register(name, email=f"a{number}@example.org")
            for number, (visitor, name) in enumerate(
                zip(browsers, ["ada", "Ada", "ADA", "aDa", "adA"] * 2, strict=True)
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


async def test_invalid_fields_show_errors_and_the_rest_is_kept(
    anonymous: Visitor,
) -> None:
    good = {"username": "valentina", "email": "valentina@example.org", "password": PASSWORD}
    for field, value in REFUSED:
        typed = {**good, field: value}
        answer = await anonymous.register(**typed, confirm=typed["password"])
        assert answer.status == 422, (field, value)
        assert answer.error(field), (field, value)
        shown = answer.fields
        for name in {"username", "email"} - {field}:
            assert shown[name] == typed[name]
        assert shown["password"] == shown["confirm"] == ""
        text = answer.text.replace(typed["email"], "")
        assert not typed["password"] or typed["password"] not in text
    assert await documents("users") == []


async def test_concurrent_registrations_get_the_same_error_as_later_ones(
    visitors: Visitors,
) -> None:
    people = [Visitor(visitors.app, f"p{number}") for number in range(12)]
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
            later = await visitors.anonymous().post("/register", **form)
            assert later.error("email") == "This email address is taken."
            assert (answer.status, answer.anonymized) == (later.status, later.anonymized)
    assert len(await documents("users")) == 1


async def test_passwords_that_differ_are_refused(anonymous: Visitor) -> None:
    answer = await anonymous.register("ada", confirm=f"{PASSWORD} ")
    assert answer.status == 422
    assert "do not match" in answer.error("confirm")
    assert await documents("users") == []


@pytest.mark.parametrize(
    "password",
    [LONG[:256], "purple otter sings at dawn", " spaces around count as much ", EMOJI],
    ids=["256 characters", "letters alone", "spaces", "64 emoji"],
)
async def test_a_good_password_is_used_unchanged(visitors: Visitors, password: str) -> None:
    answer = await visitors.anonymous().register("ada", password=password, confirm=password)
    assert answer.status == 303, answer.error("password")
    assert (await Visitor(visitors.app, "ada").sign_in(password=password)).status == 303
    for other in (password[:-1], f"{password[:-1]}x", f"{password}x", password.swapcase()):
        if other != password:
            assert (await Visitor(visitors.app, "ada").sign_in(password=other)).status == 422


async def test_a_signed_in_user_is_redirected_from_registration(ada: Visitor) -> None:
    assert (await ada.get("/register")).location == "/"
    assert (await ada.register("another")).location == "/"
    assert len(await documents("users")) == 1
