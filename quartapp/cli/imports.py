"""`quartapp user import`: people of another application, with the bcrypt hashes that it made."""

from __future__ import annotations

import codecs
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, BinaryIO

import bson
from bson import DBRef, ObjectId
from bson.codec_options import CodecOptions, DatetimeConversion
from bson.errors import BSONError
from bson.raw_bson import RawBSONDocument

from quartapp import policy, validation
from quartapp.cli.base import Refused, say
from quartapp.db import mongo
from quartapp.db.mongo import Session as Tx
from quartapp.db.mongo import transaction
from quartapp.models import Event, Role, User
from quartapp.models.accounts.account import Taken, Unverified
from quartapp.models.accounts.registration import add_user
from quartapp.models.audit.event import Verb
from quartapp.models.base.actor import NOBODY
from quartapp.models.base.references import DomainError
from quartapp.models.limits import hash_cost
from quartapp.security.passwords import PLAIN, SCHEMES, cost_of
from quartapp.validation import Invalid

Rows = AsyncIterator[tuple[str, Any]]

LONGEST_LINE = 64 * 1024
# What applications call the field that says whether, or when, an address was verified.
VERIFIED = ("email_verified", "email_verified_at", "confirmed_at", "confirmed", "email_confirmed")
RAW: CodecOptions[Any] = CodecOptions(document_class=RawBSONDocument)
# A date may be of any year: a DatetimeMS where Python has no datetime for it.
STRICT: CodecOptions[Any] = CodecOptions(datetime_conversion=DatetimeConversion.DATETIME_AUTO)
LENIENT = STRICT.with_options(unicode_decode_error_handler="replace")


@dataclass(frozen=True)
class Entry:
    """One account to be created, checked."""

    username: str
    email: str
    password_hash: str
    roles: list[Role]
    disabled: bool
    verified: bool
    must_verify: bool


@dataclass
class Import:
    """One run. Each row is imported alone, in a transaction of its own."""

    dry: bool
    scheme: str
    must_verify: bool = False
    roles: dict[str, Role] = field(default_factory=dict)
    seen: set[str] = field(default_factory=set)

    async def take(self, row: Any) -> None:
        """Create the account of a row. A dry run makes the same checks and creates nothing.

        Raises Refused, which says why the account cannot be created.
        """
        entry = self._check(row)
        try:
            await self._require_free(entry)
            if not self.dry:
                await self._create(entry)
        except Taken as taken:
            raise Refused(f"{entry.username}: {taken}") from None

    def _check(self, row: Any) -> Entry:
        """Apply the rules that forms apply. Raises Refused."""
        username, email = _text(row, "username"), _text(row, "email")
        try:
            username = validation.check_username(username)
        except Invalid as invalid:
            raise Refused(f"username {username[:40]!r}: {invalid}") from None
        try:
            email = validation.check_email(email)
        except Invalid as invalid:
            raise Refused(f"{username}: email {email[:60]!r}: {invalid}") from None
        hashed = _text(row, "password")
        if not PLAIN.match(hashed):
            # Not shown: it may be a password in clear.
            raise Refused(f"{username}: the password is no bcrypt hash of a cost from 4 to 14")
        active, verified = _truth(row, "active"), _truth(row, "email_verified")
        roles = self._roles(username, row.get("roles"))
        must_verify = self.must_verify and not verified
        if must_verify and any(role.name != policy.MEMBER for role in roles):
            raise Refused(str(Unverified(username)))
        return Entry(
            username,
            email,
            SCHEMES[self.scheme] + hashed,
            roles,
            disabled=not active,
            verified=verified,
            must_verify=must_verify,
        )

    def _roles(self, username: str, wanted: Any) -> list[Role]:
        if wanted is None:
            wanted = [policy.MEMBER]
        if not isinstance(wanted, list) or not all(isinstance(name, str) for name in wanted):
            raise Refused(f"{username}: roles must be a list of names")
        if unknown := [name for name in wanted if name not in self.roles]:
            raise Refused(f"{username}: there is no role {unknown[0][:40]}")
        return [self.roles[name] for name in dict.fromkeys(wanted)]

    async def _require_free(self, entry: Entry) -> None:
        """Raises Taken, also for what an earlier row of this run has taken."""
        forms = {
            "username": validation.canonical_username(entry.username),
            "email": validation.canonical_email(entry.email),
        }
        if forms["username"] in self.seen or await User.by_username(entry.username):
            raise Taken("username")
        if forms["email"] in self.seen or await User.by_email(entry.email):
            raise Taken("email")
        self.seen |= set(forms.values())

    async def _create(self, entry: Entry) -> None:
        hashed = entry.password_hash.removeprefix(SCHEMES[self.scheme])
        await hash_cost.highest(cost_of(hashed.encode()))

        async def work(tx: Tx) -> None:
            user = await add_user(
                *(entry.username, entry.email, entry.password_hash),
                roles=entry.roles,
                by=NOBODY,
                tx=tx,
                verified=entry.verified,
                must_verify=entry.must_verify,
            )
            if entry.disabled:
                closed = {"$set": {"disabled_at": user.created_at}}
                await User.change({"_id": user.id}, closed, tx=tx)
                await Event.record(Verb.USER_DISABLED, by=NOBODY, subject=user.id, tx=tx)

        await transaction(work)


async def run(rows: Rows, *, dry: bool, scheme: str, must_verify: bool = False) -> None:
    """Import the rows, and print each that cannot be imported with the reason.

    `must_verify` says whether accounts can be used only after their address was verified.
    Raises Refused if a row cannot be imported.
    """
    roles = {role.name: role for role in await Role.everyone()}
    work = Import(dry, scheme, must_verify, roles)
    taken, refused = 0, 0
    async for place, row in rows:
        try:
            if isinstance(row, Refused):
                raise row
            await work.take(row)
            taken += 1
        except DomainError as error:
            refused += 1
            say(f"{place}: {error}")
        except (ValueError, TypeError, OverflowError, BSONError) as error:
            # Whatever else a row may hold, it must not end the import.
            refused += 1
            say(f"{place}: this cannot be stored ({type(error).__name__})")
    say(f"Accounts {'that would be made' if dry else 'made'}: {taken}.")
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
        if number == 1:
            line = line.removeprefix(codecs.BOM_UTF8)
        if len(line) > LONGEST_LINE:
            while line and not line.endswith(b"\n"):
                line = file.readline(LONGEST_LINE)
            yield place, Refused("this line is too long")
        elif line.strip():
            yield place, _json(line)


def _json(line: bytes) -> Any:
    try:
        return json.loads(line.decode(), object_pairs_hook=_without_doubles)
    except UnicodeDecodeError:
        return Refused("this line is not UTF-8")
    except (ValueError, RecursionError):
        return Refused("this is not JSON")
    except Refused as refused:
        return refused


def _without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise Refused("this names a field twice")
    return found


@asynccontextmanager
async def from_mongo(uri: str, collection: str) -> AsyncIterator[Rows]:
    """The rows of a collection as MongoEngine writes them."""
    async with mongo.another(uri) as found:
        roles = found["role"].with_options(codec_options=RAW)
        known: dict[Any, Any] = {}
        async for raw in roles.find({}, {"name": 1}):
            row = bson.decode(raw.raw, LENIENT)
            if isinstance(row["_id"], ObjectId | int | str):
                known[row["_id"]] = row.get("name")
        yield _documents(found[collection].with_options(codec_options=RAW), known)


async def _documents(collection: Any, known: dict[Any, Any]) -> Rows:
    number = 0
    async for raw in collection.find({}, sort=[("_id", 1)]):
        number += 1
        place = f"document {number}"
        try:
            place = f"document {str(bson.decode(raw.raw, LENIENT)['_id'])[:60]}"
            row = bson.decode(raw.raw, STRICT)
            said = [row[name] for name in VERIFIED if name in row]
            if said:
                row["email_verified"] = bool(said[0])
            if isinstance(row.get("roles"), list):
                row["roles"] = [_role_name(role, known) for role in row["roles"]]
        except (BSONError, ValueError, TypeError, OverflowError, RecursionError):
            yield place, Refused("this has text that is not UTF-8, or cannot be read")
        else:
            yield place, row


def _role_name(role: Any, known: dict[Any, Any]) -> Any:
    """Of a ReferenceField, whichever of its two forms, the name of what it refers to."""
    key = role.id if isinstance(role, DBRef) else role
    if isinstance(role, DBRef) and isinstance(key, int | str):
        return known.get(key, str(key))
    return known.get(key, str(key)) if isinstance(key, ObjectId) else role


def _truth(row: dict[str, Any], name: str) -> bool:
    """A field that is true unless it says false. Raises Refused."""
    value = row.get(name)
    if value is not None and not isinstance(value, bool):
        raise Refused(f"{row['username']}: {name} must be true or false")
    return value is not False


def _text(row: Any, name: str) -> str:
    value = row.get(name) if isinstance(row, dict) else None
    if isinstance(value, bytes):
        # Flask-Bcrypt returns bytes, and some store what they got.
        value = value.decode("ascii", "replace")
    if not isinstance(value, str) or not value:
        raise Refused(f"this has no {name}" if isinstance(row, dict) else "this is no JSON object")
    return value
