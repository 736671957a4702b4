"""Requests for roles: who may ask, who decides, and what happens at once."""

from __future__ import annotations

from datetime import timedelta

import pytest

from quartapp import clock
from quartapp.db.mongo import Database
from quartapp.jobs.role_deletions import complete_all
from quartapp.models.accounts.user import User
from quartapp.models.audit.event import Event
from quartapp.models.authorization.privileges import MissingPermission
from quartapp.models.base.actor import SYSTEM
from quartapp.models.base.references import DomainError
from quartapp.models.notifications.notice import Notice
from quartapp.models.roles import request as requests
from quartapp.models.roles.refusals import RoleGone
from quartapp.models.roles.request import (
    DecidedAlready,
    NotRequestable,
    RequestedAlready,
    RequestState,
    RoleRequest,
    TooManyRequests,
)
from quartapp.models.roles.role import Role
from quartapp.policy import ADMIN, Permission
from tests.integration.models.helpers import (
    acting,
    concurrently,
    not_none,
    race,
    register,
    reloaded,
    role,
    role_names,
)

HOUR = timedelta(hours=1)


async def add_role(name: str = "writer", *powers: Permission) -> Role:
    return await Role.add(name, "", powers, by=SYSTEM)


async def ask(user: User, role: Role, reason: str = "For the print run.") -> RoleRequest:
    return await RoleRequest.ask(user, role, reason, by=acting(user))


async def current(request: RoleRequest) -> RoleRequest:
    return not_none(await RoleRequest.with_links(request.id))


async def told(user: User) -> list[str]:
    return [notice.text for notice in await Notice.after(user.id, 1)]


async def recorded(user: User) -> list[str]:
    events = await Event.find({"subject.$id": user.id}, sort="_id").to_list()
    return [event.verb for event in events if event.verb.startswith("role.")]


async def test_a_request_is_granted_for_a_limited_time(db: Database) -> None:
    root, ada, writer = await register("root", ADMIN), await register("ada"), await add_role()
    request = await ask(ada, writer)
    assert await told(root) == ["ada asks for the role writer."]
    assert [each.id for each in await RoleRequest.open_page()] == [request.id]
    assert await RoleRequest.count_open() == 1
    until = clock.now() + HOUR
    event = await request.grant(by=acting(root), until=until)
    assert event is not None
    assert await role_names(ada) == {"writer"}
    assert (await reloaded(ada)).ends == {writer.id: until}
    found = await current(request)
    assert (found.state, found.until, found.decider) == (RequestState.GRANTED, until, "root")
    assert await RoleRequest.open_page() == []
    assert [each.id for each in await RoleRequest.decided_page()] == [request.id]
    assert (await told(ada))[0].startswith("root gave you the role writer until ")
    assert await recorded(ada) == ["role.requested", "role.granted_until"]


@pytest.mark.parametrize("answer", ["", "Ask again in May."])
async def test_a_declined_request_tells_the_user_why(db: Database, answer: str) -> None:
    root, ada = await register("root", ADMIN), await register("ada")
    request = await ask(ada, await add_role())
    await request.decline(by=acting(root), answer=answer)
    because = f" The reason: “{answer}”." if answer else ""
    assert await told(ada) == [f"root declined your request for the role writer.{because}"]
    found = await current(request)
    assert (found.state, found.answer, found.decider) == (RequestState.DECLINED, answer, "root")
    assert await role_names(ada) == set()
    assert await recorded(ada) == ["role.requested", "role.request_declined"]


async def test_a_user_withdraws_a_request_and_asks_again(db: Database) -> None:
    ada, writer = await register("ada"), await add_role()
    request = await ask(ada, writer)
    await request.withdraw(by=acting(ada))
    assert (await current(request)).state is RequestState.WITHDRAWN
    with pytest.raises(DecidedAlready, match="was withdrawn"):
        await request.grant(by=SYSTEM)
    assert await role_names(ada) == set()
    await ask(ada, writer)
    assert await recorded(ada) == ["role.requested", "role.request_withdrawn", "role.requested"]


@race(6, short=2)
async def test_a_user_has_one_open_request_for_a_role(db: Database, rounds: range) -> None:
    for number in rounds:
        ada, writer = await register(f"ada{number}"), await add_role(f"writer{number}")
        asked = [ask(ada, writer) for _ in range(4)]
        assert len(await concurrently(*asked, unless=RequestedAlready)) == 1


async def test_requests_of_a_user_in_a_day_are_limited(
    db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(requests, "PER_DAY", 2)
    ada = await register("ada")
    roles = [await add_role(f"role{number}") for number in range(4)]
    done = await concurrently(*(ask(ada, each) for each in roles), unless=TooManyRequests)
    assert len(done) == 2
    await done[0].withdraw(by=acting(ada))
    asked = {each.role.ref.id for each in done}  # type: ignore[union-attr]
    another = next(each for each in roles if each.id not in asked)
    with pytest.raises(TooManyRequests):
        await ask(ada, another)
    later = clock.now() + timedelta(hours=25)
    monkeypatch.setattr(clock, "now", lambda: later)
    assert await ask(ada, another)


async def test_only_requestable_roles_that_the_user_lacks_can_be_requested(db: Database) -> None:
    ada, writer = await register("ada"), await add_role()
    moderator = await role("moderator")
    with pytest.raises(NotRequestable, match="cannot be requested"):
        await ask(ada, moderator)
    for wish, possible in ((True, True), (False, False), (None, False)):
        await moderator.edit(
            name="moderator",
            description=moderator.description,
            permissions=moderator.known,
            requestable=wish,
            by=SYSTEM,
        )
        assert (await role("moderator")).can_be_requested is possible
    await ada.grant(writer, by=SYSTEM)
    with pytest.raises(NotRequestable, match="already"):
        await ask(ada, writer)
    await Role.erase(writer.id)
    with pytest.raises(RoleGone):
        await ask(ada, writer)


async def test_deciding_needs_the_permissions_of_a_grant(db: Database) -> None:
    helpdesk = await add_role("helpdesk", Permission.USERS_MANAGE)
    helper, root = await register("helper", "helpdesk"), await register("root", ADMIN)
    ada = await register("ada")
    request = await ask(ada, await add_role("writer", Permission.POSTS_WRITE))
    for decision in (request.grant(by=acting(helper)), request.decline(by=acting(helper))):
        with pytest.raises(MissingPermission):
            await decision
    # Nor about a user who holds more, whatever the role.
    boss = await register("boss", ADMIN)
    other = await ask(boss, await add_role("empty"))
    for decision in (other.grant(by=acting(helper)), other.decline(by=acting(helper))):
        with pytest.raises(MissingPermission):
            await decision
    assert {(await current(each)).state for each in (request, other)} == {RequestState.OPEN}
    assert await request.grant(by=acting(root))
    assert helpdesk.manages


async def test_a_direct_grant_closes_the_request(db: Database) -> None:
    root, ada, writer = await register("root", ADMIN), await register("ada"), await add_role()
    request = await ask(ada, writer)
    await ada.grant(writer, by=acting(root))
    assert (await current(request)).state is RequestState.GRANTED
    with pytest.raises(DecidedAlready, match="already granted by root"):
        await request.decline(by=SYSTEM)


async def test_deleting_a_role_closes_its_requests(db: Database) -> None:
    ada, writer = await register("ada"), await add_role()
    request = await ask(ada, writer)
    await writer.remove(by=SYSTEM)
    with pytest.raises(RoleGone):
        await request.grant(by=SYSTEM)
    await complete_all()
    found = await current(request)
    assert (found.state, found.role_name) == (RequestState.VOID, "writer")
    with pytest.raises(DecidedAlready, match="was deleted"):
        await request.decline(by=SYSTEM)


@race(10, short=3)
async def test_concurrent_decisions_have_one_outcome(db: Database, rounds: range) -> None:
    root, grace = await register("root", ADMIN), await register("grace", ADMIN)
    for number in rounds:
        ada, writer = await register(f"ada{number}"), await add_role(f"writer{number}")
        request = await ask(ada, writer)
        await concurrently(
            request.grant(by=acting(root), until=clock.now() + HOUR),
            request.decline(by=acting(grace)),
            request.withdraw(by=acting(ada)),
            unless=DomainError,
        )
        state, names = (await current(request)).state, await role_names(ada)
        assert state is not RequestState.OPEN
        assert names == ({writer.name} if state is RequestState.GRANTED else set())
        decided = [verb for verb in await recorded(ada) if verb != "role.requested"]
        assert len(decided) == 1


@race(10, short=3)
async def test_a_request_races_with_a_direct_grant(db: Database, rounds: range) -> None:
    root = await register("root", ADMIN)
    for number in rounds:
        ada, writer = await register(f"ada{number}"), await add_role(f"writer{number}")
        await concurrently(
            ask(ada, writer), ada.grant(writer, by=acting(root)), unless=NotRequestable
        )
        assert await role_names(ada) == {writer.name}
        assert await RoleRequest.count_open() == 0


@race(6, short=2)
async def test_a_grant_races_with_the_deletion_of_the_role(db: Database, rounds: range) -> None:
    root = await register("root", ADMIN)
    for number in rounds:
        ada, writer = await register(f"ada{number}"), await add_role(f"writer{number}")
        request = await ask(ada, writer)
        await concurrently(
            request.grant(by=acting(root)), writer.remove(by=acting(root)), unless=DomainError
        )
        await complete_all()
        assert await role_names(ada) == set()
        assert (await current(request)).state in (RequestState.VOID, RequestState.GRANTED)


async def test_at_most_some_administrators_are_notified(
    db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(requests, "NOTIFIED", 2)
    people = [await register(f"admin{number}", ADMIN) for number in range(4)]
    await ask(await register("ada"), await add_role())
    assert sorted([len(await told(user)) for user in people]) == [0, 0, 1, 1]


async def test_pages_of_requests_are_read_by_keyset(db: Database) -> None:
    people = [await register(f"user{number}") for number in range(5)]
    writer = await add_role()
    made = [await ask(user, writer) for user in people]
    for request in made[:3]:
        await request.decline(by=SYSTEM)
    first = await RoleRequest.decided_page(limit=2)
    assert [each.id for each in first] == [made[2].id, made[1].id]
    last = await RoleRequest.decided_page(before=first[-1].id, limit=2)
    assert [each.id for each in last] == [made[0].id]
    assert [each.asker and each.asker.username for each in last] == ["user0"]
    assert [each.id for each in await RoleRequest.of_user(people[4].id)] == [made[4].id]
