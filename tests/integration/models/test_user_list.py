"""The list of users for administrators: every filter in every order, forwards and backwards."""

from __future__ import annotations

from datetime import timedelta
from itertools import pairwise, product
from random import Random
from typing import Any

import pytest
from beanie import Link

from quartapp import clock
from quartapp.db.mongo import Database
from quartapp.models.accounts import list_indexes, user_list
from quartapp.models.accounts.user import User
from quartapp.models.accounts.user_list import Order, Place, Status, UserFilter
from quartapp.models.base.counting import CappedCount
from quartapp.models.base.references import role_ref
from quartapp.models.roles.role import Role
from tests.integration.models.helpers import role

COUNT, SIZE = 60, 7
NOW = clock.now().replace(microsecond=0)


@pytest.fixture
async def people(db: Database) -> list[User]:
    """Return users in all states, some of whom were seen at the same time, and some never."""
    roles, random = [await role(name) for name in ("member", "moderator")], Random(7)
    people = []
    for number in range(COUNT):
        user = User(
            username=f"{'ab'[number % 2]}Person{number:02}",
            email=f"{number:02}@example.org",
            password_hash="hash",
            disabled_at=NOW if number % 7 == 1 else None,
            closed_at=NOW if number % 11 == 2 else None,
            closes_at=NOW - timedelta(days=1) if number % 13 == 5 else None,
            email_verified_at=None if number % 5 == 3 else NOW,
            seen_at=None if number % 4 == 1 else NOW - timedelta(hours=random.randrange(9)),
            roles=[Link(role_ref(each.id), Role) for each in roles[: 1 + (number % 3 == 0)]],
        )
        people.append(user)
    random.shuffle(people)
    await User.insert_many(people)
    await db["users"].update_many({"username": {"$regex": "[02468]$"}}, {"$set": {"totp": TOTP}})
    # An older version has stored neither.
    unset = {"seen_at": "", "passkeys": ""}
    await db["users"].update_many({"seen_at": None}, {"$unset": unset})
    return await User.find({}).to_list()


TOTP: dict[str, Any] = {"sealed": "x", "added_at": NOW}


def matches(user: User, wanted: UserFilter) -> bool:
    states = {
        Status.ACTIVE: user.is_active,
        Status.DISABLED: user.disabled_at is not None,
        Status.CLOSING: user.closed_at is not None,
        Status.UNVERIFIED: not user.verified,
    }
    return (
        user.username.casefold().startswith(wanted.text)
        and (wanted.role is None or any(link.ref.id == wanted.role for link in user.roles))
        and (wanted.status is None or states[wanted.status])
        and not (wanted.without_factor and user.factors)
    )


def ordered(people: list[User], order: Order) -> list[str]:
    def key(user: User) -> Any:
        if order is Order.USERNAME:
            return user.username.casefold()
        if order is Order.CREATED:
            return user.id
        return user.seen_at is not None, user.seen_at or NOW, user.id

    return [user.username for user in sorted(people, key=key, reverse=order is not Order.USERNAME)]


async def filters() -> list[UserFilter]:
    moderator = (await role("moderator")).id
    return [
        UserFilter(text, held, state, without, order)
        for text, held, state, without, order in product(
            ("", "aper"), (None, moderator), (None, *Status), (False, True), Order
        )
    ]


async def walk(wanted: UserFilter, *, size: int = SIZE) -> list[user_list.UserPage]:
    pages = [await user_list.page(wanted, size=size)]
    while place := pages[-1].after:
        assert len(pages) < COUNT
        text = place.text(wanted.order)
        pages.append(await user_list.page(wanted, Place.parse(text, wanted.order), size=size))
    return pages


def names(pages: list[user_list.UserPage]) -> list[str]:
    return [user.username for page in pages for user in page.users]


async def test_every_filter_lists_its_users_once_in_every_order(people: list[User]) -> None:
    for wanted in await filters():
        expected = ordered([user for user in people if matches(user, wanted)], wanted.order)
        pages = await walk(wanted)
        assert names(pages) == expected, wanted
        assert all(len(page.users) == SIZE for page in pages[:-1]), wanted
        counted = await user_list.count(wanted)
        assert (counted.number, counted.more) == (len(expected), False), wanted


async def test_the_previous_page_is_the_one_that_was_left(people: list[User]) -> None:
    for wanted in await filters():
        pages = await walk(wanted)
        for left, here in pairwise(pages):
            assert here.before is not None
            place = Place.parse(here.before.text(wanted.order), wanted.order, back=True)
            back = await user_list.page(wanted, place, size=SIZE)
            assert names([back]) == names([left]), wanted
            assert (back.before is None) == (left is pages[0]), wanted


async def test_a_page_examines_a_limited_number_of_users_and_says_so(
    people: list[User], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(user_list, "EXAMINED", 5)
    monkeypatch.setattr(user_list, "COUNTED", 5)
    for wanted in await filters():
        if wanted.text and wanted.order is not Order.USERNAME:
            continue
        expected = ordered([user for user in people if matches(user, wanted)], wanted.order)
        pages = await walk(wanted, size=4)
        assert names(pages) == expected, wanted
        for page in pages[:-1]:
            assert page.partial == (len(page.users) < 4), wanted
        counted = await user_list.count(wanted)
        assert counted.number == len(expected) or (counted.number <= 5 and counted.more), wanted


async def test_a_text_with_too_many_users_is_sorted_in_part_and_says_so(
    people: list[User], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(user_list, "COUNTED", 5)
    page = await user_list.page(UserFilter("aper", order=Order.SEEN), size=50)
    assert (len(page.users), page.partial, page.after) == (5, True, None)
    assert await user_list.count(UserFilter("aper")) == CappedCount(5, more=True)


async def test_addresses_are_listed_on_the_page_of_their_name(
    people: list[User], monkeypatch: pytest.MonkeyPatch
) -> None:
    await User.change({"username": "aPerson58"}, {"$set": {"email": "aper@example.org"}})
    for number in range(5):
        match = {"username": f"bPerson{10 * number + 1:02}"}
        assert await User.change(match, {"$set": {"email": f"aper{number}@example.org"}})
    pages = await walk(UserFilter("aper"), size=4)
    named = [f"aPerson{number:02}" for number in range(0, COUNT, 2)]
    assert names(pages) == [*named, *(f"bPerson{number}1" for number in range(5))]


async def test_pages_are_read_with_the_index_of_the_rarer_filter(
    people: list[User], queries: Any
) -> None:
    """The database examines hardly more users than the page has."""
    moderator = await role("moderator")
    for wanted, index in [
        (UserFilter(), "username"),
        (UserFilter(order=Order.CREATED), "_id"),
        (UserFilter(order=Order.SEEN), "seen_at"),
        (UserFilter(role=moderator.id, order=Order.SEEN), "roles.$id: 1, seen_at"),
        (UserFilter(status=Status.CLOSING, order=Order.SEEN), "seen_at"),
        (UserFilter(role=moderator.id, status=Status.CLOSING), "username"),
    ]:
        asked = await queries(user_list.page(wanted, size=3))
        (read,) = [each for each in asked if "$sort" in str(each["command"])]
        assert index in read["planSummary"], wanted
        assert read["docsExamined"] <= 12, wanted
        assert not read.get("hasSortStage"), wanted


@pytest.mark.parametrize("text", ["", "x", "_", "2020_x", "x_507f1f77bcf86cd799439011"])
@pytest.mark.parametrize("order", [Order.CREATED, Order.SEEN])
def test_a_text_that_is_no_place_is_refused(text: str, order: Order) -> None:
    with pytest.raises(user_list.InvalidPlace):
        Place.parse(text, order)


def test_the_indexed_states_are_states_of_the_filter() -> None:
    assert {Status(each) for each in list_indexes.INDEXED_STATES} == {*Status} - {Status.ACTIVE}


async def test_each_index_is_read_by_a_list_without_text(db: Database) -> None:
    member, orders = await role("member"), list(Order)
    states = [Status(state) for state in list_indexes.INDEXED_STATES]
    wanted = [UserFilter(order=order) for order in orders]
    wanted += [UserFilter(role=member.id, order=order) for order in orders]
    wanted += [UserFilter(status=state, order=order) for state, order in product(states, orders)]
    read = {(await user_list._source(each, None, size=1)).index for each in wanted}
    created = {index.document["name"] for index in list_indexes.LIST_INDEXES}
    assert read == created | {"username", "_id_"}
