"""A rejected form shows the errors of its validators and those of the models in one answer, and
keeps what was typed."""

import pytest

from tests.integration.routes.conftest import StartApp, Visitors

INVALID, TAKEN = "after the @-sign", "is taken"
WEAK = "qwertyuiop"


async def test_a_wrong_current_password_does_not_hide_a_weak_new_one(visitors: Visitors) -> None:
    ada = await visitors.member("ada")
    sent = {"current_password": "something else", "password": WEAK, "confirm": "another"}
    answer = await ada.post("/account/password", **sent)
    assert answer.status == 422
    assert answer.error("current_password") == "Incorrect password."
    assert "too easy" in answer.error("password")
    assert "do not match" in answer.error("confirm")
    assert WEAK not in answer.text


@pytest.mark.parametrize("missing", ["current_password", "password"])
async def test_a_missing_password_does_not_hide_the_verdict_on_the_other(
    visitors: Visitors, missing: str
) -> None:
    ada = await visitors.member("ada")
    sent = {"current_password": "something else", "password": WEAK, "confirm": WEAK, missing: ""}
    answer = await ada.post("/account/password", **sent)
    assert answer.status == 422
    errors = answer.error("current_password"), answer.error("password")
    if missing == "current_password":
        assert errors[0] == "Enter your current password."
        assert "too easy" in errors[1]
    else:
        assert errors == ("Incorrect password.", "Enter a password.")


async def test_registering_shows_a_taken_name_beside_an_invalid_address(
    start_app: StartApp,
) -> None:
    visitors = await start_app(require_verified_email=True)
    await visitors.account("ada")
    sent = {"username": "ADA", "email": "zoe@", "password": WEAK, "confirm": WEAK}
    answer = await visitors.anonymous().post("/register", **sent)
    assert answer.status == 422
    assert TAKEN in answer.error("username")
    assert INVALID in answer.error("email")
    assert "too easy" in answer.error("password")
    assert (answer.fields["username"], answer.fields["email"]) == ("ADA", "zoe@")
