"""`quartapp user import`: people of another application, with the bcrypt hashes that it made."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, BinaryIO

import click
from bson import DBRef, ObjectId

from quartapp import database, policy
from quartapp.cli.base import Refused
from quartapp.models import Role, User, cost
from quartapp.models.actor import NOBODY
from quartapp.models.user import Taken, Unverified
from quartapp.names import EMAIL, EMAIL_RULE, NAME, NAME_RULE
from quartapp.passwords import PLAIN, cost_of

Rows = AsyncIterator[tuple[str, Any]]

LONGEST_LINE = 64 * 1024
# What applications call the field that says whether, or when, an address was verified.
VERIFIED = ("email_verified", "email_verified_at", "confirmed_at", "confirmed", "email_confirmed")


@dataclass
class Import:
    """One run. A row stands or falls alone, in a transaction of its own."""

    dry: bool
    must_verify: bool = False
    roles: dict[str, Role] = field(default_factory=dict)
    seen: set[str] = field(default_factory=set)

    async def take(self, row: Any) -> None:
        """Makes the account, or would. Raises Refused, which says why not."""
        username, email = _text(row, "username"), _text(row, "email")
        if not NAME.match(username):
            raise Refused(f"username {username[:40]!r}: {NAME_RULE}")
        if not EMAIL.match(email):
            raise Refused(f"{username}: e-mail {email[:60]!r}: {EMAIL_RULE}")
        hashed = _text(row, "password")
        if not PLAIN.match(hashed):
            # Not shown: it may be a password in clear.
            raise Refused(f"{username}: the password is no bcrypt hash of a cost from 4 to 14")
        roles = self._roles(username, row.get("roles"))
        verified = row.get("email_verified", True)
        if not isinstance(verified, bool):
            raise Refused(f"{username}: email_verified must be true or false")
        must_verify = self.must_verify and not verified
        if must_verify and any(role.name != policy.MEMBER for role in roles):
            raise Refused(str(Unverified(username)))
        try:
            if self.dry:
                await self._would_be_taken(username, email)
            else:
                await cost.highest(cost_of(hashed.encode()))
                await User.register(
                    *(username, email, hashed),
                    roles=roles,
                    by=NOBODY,
                    verified=verified,
                    must_verify=must_verify,
                )
        except Taken as taken:
            raise Refused(f"{username}: {taken}") from None

    def _roles(self, username: str, names: Any) -> list[Role]:
        if names is None:
            names = [policy.MEMBER]
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise Refused(f"{username}: roles must be a list of names")
        if unknown := [name for name in names if name not in self.roles]:
            raise Refused(f"{username}: there is no role {unknown[0][:40]}")
        return [self.roles[name] for name in dict.fromkeys(names)]

    async def _would_be_taken(self, username: str, email: str) -> None:
        """What the index says to an import that is none."""
        if username.casefold() in self.seen or await User.by_username(username):
            raise Taken("username")
        if email.casefold() in self.seen or await User.by_email(email):
            raise Taken("email")
        self.seen |= {username.casefold(), email.casefold()}


async def run(rows: Rows, *, dry: bool, must_verify: bool = False) -> None:
    """Takes what it can, and names each row that it cannot, and why. Raises Refused if any.

    `must_verify` says whether accounts can be used only after their address was verified.
    """
    work = Import(dry, must_verify, {role.name: role for role in await Role.everyone()})
    taken, refused = 0, 0
    async for place, row in rows:
        try:
            if isinstance(row, Refused):
                raise row
            await work.take(row)
            taken += 1
        except Refused as error:
            refused += 1
            click.echo(f"{place}: {error}")
    click.echo(f"Accounts {'that would be made' if dry else 'made'}: {taken}.")
    if refused:
        raise Refused(f"{refused} of {taken + refused} could not be taken; each is named above")


@asynccontextmanager
async def from_file(file: BinaryIO) -> AsyncIterator[Rows]:
    """The rows of a file with a JSON object on each line."""
    yield _lines(file)


async def _lines(file: BinaryIO) -> Rows:
    number = 0
    while line := file.readline(LONGEST_LINE + 1):
        number += 1
        place = f"line {number}"
        if len(line) > LONGEST_LINE:
            while line and not line.endswith(b"\n"):
                line = file.readline(LONGEST_LINE)
            yield place, Refused("this line is too long")
        elif line.strip():
            try:
                yield place, json.loads(line)
            except (ValueError, RecursionError):
                yield place, Refused("this is not JSON")


@asynccontextmanager
async def from_mongo(uri: str, collection: str) -> AsyncIterator[Rows]:
    """The rows of a collection as MongoEngine writes them."""
    async with database.another(uri) as found:
        names = {row["_id"]: row.get("name") async for row in found["role"].find({}, {"name": 1})}
        yield _documents(found[collection], names)


async def _documents(collection: Any, names: dict[Any, Any]) -> Rows:
    async for row in collection.find({}, sort=[("_id", 1)]):
        if isinstance(row.get("roles"), list):
            row["roles"] = [_role_name(role, names) for role in row["roles"]]
        said = [row[name] for name in VERIFIED if name in row]
        if said:
            row["email_verified"] = bool(said[0])
        yield f"document {row['_id']}", row


def _role_name(role: Any, names: dict[Any, Any]) -> Any:
    """Of a ReferenceField, whichever of its two forms, the name of what it refers to."""
    key = role.id if isinstance(role, DBRef) else role
    return names.get(key, str(key)) if isinstance(key, ObjectId) else role


def _text(row: Any, name: str) -> str:
    value = row.get(name) if isinstance(row, dict) else None
    if isinstance(value, bytes):
        # Flask-Bcrypt returns bytes, and some store what they got.
        value = value.decode("ascii", "replace")
    if not isinstance(value, str) or not value:
        raise Refused(f"this has no {name}" if isinstance(row, dict) else "this is no JSON object")
    return value
