"""The first administrator, made through a link that works once (ASVS 6.4.1, 2.3.4)."""

import asyncio
from datetime import timedelta

import pytest

from quartapp import clock
from quartapp.models.accounts.one_time_token import Token, issue_setup
from tests.conftest import PASSWORD
from tests.routes.conftest import Answer, Town, Visitor, documents


@pytest.fixture
async def link(town: Town) -> str:
    return f"/setup/{await issue_setup()}"


async def set_up(visitor: Visitor, link: str, username: str = "grace") -> Answer:
    return await visitor.post(
        link,
        username=username,
        email=f"{username}@example.org",
        password=PASSWORD,
        confirm=PASSWORD,
    )


async def test_a_fresh_database_has_nobody_who_could_sign_in(nobody: Visitor) -> None:
    assert await documents("users") == []
    for login in ("admin", "root", "administrator", "quartapp"):
        for password in (login, PASSWORD, ""):
            assert (await nobody.post("/login", login=login, password=password)).status in (
                422,
                429,
            )
    assert await nobody.me() is None


async def test_the_link_makes_an_administrator_once(nobody: Visitor, link: str) -> None:
    assert (await nobody.get(link)).status == 200
    answer = await set_up(nobody, link)
    assert (answer.status, answer.location) == (303, "/admin/users")
    me = await nobody.me()
    assert me is not None
    assert me["roles"] == ["admin", "member"]
    assert (await nobody.get(link)).status == 410
    assert (await set_up(nobody, link, "second")).status == 410
    assert len(await documents("users")) == 1


async def test_a_form_that_is_wrong_leaves_the_link_as_it_was(nobody: Visitor, link: str) -> None:
    assert (await set_up(nobody, link, "not a name")).status == 422
    assert (await set_up(nobody, link)).status == 303


@pytest.mark.parametrize("token", ["x", "0" * 43, "%00", "$ne"])
async def test_a_made_up_link_leads_nowhere(nobody: Visitor, link: str, token: str) -> None:
    assert (await nobody.get(f"/setup/{token}")).status == 410
    assert (await set_up(nobody, f"/setup/{token}")).status == 410
    assert await documents("users") == []


async def test_a_link_that_is_too_old_is_refused(nobody: Visitor, link: str) -> None:
    past = clock.now() - timedelta(seconds=1)
    await Token.change_all({}, {"$set": {"expires_at": past}})
    assert (await nobody.get(link)).status == 410
    assert (await set_up(nobody, link)).status == 410


async def test_an_older_link_is_dead_when_there_is_a_newer_one(nobody: Visitor, link: str) -> None:
    newer = f"/setup/{await issue_setup()}"
    assert (await set_up(nobody, link)).status == 410
    assert (await set_up(nobody, newer)).status == 303


async def test_the_link_is_dead_once_there_is_an_administrator(town: Town, link: str) -> None:
    await town.admin()
    assert (await town.nobody().get(link)).status == 410
    assert (await set_up(town.nobody(), link)).status == 410
    assert len(await documents("users")) == 1


async def test_of_many_who_use_the_link_at_once_one_becomes_administrator(
    town: Town, link: str
) -> None:
    answers = await asyncio.gather(
        *(set_up(town.nobody(), link, f"grace-{number}") for number in range(6))
    )
    assert sorted(answer.status for answer in answers) == [303] + 5 * [410]
    assert len(await documents("users")) == 1
