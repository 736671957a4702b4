"""The list of users for administrators: filters, order, pages and counts.

No part of it takes longer with more users. A page reads an index that has its order, for the whole
list, for one role or for one of the rare states of accounts. What that index cannot filter is
filtered afterwards, among at most EXAMINED users: then a page may have fewer users than its size,
even none, and yet not be the last. The same bound applies to the count, which stops at COUNTED.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, Self

from beanie import PydanticObjectId

from quartapp import clock
from quartapp.models.accounts import status
from quartapp.models.accounts.account import Account
from quartapp.models.accounts.list_indexes import INDEXED_STATES
from quartapp.models.accounts.user import User
from quartapp.models.base.counting import CappedCount
from quartapp.models.base.record import fetch_links
from quartapp.models.base.references import CASELESS

EXAMINED = 1000
COUNTED = 1000
EARLIEST = datetime(1970, 1, 1, tzinfo=UTC)

Filter = dict[str, Any]


class Status(StrEnum):
    """States of accounts by which the list can be filtered. An account can be in several.

    CLOSING accounts are deactivated, or will be deleted. DISABLED includes expired ones once their
    expiry is recorded.
    """

    ACTIVE = "active"
    DISABLED = "disabled"
    UNVERIFIED = "unverified"
    CLOSING = "closing"


class Order(StrEnum):
    """The order of the list: by name, or the latest first by creation or last use.

    CREATED is the order of the ids, which ascend with time.
    """

    USERNAME = "username"
    CREATED = "created"
    SEEN = "seen"


SORTS: dict[Order, dict[str, int]] = {
    Order.USERNAME: {"username": 1},
    Order.CREATED: {"_id": -1},
    Order.SEEN: {"seen_at": -1, "_id": -1},
}


class InvalidPlace(ValueError):
    """The text is no place in a list of this order."""


@dataclass(frozen=True)
class Place:
    """A place in the list: behind the user with these values, or with `back`, before."""

    username: str = ""
    id: PydanticObjectId | None = None
    seen_at: datetime | None = None
    back: bool = False

    @classmethod
    def parse(cls, text: str, order: Order, *, back: bool = False) -> Self:
        """Return the place that `text()` has written for this order. Raises InvalidPlace; not for
        the order by username, in which every text is a place."""
        if order is Order.USERNAME:
            return cls(username=text, back=back)
        seen, _, last = text.rpartition("_")
        if not PydanticObjectId.is_valid(last):
            raise InvalidPlace
        try:
            seen_at = clock.from_iso(seen) if seen else None
        except ValueError:
            raise InvalidPlace from None
        return cls(id=PydanticObjectId(last), seen_at=seen_at, back=back)

    @classmethod
    def of(cls, user: User, *, back: bool = False) -> Self:
        return cls(user.username, user.id, user.seen_at, back)

    def text(self, order: Order) -> str:
        """Return the place as text, for `parse`: the username, the id, or `<time of last
        use>_<id>`."""
        if order is Order.USERNAME:
            return self.username
        seen = self.seen_at.isoformat() if order is Order.SEEN and self.seen_at else ""
        return f"{seen}_{self.id}" if order is Order.SEEN else str(self.id)

    def ranges(self, order: Order) -> list[Filter]:
        """Return filters which, one after the other, find what follows the place in this order or,
        if it is one to read back from, what precedes it.

        One filter, but up to three for the order by last use: those of the same time, the others,
        and the users who were never seen, who are the last ones.
        """
        ahead = "$lt" if (SORTS[order][next(iter(SORTS[order]))] < 0) != self.back else "$gt"
        if order is Order.USERNAME:
            return [{"username": {ahead: self.username}}]
        same = {"_id": {ahead: self.id}}
        if order is Order.CREATED:
            return [same]
        # Users who were never seen are the last ones.
        never: list[Filter] = [{"seen_at": {"$gte": EARLIEST}} if self.back else {"seen_at": None}]
        if self.seen_at is None:
            return [{"seen_at": None, **same}, *(never if self.back else [])]
        others = {"seen_at": {ahead: self.seen_at}}
        return [{"seen_at": self.seen_at, **same}, others, *([] if self.back else never)]


@dataclass(frozen=True)
class UserFilter:
    """Which users the list shows, and in which order. `text` is the beginning of a username or an
    address; `role` is the id of a role."""

    text: str = ""
    role: PydanticObjectId | None = None
    status: Status | None = None
    without_factor: bool = False
    order: Order = Order.USERNAME


@dataclass(frozen=True)
class UserPage:
    """A page of the list.

    `before` and `after` are the places where the pages before and after it begin, None if there is
    none. `partial` says that there may be more users than the page shows: EXAMINED users were
    examined before it was full, or a search by text found too many.
    """

    users: Sequence[User]
    before: Place | None
    after: Place | None
    partial: bool = False


@dataclass(frozen=True)
class Source:
    """What the database reads for the list: an index and the users that it finds, in order.

    `rest` is the filter for what the index cannot tell. `named` says that the users are named by
    their ids, and sorted by the database. Then `cut` is the place of the last one if more would
    follow, and `incomplete` says that others exist which are not listed at all.
    """

    index: str
    match: Filter
    rest: Filter
    named: bool = False
    cut: Place | None = None
    incomplete: bool = False


async def page(wanted: UserFilter, place: Place | None = None, *, size: int) -> UserPage:
    """Return a page of at most `size` users with their roles fetched, from the place on; without
    one the first page. A place to read back from gives the page before it, in the order of the
    list.

    A search by text that is not sorted by name lists at most COUNTED users by name and
    `account.ADDRESSES_FOUND` by address.
    """
    source = await _source(wanted, place, size=size + 1)
    back = place is not None and place.back
    rows, stop = await _read(source, wanted.order, place, size + 1)
    users, more = rows[:size], len(rows) > size
    stop = stop or source.cut
    end = Place.of(users[-1], back=back) if more else stop and replace(stop, back=back)
    if back:
        users.reverse()
    await fetch_links(users, ["roles"])
    start = _start(users, place)
    before, after = (end, start) if back else (start, end)
    partial = source.incomplete or (stop is not None and len(users) < size)
    return UserPage(users, before, after, partial=partial)


def _start(users: Sequence[User], place: Place | None) -> Place | None:
    """Return the place from which reading in the other direction gives the page that `place` was
    taken from. `users` are those of this page, in the order of the list.

    It is the place before the first of them or, if the page was read backwards, behind the last.
    For an empty page it is `place`, turned round; without `place`, on the first page, None.
    """
    if place is None:
        return None
    if not users:
        return replace(place, back=not place.back)
    return Place.of(users[-1]) if place.back else Place.of(users[0], back=True)


async def count(wanted: UserFilter) -> CappedCount:
    """Return how many users the list has.

    The number is a lower bound, with `more`, if there are more than COUNTED, if there is a filter
    that the index lacks and the index has at least EXAMINED users, or if a search by text found too
    many by name. The order of the list does not matter.
    """
    source = await _source(replace(wanted, order=Order.USERNAME), None, size=COUNTED + 1)
    stages: list[Filter] = [{"$match": source.match}]
    if source.rest and not source.named:
        stages.append({"$limit": EXAMINED})
    if source.rest:
        stages.append({"$match": source.rest})
    stages += [{"$limit": COUNTED + 1}, {"$count": "found"}]
    options = _options(source, Order.USERNAME)
    found = await User.get_motor_collection().aggregate(stages, **options).to_list(1)
    number = found[0]["found"] if found else 0
    if number > COUNTED:
        return CappedCount(COUNTED, more=True)
    more = source.cut
    if source.rest and not more:
        more = await _beyond(source, Order.USERNAME, source.match)
    return CappedCount(number, more=more is not None)


async def _read(
    source: Source, order: Order, place: Place | None, size: int
) -> tuple[list[User], Place | None]:
    """Return at most `size` users from the place on, in the direction of reading; and the place of
    the last user that was examined, if the bound has ended the search, else None."""
    back = place is not None and place.back
    sort = {name: -way if back else way for name, way in SORTS[order].items()}
    rows: list[User] = []
    for part in place.ranges(order) if place else [{}]:
        match = {"$and": [source.match, part]} if source.match and part else source.match or part
        stages: list[Filter] = [{"$match": match}, {"$sort": sort}]
        bounded = bool(source.rest) and not source.named
        if bounded:
            stages.append({"$limit": EXAMINED})
        if source.rest:
            stages.append({"$match": source.rest})
        stages.append({"$limit": size - len(rows)})
        found = User.get_motor_collection().aggregate(stages, **_options(source, order))
        rows += [User.model_validate(row) async for row in found]
        if len(rows) == size:
            break
        if bounded and (last := await _beyond(source, order, match, sort)):
            return rows, last
    return rows, None


async def _beyond(
    source: Source, order: Order, match: Filter, sort: Filter | None = None
) -> Place | None:
    """Return the place of the user number EXAMINED that the index finds; None if it has fewer, and
    always for a source that names its users.

    `match` is the filter of the index, for a page also with the range from its place on, without
    `rest`. `sort` is the direction in which the page is read; without it, that of `order`.
    """
    if source.named:
        return None
    fields = {"username": 1, "seen_at": 1}
    found = User.get_motor_collection().find(
        match, fields, sort=list((sort or SORTS[order]).items()), **_options(source, order)
    )
    for row in await found.skip(EXAMINED - 1).limit(1).to_list(1):
        return Place(row["username"], row["_id"], row.get("seen_at"))
    return None


def _options(source: Source, order: Order) -> Filter:
    """Return the options of the query: its index, and for the order by username its collation."""
    sorted_by_name = order is Order.USERNAME
    return {"hint": source.index, **({"collation": CASELESS} if sorted_by_name else {})}


async def _source(wanted: UserFilter, place: Place | None, *, size: int) -> Source:
    """Return what to read for a page of this size.

    For a search by text that is the users that it finds (`_found_by_text`). Else it is the index of
    the role or the rare state, if both are wanted that with fewer users, or else that of all users;
    what the index does not tell is in `rest`. Sends queries only for a search, and to compare.
    """
    by_role: Filter = {"roles.$id": wanted.role} if wanted.role else {}
    by_state: Filter = INDEXED_STATES.get(wanted.status or "", {})
    active = status.active_filter(clock.now()) if wanted.status is Status.ACTIVE else {}
    # Documents of older versions lack the passkeys.
    factor = {"totp": None, "passkeys": {"$in": [None, []]}} if wanted.without_factor else {}
    rest: Filter = {**active, **factor}
    if wanted.text:
        return await _found_by_text(wanted, place, _all(by_role, by_state, rest), size)
    if by_state and by_role and await _is_rarer(wanted, by_role, by_state):
        rest, by_state = _all(by_state, rest), {}
    if by_state:
        return Source(f"{wanted.status}_by_{wanted.order}", by_state, _all(by_role, rest))
    if by_role:
        return Source(f"role_by_{wanted.order}", by_role, rest)
    index = {Order.USERNAME: "username", Order.CREATED: "_id_", Order.SEEN: "seen"}
    return Source(index[wanted.order], {}, rest)


def _all(*filters: Filter) -> Filter:
    """Return the filter for documents that match all of these."""
    given = [each for each in filters if each]
    return {"$and": given} if len(given) > 1 else next(iter(given), {})


async def _is_rarer(wanted: UserFilter, by_role: Filter, by_state: Filter) -> bool:
    """Return whether the role has fewer users than the state, both counted up to COUNTED + 1, at
    the same time."""
    users, most = User.get_motor_collection(), COUNTED + 1
    holders, others = await asyncio.gather(
        users.count_documents(by_role, limit=most, hint="role_by_created"),
        users.count_documents(by_state, limit=most, hint=f"{wanted.status}_by_created"),
    )
    return holders < others


async def _found_by_text(
    wanted: UserFilter, place: Place | None, rest: Filter, size: int
) -> Source:
    """Return the source for a search by text: users whose username begins with it, and those that
    `Account.matching` finds by address.

    By username they are those behind `place`, at most `size` of them if the list has this order and
    no other filter (`rest`), else at most COUNTED.
    """
    by_name = wanted.order is Order.USERNAME
    start = place if by_name else None
    ids, last = await Account.matching(
        wanted.text,
        after=start.username if start and not start.back else None,
        before=start.username if start and start.back else None,
        limit=COUNTED if rest or not by_name else size,
    )
    match: Filter = {"_id": {"$in": ids}}
    if last is None or not by_name:
        return Source("_id_", match, rest, named=True, incomplete=last is not None)
    # Users who were found by address come on the page that their name belongs to.
    match["username"] = {"$gte" if start and start.back else "$lte": last}
    return Source("_id_", match, rest, named=True, cut=Place(username=last))
