"""`quartapp user import`: import accounts of another application with their bcrypt hashes."""

from __future__ import annotations

import codecs
import json
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, BinaryIO

import bson
from bson import DBRef, ObjectId
from bson.codec_options import CodecOptions, DatetimeConversion
from bson.datetime_ms import DatetimeMS
from bson.errors import BSONError
from bson.raw_bson import RawBSONDocument

from quartapp import policy, validation
from quartapp.activities import ACCOUNT_DISABLED
from quartapp.cli.base import CommandError, echo
from quartapp.db import mongo
from quartapp.db.mongo import Tx, transaction
from quartapp.models import Event, Role, User
from quartapp.models.accounts.account import Taken, Unverified
from quartapp.models.accounts.registration import add_user, taken
from quartapp.models.base.actor import SYSTEM
from quartapp.models.base.references import DomainError
from quartapp.models.limits import hash_cost
from quartapp.models.statistics import hourly_count
from quartapp.models.statistics.hourly_count import Counted
from quartapp.security.passwords import BCRYPT_HASH, SCHEMES, cost_of
from quartapp.validation import Invalid

# Each item is the place of a row, for messages, and the row. The row is a CommandError if it
# cannot be read.
Rows = AsyncIterator[tuple[str, Any]]

LONGEST_LINE = 64 * 1024
# Common names of the field that says whether, or when, an address was verified.
VERIFIED = ("email_verified", "email_verified_at", "confirmed_at", "confirmed", "email_confirmed")
RAW: CodecOptions[Any] = CodecOptions(document_class=RawBSONDocument)
# Decode a date outside the range of datetime as DatetimeMS.
STRICT: CodecOptions[Any] = CodecOptions(datetime_conversion=DatetimeConversion.DATETIME_AUTO)
LENIENT = STRICT.with_options(unicode_decode_error_handler="replace")


@dataclass(frozen=True)
class ImportedAccount:
    """A row that has passed all checks: the account to create."""

    username: str
    email: str
    password_hash: str
    roles: list[Role]
    disabled: bool
    verified: bool
    must_verify: bool


@dataclass
class UserImport:
    """One run of the import. Each row is imported in its own transaction.

    `seen` has the canonical usernames and addresses of the rows so far.
    """

    dry: bool
    scheme: str
    must_verify: bool = False
    roles: dict[str, Role] = field(default_factory=dict)
    seen: set[str] = field(default_factory=set)

    async def import_row(self, row: Any) -> None:
        """Create the account of a row. A dry run makes the same checks and creates nothing.

        Adds the username and address to `seen` if both are free. `row` is a parsed row, not a
        CommandError. Raises CommandError with all reasons if checks fail or the account exists;
        also ValueError, TypeError, OverflowError and BSONError for content that cannot be stored,
        and the driver's errors.
        """
        account = await self._check(row)
        try:
            if not self.dry:
                await self._create(account)
        except Taken as error:
            raise CommandError(f"{account.username}: {error}") from None

    async def _check(self, row: Any) -> ImportedAccount:
        """Validate a row by the rules that forms apply, and return the account to create, whose
        username and address are then in `seen`. Writes nothing.

        The hash gets the prefix of the scheme. `active` and `email_verified` count as true if they
        are missing; null stands for an address that is not verified, for no `roles` (only member),
        and for no other field. Raises CommandError, with every reason that applies, if another
        field is missing or one has the wrong type, the username or address is invalid or taken, a
        role does not exist, the password is not a bcrypt hash with a cost from 4 to 14, or an
        account that has to verify its address would get another role than member.
        """
        if not isinstance(row, dict):
            raise CommandError("this is not a JSON object")
        username = email = hashed = ""
        active, verified, roles = True, True, []
        problems: list[str] = []
        with _noted(problems):
            username = _valid(row, "username", validation.check_username, 40)
        with _noted(problems):
            email = _valid(row, "email", validation.check_email, 60)
        problems += map(str, await self._taken(username, email))
        with _noted(problems):
            hashed = _hash(row)
        with _noted(problems):
            active = _boolean(row, "active", None)
        with _noted(problems):
            verified = _boolean(row, "email_verified", False)
        with _noted(problems):
            roles = self._roles(row.get("roles"))
        must_verify = self.must_verify and not verified
        if must_verify and any(role.name != policy.MEMBER for role in roles):
            problems.append(str(Unverified(username)))
        if problems:
            reasons = "; ".join([*(each.rstrip(".") for each in problems[:-1]), problems[-1]])
            raise CommandError(f"{username}: {reasons}" if username else reasons)
        self.seen |= _canonical(username, email)
        return ImportedAccount(
            username,
            email,
            SCHEMES[self.scheme] + hashed,
            roles,
            disabled=not active,
            verified=verified,
            must_verify=must_verify,
        )

    def _roles(self, wanted: Any) -> list[Role]:
        """Return the roles of these names, each once; only member for None, none for an empty list.

        Raises CommandError if `wanted` is not a list of texts or a role does not exist. Case
        matters.
        """
        if wanted is None:
            wanted = [policy.MEMBER]
        if not isinstance(wanted, list) or not all(isinstance(name, str) for name in wanted):
            raise CommandError("roles must be a list of names")
        if unknown := [name for name in wanted if name not in self.roles]:
            raise CommandError(f"there is no role {unknown[0][:40]}")
        return [self.roles[name] for name in dict.fromkeys(wanted)]

    async def _taken(self, username: str, email: str) -> list[Taken]:
        """Return the error of each of the two that an account or an earlier row has. An empty text
        is not looked up.

        An account that only claims the address, and has not verified it, does not take the address,
        but its username is taken.
        """
        found = await taken(username or None, email or None)
        fields = {error.field for error in found}
        if "username" not in fields and _canonical(username, "") & self.seen:
            found.append(Taken("username"))
        if "email" not in fields and _canonical("", email) & self.seen:
            found.append(Taken("email"))
        return found

    async def _create(self, entry: ImportedAccount) -> None:
        """Create the account by the system, in one transaction, which also records the event
        ACCOUNT_CREATED and stores the welcome notification (`add_user`); if the row is inactive,
        disable it and record the event ACCOUNT_DISABLED too.

        Deletes another account that only claims the address and has not verified it. First, outside
        of the transaction, stores the cost of its hash if that is the highest so far; and
        afterwards counts the account for the dashboard. Queues no email. Raises Taken if the
        username or address was taken meanwhile.
        """
        hashed = entry.password_hash.removeprefix(SCHEMES[self.scheme])
        await hash_cost.highest(cost_of(hashed.encode()))

        async def work(tx: Tx) -> None:
            user = await add_user(
                *(entry.username, entry.email, entry.password_hash),
                roles=entry.roles,
                by=SYSTEM,
                tx=tx,
                verified=entry.verified,
                must_verify=entry.must_verify,
            )
            if entry.disabled:
                closed = {"$set": {"disabled_at": user.created_at}}
                await User.change({"_id": user.id}, closed, tx=tx)
                await Event.record(ACCOUNT_DISABLED, by=SYSTEM, subject=user.id, tx=tx)

        await transaction(work)
        hourly_count.add(Counted.ACCOUNTS)


async def import_rows(rows: Rows, *, dry: bool, scheme: str, must_verify: bool = False) -> None:
    """Create an account for each row, in a transaction of its own; with `dry`, only check the rows.

    Goes on after a row that cannot be imported, and prints its place with the reason on standard
    output; in the end prints the number of accounts. Each account is recorded in the audit log by
    the system. An existing account that only claims the address of a row, and has not verified it,
    is deleted. `scheme` is a key of SCHEMES. With `must_verify`, an account whose address is not
    verified can be used only after that. Raises CommandError at the end if a row could not be
    imported; errors of the database stop the import.
    """
    roles = {role.name: role for role in await Role.everyone()}
    work = UserImport(dry, scheme, must_verify, roles)
    created, failed = 0, 0
    async for place, row in rows:
        try:
            if isinstance(row, CommandError):
                raise row
            await work.import_row(row)
            created += 1
        except (CommandError, DomainError) as error:
            failed += 1
            echo(f"{place}: {error}")
        except (ValueError, TypeError, OverflowError, BSONError) as error:
            # A row with unexpected content must not stop the import.
            failed += 1
            echo(f"{place}: the row cannot be stored ({type(error).__name__})")
    echo(f"Accounts {'that would be created' if dry else 'created'}: {created}.")
    if failed:
        total = created + failed
        raise CommandError(f"{failed} of {total} could not be imported; each is listed above")


@asynccontextmanager
async def rows_of_file(file: BinaryIO) -> AsyncIterator[Rows]:
    """Yield the rows of a file that has a JSON object on each line."""
    yield _lines(file)


async def _lines(file: BinaryIO) -> Rows:
    """Yield each line that is not blank: its place, and the parsed JSON or the CommandError that
    says why it is none. The place is "line" and its number, also counting blank lines.

    A line longer than LONGEST_LINE bytes is yielded as a CommandError, without being kept in
    memory. A byte order mark at the beginning is ignored, except that it counts.
    """
    number = 0
    while line := file.readline(LONGEST_LINE + 1):
        number += 1
        place = f"line {number}"
        if len(line) > LONGEST_LINE:
            while line and not line.endswith(b"\n"):
                line = file.readline(LONGEST_LINE)
            yield place, CommandError("the line is longer than 64 KiB")
            continue
        if number == 1:
            line = line.removeprefix(codecs.BOM_UTF8)
        if line.strip():
            yield place, _json(line)


def _json(line: bytes) -> Any:
    """Return the parsed line; a CommandError, which is returned and not raised, if it is invalid or
    a field occurs twice."""
    try:
        return json.loads(line.decode(), object_pairs_hook=_unique_fields)
    except UnicodeDecodeError:
        return CommandError("the line is not UTF-8")
    except (ValueError, RecursionError):
        return CommandError("the line is not valid JSON")
    except CommandError as error:
        return error


def _unique_fields(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return the pairs as a dict. Raises CommandError if a field occurs twice."""
    found = dict(pairs)
    if len(found) < len(pairs):
        raise CommandError("a field occurs twice")
    return found


@asynccontextmanager
async def rows_of_collection(uri: str, collection: str) -> AsyncIterator[Rows]:
    """Yield the documents of a collection that MongoEngine wrote, with the names of their roles,
    while the connection is open for the block.

    Reads all names of the collection `role` first, and replaces bytes in them that are not UTF-8.
    The documents are read one by one, in the block. Raises StartError if the database cannot be
    used.
    """
    async with mongo.import_source(uri) as found:
        roles = found["role"].with_options(codec_options=RAW)
        known: dict[Any, Any] = {}
        async for raw in roles.find({}, {"name": 1}):
            row = bson.decode(raw.raw, LENIENT)
            if isinstance(row["_id"], ObjectId | int | str):
                known[row["_id"]] = row.get("name")
        yield _documents(found[collection].with_options(codec_options=RAW), known)


async def _documents(collection: Any, known: dict[Any, Any]) -> Rows:
    """Yield the place and the content of each document, in the order of the ids, with role names in
    place of references (`_role_name`). The place is "document" and the id, or its number if it has
    none that can be read. `known` maps ids to role names.

    `email_verified` is set from the first of VERIFIED that the document has (`_verified`). A
    document in which that has a wrong type, or which cannot be decoded, is yielded as a
    CommandError.
    """
    number = 0
    async for raw in collection.find({}, sort=[("_id", 1)]):
        number += 1
        place = f"document {number}"
        try:
            place = f"document {str(bson.decode(raw.raw, LENIENT)['_id'])[:60]}"
            row = bson.decode(raw.raw, STRICT)
            if name := next((name for name in VERIFIED if name in row), None):
                row["email_verified"] = _verified(row, name)
            if isinstance(row.get("roles"), list):
                row["roles"] = [_role_name(role, known) for role in row["roles"]]
        except CommandError as error:
            yield place, error
        except (BSONError, ValueError, TypeError, OverflowError, RecursionError):
            yield (
                place,
                CommandError("the document contains text that is not UTF-8, or cannot be decoded"),
            )
        else:
            yield place, row


def _role_name(role: Any, known: dict[Any, Any]) -> Any:
    """Return the name of the role to which a ReferenceField refers, as DBRef or as plain id.

    An unknown id is returned as text, and anything that is no reference as it is.
    """
    key = role.id if isinstance(role, DBRef) else role
    if isinstance(role, DBRef) and isinstance(key, int | str):
        return known.get(key, str(key))
    return known.get(key, str(key)) if isinstance(key, ObjectId) else role


def _verified(document: dict[str, Any], name: str) -> bool:
    """Return whether the field says that the address was verified: true or any date does, false or
    null does not. Raises CommandError for another value."""
    value = document[name]
    if value is not None and not isinstance(value, bool | datetime | DatetimeMS):
        raise CommandError(f"{name} must be true, false, null or a date")
    return value is not None and value is not False


@contextmanager
def _noted(problems: list[str]) -> Iterator[None]:
    """Add the text of a CommandError that is raised in the block to the problems, instead of
    raising it."""
    try:
        yield
    except CommandError as error:
        problems.append(str(error))


def _canonical(username: str, email: str) -> set[str]:
    """Return the canonical forms of the two, without empty ones."""
    return {validation.canonical_username(username), validation.canonical_email(email)} - {""}


def _valid(row: dict[str, Any], name: str, check: Callable[[str], str], shown: int) -> str:
    """Return what the check returns for a text field. Raises CommandError if that is missing, or if
    the check refuses it: then with the first `shown` characters of the text."""
    text = _text(row, name)
    try:
        return check(text)
    except Invalid as invalid:
        raise CommandError(f"{name} {text[:shown]!r}: {invalid}") from None


def _hash(row: dict[str, Any]) -> str:
    """Return the password of the row. Raises CommandError, which does not contain it, unless it is
    a bcrypt hash with a cost from 4 to 14."""
    hashed = _text(row, "password")
    if not BCRYPT_HASH.match(hashed):
        # The value is not shown, because it may be a password in plain text.
        raise CommandError("the password is not a bcrypt hash with a cost from 4 to 14")
    return hashed


def _boolean(row: dict[str, Any], name: str, null: bool | None) -> bool:
    """Return a field that counts as true if it is missing, and as `null` if it is null. Raises
    CommandError for anything but true and false; also for null if `null` is None."""
    value = row.get(name, True)
    value = null if value is None else value
    if not isinstance(value, bool):
        raise CommandError(f"{name} must be true or false")
    return value


def _text(row: dict[str, Any], name: str) -> str:
    """Return a text field; bytes are decoded as ASCII, with U+FFFD in place of others. Raises
    CommandError if the field is missing, empty or not a text."""
    value = row.get(name)
    if isinstance(value, bytes):
        # Flask-Bcrypt returns bytes, which some applications store as they are.
        value = value.decode("ascii", "replace")
    if not isinstance(value, str) or not value:
        raise CommandError(f"{name} is missing")
    return value
