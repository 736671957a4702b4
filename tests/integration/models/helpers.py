"""Helpers for the tests of the documents."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Mapping
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any, TypeVar

import pytest

from quartapp.authority import session_states
from quartapp.authority.session_rule import EndedSession
from quartapp.db.mongo import Database, transaction
from quartapp.models.accounts.administrators import count_administrators
from quartapp.models.accounts.registration import register as register_account
from quartapp.models.accounts.user import User
from quartapp.models.base.actor import SYSTEM, Actor
from quartapp.models.base.record import Record
from quartapp.models.base.tokens import digest_of
from quartapp.models.roles.role import Role
from quartapp.models.sessions.opening import open_session
from quartapp.models.sessions.reason import Reason
from quartapp.models.sessions.session import Session

T = TypeVar("T")
NOTHING: Mapping[str, Any] = {"_id": {"$exists": False}}
HOUR = timedelta(hours=1)


def race(rounds: int, *, short: int) -> pytest.MarkDecorator:
    """Give a test its argument `rounds`: the numbers of all rounds in the long form of the test.

    The short form gets `short` of these numbers, spread evenly.
    """
    sample = range(0, rounds, -(-rounds // short))
    return pytest.mark.parametrize(
        "rounds",
        [
            pytest.param(sample, id="short"),
            pytest.param(range(rounds), id="long", marks=pytest.mark.long),
        ],
    )


def not_none(value: T | None) -> T:
    assert value is not None
    return value


async def role(name: str) -> Role:
    return not_none(await Role.named(name))


async def register(name: str, *roles: str) -> User:
    """Return a new user with a verified address and these roles."""
    held = [await role(each) for each in roles]
    return await register_account(
        *(name, f"{name}@example.org", f"hash of {name}"), roles=held, by=SYSTEM, verified=True
    )


async def reloaded(user: User) -> User:
    """Return the user as the database has them now."""
    return not_none(await User.get(user.id))


async def stored(document: Record) -> Mapping[str, Any]:
    """Return the document as it is stored now."""
    return not_none(await document.get_motor_collection().find_one({"_id": document.id}))


async def version_of(user: User) -> int:
    """Return the version of what the user may do, as a session of the user would have it."""
    found = await reloaded(user)
    held = [link.ref.id for link in found.roles]
    roles = await Role.find({"_id": {"$in": held}}).to_list()
    return found.authz_version + sum(role.version for role in roles)


def acting(user: User) -> Actor:
    """Return an actor for the user, with an IP address and without a session."""
    return Actor(user.id, user.username, "192.0.2.7")


async def sign_in(user: User, *, at_most: int = 1000) -> tuple[Session, str]:
    opened = await open_session(
        user, device="Firefox", by=acting(user), idle=HOUR / 2, lifetime=HOUR, at_most=at_most
    )
    return opened.session, opened.token


async def end_reason(token: str) -> Reason | None:
    """Return the reason for which the session of the token has ended; None while it is active."""
    state = await session_states.state_by_digest(digest_of(token))
    assert state is not None
    return state.reason if isinstance(state, EndedSession) else None


async def role_names(user: User) -> set[str]:
    held = [link.ref.id for link in (await reloaded(user)).roles]
    return {found.name for found in await Role.find({"_id": {"$in": held}}).to_list()}


async def dump(db: Database) -> dict[str, list[dict[str, Any]]]:
    """Return every document of every collection, without the field `acts`."""
    return {
        name: await db[name].find({}, {"acts": 0}, sort=[("_id", 1)]).to_list(None)
        for name in sorted(
            await db.list_collection_names(filter={"name": {"$not": {"$regex": "^system"}}})
        )
    }


async def lasting_administrators() -> int:
    """Return how many administrators never stop being one."""
    return (await transaction(count_administrators))[1]


@asynccontextmanager
async def only_accepting(
    db: Database, collection: str, only: Mapping[str, Any]
) -> AsyncIterator[None]:
    """Have the server refuse documents of the collection that do not match `only`."""
    await db.command("collMod", collection, validator=only)
    try:
        yield
    finally:
        await db.command("collMod", collection, validator={})


async def concurrently(*works: Awaitable[T], unless: type[Exception] | None = None) -> list[T]:
    """Run these concurrently and return the results of those that succeed.

    Errors of the type `unless` are ignored, others are raised.
    """
    results = await asyncio.gather(*works, return_exceptions=True)
    for result in results:
        if isinstance(result, BaseException) and not (unless and isinstance(result, unless)):
            raise result
    return [result for result in results if not isinstance(result, BaseException)]
