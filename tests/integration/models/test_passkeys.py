"""Passkeys: concurrent operations succeed once, and each operation is atomic."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from quartapp import clock
from quartapp.activities import FACTOR_ADDED, FACTOR_REMOVED, PASSKEY_REFUSED
from quartapp.db.mongo import Database
from quartapp.models.accounts.user import User
from quartapp.models.audit.event import Event
from quartapp.models.factors.enrolment import Enrolled
from quartapp.models.factors.passkey import Passkey, PasskeyTaken, TooManyPasskeys
from quartapp.security import webauthn
from quartapp.security.webauthn import (
    ChallengeSigner,
    PasskeyAssertion,
    RelyingParty,
    VerificationFailed,
)
from tests.integration.models.helpers import (
    NOTHING,
    acting,
    concurrently,
    dump,
    not_none,
    only_accepting,
    register,
    reloaded,
)
from tests.security_key import Authenticator, create_passkey

SITE = RelyingParty("localhost", ("http://localhost",))
ASKER = ChallengeSigner("key" * 16, "show visitor x")


def shown(device: Authenticator) -> PasskeyAssertion:
    return webauthn.parse_assertion(
        SITE, ASKER, device.authenticate(webauthn.authentication_options(SITE, ASKER))
    )


async def the_passkey(device: Authenticator) -> Passkey:
    return not_none(await Passkey.known_as(device.id))


async def listed(user: User) -> list[Any]:
    """Return the ids of the user's passkeys. The user's document must list the same ones."""
    found = [passkey.id for passkey in await Passkey.of_user(user.id)]
    assert sorted(link.ref.id for link in (await reloaded(user)).passkeys) == sorted(found)
    return found


async def test_concurrently_added_passkeys_stay_within_the_limit(
    db: Database,
) -> None:
    ada = await register("ada", "member")
    for _ in range(2):
        await create_passkey(ada)
    added = await concurrently(
        *(
            Passkey.add(ada, Authenticator().made(ada), name=f"{number}", by=acting(ada), at_most=4)
            for number in range(8)
        ),
        unless=TooManyPasskeys,
    )
    assert len(added) == 2
    assert len(await listed(ada)) == 4
    assert await Event.find({"verb": FACTOR_ADDED.audit}).count() == 4


async def test_concurrent_first_passkeys_create_one_set_of_recovery_codes(db: Database) -> None:
    ada = await register("ada", "member")
    added: list[Enrolled] = await concurrently(
        *(Passkey.add(ada, Authenticator().made(ada), name="x", by=acting(ada)) for _ in range(6))
    )
    assert sorted(len(each.codes) for each in added) == [0] * 5 + [10]
    assert len((await reloaded(ada)).recovery_codes) == 10
    assert len(await listed(ada)) == 6


async def test_one_authenticator_and_one_response_are_added_once(db: Database) -> None:
    ada, bob = await register("ada", "member"), await register("bob", "member")
    device = Authenticator()
    answer = device.made(ada)
    results = await asyncio.gather(
        *(Passkey.add(ada, answer, name="x", by=acting(ada)) for _ in range(6)),
        *(Passkey.add(bob, device.made(bob), name="x", by=acting(bob)) for _ in range(6)),
        return_exceptions=True,
    )
    failed = [each for each in results if isinstance(each, BaseException)]
    assert len(failed) == 11
    assert all(isinstance(each, VerificationFailed | PasskeyTaken) for each in failed), failed
    assert await db["passkeys"].count_documents({}) == 1
    assert len(await listed(ada)) + len(await listed(bob)) == 1


async def test_concurrent_responses_with_one_counter_are_accepted_once(db: Database) -> None:
    ada = await register("ada", "member")
    device = await create_passkey(ada)
    passkey = await the_passkey(device)
    answers = []
    for _ in range(8):
        device.count = 6
        answers.append(shown(device))
    used = await concurrently(
        *(passkey.use(ada, each, by=acting(ada)) for each in answers), unless=VerificationFailed
    )
    assert len(used) == 1
    assert (await the_passkey(device)).sign_count == 7
    # The others look like clones, and each is recorded.
    assert await Event.find({"verb": PASSKEY_REFUSED.audit}).count() == 7


async def test_a_response_sent_many_times_is_accepted_once_and_is_no_clone(db: Database) -> None:
    ada = await register("ada", "member")
    device = await create_passkey(ada)
    passkey = await the_passkey(device)
    answer = shown(device)
    used = await concurrently(
        *(passkey.use(ada, answer, by=acting(ada)) for _ in range(8)), unless=VerificationFailed
    )
    assert len(used) == 1
    assert await Event.find({"verb": PASSKEY_REFUSED.audit}).count() == 0


async def test_simultaneous_uses_without_a_counter_are_all_counted(
    db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    ada = await register("ada", "member")
    device = await create_passkey(ada)
    device.counts = False
    passkey, now = await the_passkey(device), clock.now()
    monkeypatch.setattr(clock, "now", lambda: now)
    for _ in range(3):
        await passkey.use(ada, shown(device), by=acting(ada))
    assert (await the_passkey(device)).uses == 3
    assert await Event.find({"verb": PASSKEY_REFUSED.audit}).count() == 0


async def test_a_passkey_removed_during_its_use_is_removed(db: Database) -> None:
    ada = await register("ada", "member")
    for _ in range(10):
        device = await create_passkey(ada)
        passkey = await the_passkey(device)
        await concurrently(
            passkey.use(ada, shown(device), by=acting(ada)),
            *(passkey.remove(ada, by=acting(ada)) for _ in range(3)),
            unless=VerificationFailed,
        )
        assert await listed(ada) == []
        with pytest.raises(VerificationFailed):
            await passkey.use(ada, shown(device), by=acting(ada))
    assert await Event.find({"verb": FACTOR_REMOVED.audit}).count() == 10
    assert await Event.find({"verb": PASSKEY_REFUSED.audit}).count() == 0
    assert (await reloaded(ada)).recovery_codes == []


@pytest.mark.parametrize("collection", ["events", "notices", "outbox", "passkeys", "answered"])
async def test_passkey_operations_are_atomic(db: Database, collection: str) -> None:
    ada = await register("ada", "member")
    device = await create_passkey(ada)
    passkey = await the_passkey(device)
    device.count = 9
    await passkey.use(ada, shown(device), by=acting(ada))
    device.count = 0
    before = await dump(db)
    works = [
        lambda: Passkey.add(ada, Authenticator().made(ada), name="x", by=acting(ada)),
        lambda: passkey.remove(ada, by=acting(ada)),
        lambda: passkey.use(ada, shown(device), by=acting(ada)),
    ]
    for work in works if collection in ("events", "notices", "outbox") else works[:1]:
        async with only_accepting(db, collection, NOTHING):
            with pytest.raises(Exception, match="Document failed validation"):
                await work()
        assert await dump(db) == before
