"""The stored fields of a user, and how to find one. `User` adds the operations."""

import asyncio
from collections.abc import Callable, Mapping
from datetime import date, datetime, timedelta
from itertools import chain
from typing import Annotated, Any, ClassVar, Self

from beanie import PydanticObjectId
from pydantic import BaseModel, BeforeValidator, Field
from pymongo import IndexModel, UpdateOne

from quartapp import clock, policy, validation
from quartapp.db.mongo import Tx
from quartapp.i18n import lazy_gettext as _
from quartapp.models.accounts import status
from quartapp.models.accounts.credential import KeptCredential, credential_of
from quartapp.models.accounts.list_indexes import LIST_INDEXES
from quartapp.models.accounts.preferences import Preferences
from quartapp.models.accounts.role_ends import RoleEnd, ends_of, held_roles, well_formed
from quartapp.models.base.record import Record
from quartapp.models.base.references import (
    CASELESS,
    USERS,
    DomainError,
    PasskeyRef,
    RoleRef,
    UserRef,
    linked_id,
)
from quartapp.models.factors.factor import Factor, Totp, factors_of

# How many addresses that begin with the text a search for users considers.
ADDRESSES_FOUND = 100
# Each write of `seen_at` changes an index entry for each role of the user.
USER_SEEN_EVERY = timedelta(minutes=5)


class Taken(DomainError):
    """Another account has this username or email address; `field` is "username" or "email"."""

    def __init__(self, field: str) -> None:
        self.field = field
        name_taken, email_taken = _("This username is taken."), _("This email address is taken.")
        super().__init__(name_taken if field == "username" else email_taken)


class Unverified(DomainError):
    """The account cannot be used, nor receive authority, until its email address is verified."""

    field = "role"

    def __init__(self, username: str) -> None:
        super().__init__(
            _(
                "The email address of %(name)s is not verified. Until it is, the account can have "
                "no role other than %(role)s and no second factor.",
                name=username,
                role=policy.MEMBER,
            )
        )


class WrongCodes(BaseModel):
    """Wrong second factors in a row since this password was set: see models.factors.wrong_codes."""

    credential: str = Field(repr=False)
    known: int = 0
    others: int = 0


class ForgottenBrowsers(BaseModel):
    """Sessions opened until `at` do not make their browser known, except the session `keep`."""

    at: datetime
    keep: PydanticObjectId | None = None


class Account(Record):
    """The stored fields of a user.

    `username` and `email` are shown as entered. Accounts are found by `canonical_username` and
    `canonical_email`, which are unique (see `quartapp.validation`). A document that another program
    wrote may lack these: see `models.accounts.canonical`. `authz_version` is raised by each change
    of what this user may do, and `authz_by` and `authz_at` tell who made the last one and when. A
    change of a role of the user raises the version of the role instead: see
    `models.authorization.permissions.principal_version`.
    """

    username: str
    email: str
    canonical_username: str = Field(
        default_factory=lambda data: validation.canonical_username(data["username"])
    )
    canonical_email: str = Field(
        default_factory=lambda data: validation.canonical_email(data["email"])
    )
    password_hash: str = Field(repr=False)
    display_name: str = ""
    about: str = ""
    preferences: Preferences = Preferences()
    roles: list[RoleRef] = []
    # Until when the user holds roles that were granted for a limited time: see `role_ends`.
    role_ends: Annotated[list[RoleEnd], BeforeValidator(well_formed)] = []
    authz_version: int = 1
    authz_by: UserRef | None = None
    authz_at: datetime | None = None
    # Ids of the latest events about many users at once, which have no subject: see Role.remove.
    common_events: list[PydanticObjectId] = []
    disabled_at: datetime | None = None
    closes_at: datetime | None = None
    closed_at: datetime | None = None
    closed_by: UserRef | None = None
    deletes_at: datetime | None = None
    deletes_posts: bool = False
    erasing_until: datetime | None = None
    email_verified_at: datetime | None = None
    # Whether the account cannot be used before the address is verified.
    must_verify: bool = False
    # The address that the account claims until it is verified: see registration.claim.
    claimed_email: str | None = None
    canonical_claim: str | None = None
    pending_email: str | None = None
    letters_asked: list[datetime] = []
    created_at: datetime = Field(default_factory=clock.now)
    password_changed_at: datetime = Field(default_factory=clock.now)
    kept_credential: KeptCredential | None = Field(default=None, repr=False)
    browsers_forgotten: ForgottenBrowsers | None = None
    wrong_codes: WrongCodes | None = None
    totp: Totp | None = None
    # The time step of the last code that was used. No code of it or before is accepted again.
    totp_step: int = 0
    passkeys: list[PasskeyRef] = []
    recovery_codes: list[str] = Field(default=[], repr=False)
    notice_seq: int = 0
    notices_read: int = 0
    notices_read_early: list[int] = []
    # The last use of a session, at most USER_SEEN_EVERY too old: see jobs.last_seen.
    seen_at: datetime | None = None
    # Incremented to make transactions conflict: see models.authorization.privileges.
    acts: int = 0

    class Settings:
        name = USERS
        # Beanie's own encoder reads an attribute that Pydantic has deprecated.
        bson_encoders: ClassVar = {Preferences: Preferences.model_dump}
        indexes = [
            *[
                IndexModel([(field, 1)], name=field, unique=True, sparse=True)
                for field in ("canonical_username", "canonical_email")
            ],
            # For `models.accounts.canonical`, which finds documents without these fields.
            IndexModel(
                [("created_at", 1)],
                name="not_canonical",
                partialFilterExpression={"canonical_email": None},
            ),
            # For lists and searches, and for older versions, which have no canonical fields.
            IndexModel([("username", 1)], name="username", unique=True, collation=CASELESS),
            IndexModel([("email", 1)], name="email", unique=True, collation=CASELESS),
            IndexModel(
                [("canonical_claim", 1)],
                name="canonical_claim",
                unique=True,
                # Leaves out accounts without a claim, in which the field is null.
                partialFilterExpression={"canonical_claim": {"$gt": ""}},
            ),
            # For `models.accounts.email_address.require_verification`.
            IndexModel(
                [("must_verify", 1), ("claimed_email", 1)],
                name="unverified",
                partialFilterExpression={"email_verified_at": None},
            ),
            *LIST_INDEXES,
            IndexModel([("role_ends.until", 1)], name="role_ends", sparse=True),
            IndexModel([("role_ends.warn_at", 1)], name="role_warnings", sparse=True),
            IndexModel([("closes_at", 1)], name="last_day"),
            IndexModel([("deletes_at", 1)], name="leaving"),
        ]

    @property
    def disabled(self) -> bool:
        """Whether administrators have disabled the account, or it has expired."""
        return status.is_disabled(self.__dict__, clock.now())

    @property
    def expires_on(self) -> date | None:
        """Date at whose end (UTC) the account is disabled: see models.accounts.account_expiry."""
        return (self.closes_at - timedelta(milliseconds=1)).date() if self.closes_at else None

    @property
    def is_active(self) -> bool:
        """Whether the account is neither disabled, nor expired, nor deactivated by its owner, nor
        going to be deleted. Only the sessions of an active account count."""
        return status.is_active(self.__dict__, clock.now())

    @property
    def address(self) -> str:
        """The email address that the account holds or, if it holds none yet, claims."""
        return self.claimed_email or self.email

    @property
    def verified(self) -> bool:
        """Whether the email address of the account was verified."""
        return self.email_verified_at is not None

    @property
    def awaits_verification(self) -> bool:
        """Whether the account cannot be used before its email address is verified."""
        return self.must_verify and not self.verified

    @property
    def role_ids(self) -> set[PydanticObjectId]:
        """The ids of the roles that the user holds now, also of deleted ones. Without those whose
        grant has expired."""
        return held_roles(self.__dict__, clock.now())

    def holds(self, role: Record) -> bool:
        """Return whether the user has the role, and its grant has not expired."""
        return role.id in self.role_ids

    @property
    def ends(self) -> dict[PydanticObjectId, datetime]:
        """Until when the user holds each role that has an end, by the role's id. Also ends that
        have passed and were not recorded yet."""
        return ends_of(self.__dict__)

    @property
    def closed_by_owner(self) -> bool:
        """Whether the user deactivated the account or scheduled its deletion, and not an
        administrator.
        """
        return self.closed_by is not None and linked_id(self.closed_by) == self.id

    @property
    def can_sign_in_or_restore(self) -> bool:
        """Whether somebody with the right password can sign in, or restore the account.

        True for an active account, and for one that its owner deactivated, until it is due for
        deletion. False for a disabled or expired one.
        """
        if self.is_active:
            return True
        late = self.deletes_at is not None and self.deletes_at <= clock.now()
        return not self.disabled and self.closed_by_owner and not late

    @classmethod
    async def by_username(cls, username: str, *, tx: Tx | None = None) -> Self | None:
        """Return the account of this username, in any case, or None."""
        canonical = validation.canonical_username
        return await cls._found("username", canonical, username, [username], tx)

    @classmethod
    async def by_email(cls, email: str, *, tx: Tx | None = None) -> Self | None:
        """Return the account that holds this address, in any of its spellings, or None. Not one
        that only claims it.
        """
        spellings = validation.spellings(email)
        return await cls._found("email", validation.canonical_email, email, spellings, tx)

    @classmethod
    async def claiming(cls, email: str, *, tx: Tx | None = None) -> Self | None:
        """Return the account that claims this address without having verified it, or None."""
        claim = validation.canonical_email(email)
        return await cls.find_one({"canonical_claim": claim}, session=tx) if claim else None

    @classmethod
    async def by_login(cls, login: str) -> Self | None:
        """Return the account of this username or email address, or None. A login with an @ is an
        address.
        """
        return await (cls.by_email(login) if "@" in login else cls.by_username(login))

    @classmethod
    async def _found(
        cls,
        field: str,
        canonical_form: Callable[[str], str],
        typed: str,
        spellings: list[str],
        tx: Tx | None,
    ) -> Self | None:
        """Return the account whose `field` has the same canonical form as what was typed. None if
        there is none, and without a query if the canonical form is empty.

        Compares the field itself, because the stored canonical form may be missing or outdated, if
        another program wrote the document. Always makes two queries, one by the canonical form and
        one by the spellings, so that an unknown login takes no longer; at the same time, unless in
        a transaction, which does one thing after the other. The collation of the second treats too
        much as equal, such as a soft hyphen and nothing.
        """
        wanted = canonical_form(typed)
        if not wanted:
            return None
        first = {f"canonical_{field}": wanted}
        second = {field: {"$in": spellings}}
        queries = (
            cls.find(first, session=tx, limit=1).to_list(),
            cls.find(second, session=tx, limit=10, collation=CASELESS).to_list(),
        )
        found = [await query for query in queries] if tx else await asyncio.gather(*queries)
        rows = chain(*found)
        return next((row for row in rows if canonical_form(getattr(row, field)) == wanted), None)

    @classmethod
    async def search(cls, text: str, *, after: str | None = None, limit: int = 50) -> list[Self]:
        """Return at most `limit` users whose username or address begins with the text, in any case,
        sorted by username, with their roles fetched.

        An address also matches in its other spellings, and when it is only claimed. If more than
        ADDRESSES_FOUND addresses match, only so many of them count. An empty text matches all.
        `after` is the last username of the page before.
        """
        match: dict[str, Any] = {"username": {"$gt": after}} if after else {}
        options: dict[str, Any] = {"collation": CASELESS}
        if text:
            ids, _ = await cls.matching(text, after=after, limit=limit)
            match["_id"] = {"$in": ids}
            # Otherwise the database may read all usernames until it has found these users.
            options["hint"] = "_id_"
        return await cls.find_with_links(
            match, sort="username", limit=limit, fetch=["roles"], **options
        )

    @classmethod
    async def matching(
        cls, text: str, *, after: str | None = None, before: str | None = None, limit: int
    ) -> tuple[list[PydanticObjectId], str | None]:
        """Return the ids of users for a search: at most `limit` by username, and at most
        ADDRESSES_FOUND by address and by claimed address. Also return the last username if there
        were `limit`, else None.

        `after` and `before` limit the usernames: those that follow one, or those that precede one,
        read backwards from it. Each field is read with one index. A single query with all
        conditions would read whole indexes.
        """
        by_name = [_begins("username", text)]
        if after:
            by_name.append({"username": {"$gt": after}})
        if before:
            by_name.append({"username": {"$lt": before}})
        by_address = [_begins("email", text), {"email": {"$in": validation.spellings(text)}}]
        users = cls.get_motor_collection()
        cursors = (
            users.find({"$and": by_name}, {"username": 1}, collation=CASELESS)
            .sort("username", -1 if before else 1)
            .limit(limit),
            users.find({"$or": by_address}, {"_id": 1}, collation=CASELESS).limit(ADDRESSES_FOUND),
            users.find(
                _begins("canonical_claim", validation.canonical_login(text)), {"_id": 1}
            ).limit(ADDRESSES_FOUND),
        )
        found = await asyncio.gather(*(cursor.to_list(None) for cursor in cursors))
        named = found[0]
        last = named[-1]["username"] if len(named) == limit else None
        return list({row["_id"]: None for rows in found for row in rows}), last

    @classmethod
    async def record_use(cls, seen: Mapping[PydanticObjectId, datetime]) -> None:
        """Store when users were last seen, in one bulk write. Skips those for whom a time is stored
        that is at most USER_SEEN_EVERY older, or later."""
        writes = [
            UpdateOne(
                {"_id": user_id, "seen_at": {"$not": {"$gte": at - USER_SEEN_EVERY}}},
                {"$set": {"seen_at": at}},
            )
            for user_id, at in seen.items()
        ]
        if writes:
            await cls.get_motor_collection().bulk_write(writes, ordered=False)

    @property
    def credential(self) -> str:
        """An identifier of the present password, which changes with it: see `credential_of`."""
        kept = self.kept_credential and self.kept_credential.model_dump()
        return credential_of({"password_hash": self.password_hash, "kept_credential": kept})

    @property
    def factors(self) -> frozenset[Factor]:
        """The kinds of second factors that the user has set up."""
        return factors_of(self.__dict__)


def _begins(field: str, text: str) -> dict[str, Any]:
    """Return the filter for users whose field begins with the text."""
    # U+FFFF sorts behind every other character, so this range is the prefix.
    return {field: {"$gte": text, "$lt": text + "\uffff"}}


def address_fields(email: str) -> dict[str, str]:
    """Return the fields to set wherever an account gets an address."""
    return {"email": email, "canonical_email": validation.canonical_email(email)}
