"""Creating the first administrator by a setup link (ASVS 6.4.1, 2.3.4)."""

import asyncio
from datetime import timedelta

import pytest

from quartapp import clock
from quartapp.models.accounts.one_time_token import Token, issue_setup
from tests.conftest import PASSWORD
from tests.integration.routes.conftest import Answer, Visitor, Visitors, documents


@pytest.fixture
async def link(visitors: Visitors) -> str:
    return f"/setup/{await issue_setup()}"


async def set_up(visitor: Visitor, link: str, username: str = "grace") -> Answer:
    return await visitor.post(
        link,
        username=username,
        email=f"{username}@example.org",
        password=PASSWORD,
        confirm=PASSWORD,
    )


async def test_a_fresh_database_has_no_account(anonymous: Visitor) -> None:
    assert await documents("users") == []
    for login in ("admin", "root", "administrator", "quartapp"):
        for password in (login, PASSWORD, ""):
            assert (await anonymous.post("/login", login=login, password=password)).status in (
                422,
                429,
            )
    assert await anonymous.me() is None


async def test_the_setup_link_works_once(anonymous: Visitor, link: str) -> None:
    assert (await anonymous.get(link)).status == 200
    answer = await set_up(anonymous, link)
    assert (answer.status, answer.location) == (303, "/admin/users")
    me = await anonymous.me()
    assert me is not None
    assert me["roles"] == ["admin", "member"]
    assert (await anonymous.get(link)).status == 410
    assert (await set_up(anonymous, link, "second")).status == 410
    assert len(await documents("users")) == 1


async def test_the_setup_link_works_in_a_browser_that_is_signed_in(
    visitors: Visitors, link: str
) -> None:
    ada = await visitors.member("ada")
    answer = await set_up(ada, link)
    assert (answer.status, answer.location) == (303, "/admin/users")
    me = await ada.me()
    assert me is not None
    assert (me["username"], me["roles"]) == ("grace", ["admin", "member"])
    (created,) = await documents("events", verb="user.registered", **{"details.roles": "admin"})
    assert created["actor"] == created["subject"]


async def test_an_invalid_form_does_not_use_up_the_setup_link(
    anonymous: Visitor, link: str
) -> None:
    assert (await set_up(anonymous, link, "not a name")).status == 422
    assert (await set_up(anonymous, link)).status == 303


@pytest.mark.parametrize("token", ["x", "0" * 43, "%00", "$ne"])
async def test_a_made_up_link_is_refused(anonymous: Visitor, link: str, token: str) -> None:
    assert (await anonymous.get(f"/setup/{token}")).status == 410
    assert (await set_up(anonymous, f"/setup/{token}")).status == 410
    assert await documents("users") == []


async def test_an_expired_setup_link_is_refused(anonymous: Visitor, link: str) -> None:
    past = clock.now() - timedelta(seconds=1)
    await Token.change_all({}, {"$set": {"expires_at": past}})
    assert (await anonymous.get(link)).status == 410
    assert (await set_up(anonymous, link)).status == 410


async def test_a_newer_setup_link_voids_the_older_one(anonymous: Visitor, link: str) -> None:
    newer = f"/setup/{await issue_setup()}"
    assert (await set_up(anonymous, link)).status == 410
    assert (await set_up(anonymous, newer)).status == 303


async def test_the_setup_link_is_void_once_there_is_an_administrator(
    visitors: Visitors, link: str
) -> None:
    await visitors.admin()
    assert (await visitors.anonymous().get(link)).status == 410
    assert (await set_up(visitors.anonymous(), link)).status == 410
    assert len(await documents("users")) == 1


async def test_concurrent_uses_of_the_setup_link_succeed_once(
    visitors: Visitors, link: str
) -> None:
    answers = await asyncio.gather(
        *(set_up(visitors.anonymous(), link, f"grace-{number}") for number in range(6))
    )
    assert sorted(answer.status for answer in answers) == [303] + 5 * [410]
    assert len(await documents("users")) == 1
