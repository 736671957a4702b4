"""The rating of a password that is being typed."""

import html
import re

import pytest

from quartapp.security import password_policy
from tests.conftest import PASSWORD
from tests.integration.routes.conftest import StartApp, Visitor, Visitors


async def rate(visitor: Visitor, password: str, **fields: str) -> tuple[int, str]:
    answer = await visitor.post("/password/strength", password=password, **fields)
    assert (answer.status, answer.headers["Cache-Control"]) == (200, "no-store")
    rating = re.search(r'value="(\d)".*<p class="hint">(.+)</p>', answer.text)
    assert rating
    return int(rating[1]), html.unescape(rating[2])


@pytest.mark.parametrize(
    "password",
    ["short", "qwertyuiop", "p@ssw0rd123", "zoe@elsewhere.example1", "x" * 257, "\0" * 9, PASSWORD],
)
async def test_the_rating_agrees_with_the_registration_form(
    visitors: Visitors, password: str
) -> None:
    person = {"username": "zoe", "email": "zoe@elsewhere.example"}
    score, text = await rate(visitors.anonymous(), password, **person)
    answer = await visitors.anonymous().register(**person, password=password, confirm=password)
    assert (score >= password_policy.MIN_SCORE) == (answer.status == 303)
    if answer.status == 422:
        assert text == answer.error("password")


async def test_the_names_of_the_signed_in_user_are_obvious_words(visitors: Visitors) -> None:
    grace = await visitors.member("grace.hopper")
    assert "too similar" in (await rate(grace, "grace.hopper1"))[1]
    assert "too similar" not in (await rate(visitors.anonymous(), "grace.hopper1"))[1]


async def test_ratings_are_limited_per_address(start_app: StartApp) -> None:
    visitors = await start_app(limit_password_feedback="2 per hour")
    visitor = visitors.anonymous()
    for _ in range(2):
        await rate(visitor, PASSWORD)
    assert (await visitor.post("/password/strength", password=PASSWORD)).status == 429
    assert (await visitor.register("zoe")).status == 303


async def test_ratings_leave_half_of_the_scoring_queue_to_forms(
    visitors: Visitors, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(password_policy.PasswordScorer, "waiting", password_policy.MAX_WAITING // 2)
    visitor = visitors.anonymous()
    assert (await visitor.post("/password/strength", password=PASSWORD)).status == 503
    assert (await visitor.register("zoe")).status == 303
