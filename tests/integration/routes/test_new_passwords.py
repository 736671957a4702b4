"""New passwords: limits are checked before a password is scored or hashed."""

from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from quartapp.models.accounts.one_time_token import issue_setup
from quartapp.security.password_scoring import PasswordScorer
from quartapp.security.passwords import Busy
from tests.integration.routes.conftest import StartApp, Visitor, Visitors
from tests.integration.routes.test_invitations import invitation_link
from tests.integration.routes.test_password_reset import reset_link

NEW = "seven purple otters juggle"


async def register(visitors: Visitors) -> tuple[Visitor, str]:
    return visitors.anonymous(), "/register"


async def set_up(visitors: Visitors) -> tuple[Visitor, str]:
    return visitors.anonymous(), f"/setup/{await issue_setup()}"


async def reset(visitors: Visitors) -> tuple[Visitor, str]:
    await visitors.member("ada")
    return visitors.anonymous(), await reset_link(visitors)


async def accept(visitors: Visitors) -> tuple[Visitor, str]:
    return visitors.anonymous(), await invitation_link(visitors, await visitors.admin())


Page = Callable[[Visitors], Awaitable[tuple[Visitor, str]]]
PAGES = [register, set_up, reset, accept]


def fields(**changed: str) -> dict[str, str]:
    return {
        "username": "zoe",
        "email": "zoe@example.org",
        "password": NEW,
        "confirm": NEW,
        **changed,
    }


@pytest.fixture
def scored(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the list of passwords that are scored during the test."""
    passwords: list[str] = []
    score = PasswordScorer.score

    async def watching(self: PasswordScorer, password: str, words: Any) -> Any:
        passwords.append(password)
        return await score(self, password, words)

    monkeypatch.setattr(PasswordScorer, "score", watching)
    return passwords


@pytest.mark.parametrize("page", PAGES)
async def test_limits_are_counted_before_a_password_is_scored(
    start_app: StartApp, scored: list[str], page: Page
) -> None:
    visitors = await start_app(limit_registration="1 per hour", limit_recovery="1 per hour")
    visitor, path = await page(visitors)
    weak = fields(password="qwertyuiop", confirm="qwertyuiop")
    answer = await visitor.post(path, **weak)
    assert answer.status == 422
    assert "too easy" in answer.error("password")
    assert scored == ["qwertyuiop"]
    answer = await visitor.post(path, **fields())
    assert answer.status == 429
    assert "Retry-After" in answer.headers
    assert scored == ["qwertyuiop"]


@pytest.mark.parametrize("page", PAGES)
async def test_a_password_that_is_too_long_is_not_scored(
    visitors: Visitors, scored: list[str], page: Page
) -> None:
    visitor, path = await page(visitors)
    answer = await visitor.post(path, **fields(password="ab" * 10_000, confirm="ab" * 10_000))
    assert answer.status == 422
    assert "at most 256" in answer.error("password")
    assert scored == []


async def test_the_current_password_is_checked_before_a_new_one_is_scored(
    start_app: StartApp, scored: list[str]
) -> None:
    ada = await (await start_app(limit_confirmation="1 per hour")).member("ada")
    sent = {"current_password": "something else", "password": NEW, "confirm": NEW}
    answer = await ada.post("/account/password", **sent)
    assert answer.status == 422
    assert "Incorrect password" in answer.error("current_password")
    assert scored == [NEW]
    answer = await ada.post("/account/password", **sent)
    assert answer.status == 429
    assert scored == [NEW]


async def test_a_new_password_without_the_current_one_is_counted_as_typed(
    start_app: StartApp, scored: list[str]
) -> None:
    ada = await (await start_app(limit_password_feedback="1 per hour")).member("ada")
    sent = {"current_password": "", "password": NEW, "confirm": NEW}
    assert (await ada.post("/account/password", **sent)).status == 422
    answer = await ada.post("/account/password", **sent)
    assert answer.status == 429
    assert answer.error("current_password") == "Enter your current password."
    assert scored == [NEW]
    answer = await ada.post("/account/password", **{**sent, "current_password": ada.password})
    assert answer.status == 303
    assert scored == [NEW, NEW]


@pytest.mark.parametrize("page", PAGES)
async def test_a_full_scoring_queue_is_answered_with_503_and_the_form(
    visitors: Visitors, monkeypatch: pytest.MonkeyPatch, page: Page
) -> None:
    async def busy(*_: Any) -> Any:
        raise Busy

    visitor, path = await page(visitors)
    monkeypatch.setattr(PasswordScorer, "score", busy)
    answer = await visitor.post(path, **fields())
    assert answer.status == 503
    assert "Retry-After" in answer.headers
    assert NEW not in answer.text
    monkeypatch.undo()
    assert (await visitor.post(path, **fields())).status == 303
