"""The stored fields of a user, and how to find one. `User` adds the verbs."""

from collections.abc import Callable
from datetime import date, datetime, timedelta
from typing import Any, Self

from beanie import PydanticObjectId
from pydantic import BaseModel, Field
from pymongo import IndexModel

from quartapp import clock, policy, validation
from quartapp.db.mongo import Tx
from quartapp.models.accounts import status
from quartapp.models.accounts.credential import KeptCredential, credential_of
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


class Taken(DomainError):
    """Somebody has this username or e-mail address; `field` says which."""

    def __init__(self, field: str) -> None:
        self.field = field
        noun = "username" if field == "username" else "email address"
        super().__init__(f"This {noun} is taken.")


class Unverified(DomainError):
    """The account cannot be used, nor receive authority, until its email address is verified."""

    def __init__(self, username: str) -> None:
        super().__init__(
            f"The email address of {username} is not verified. Until it is, the account can have "
            f"no role other than {policy.MEMBER} and no second factor."
        )


class WrongCodes(BaseModel):
    """Wrong second factors in a row since this password was set: see models.factors.wrong_codes."""

    credential: str = Field(repr=False)
    known: int = 0
    others: int = 0


class ForgottenBrowsers(BaseModel):
    """Sessions opened until then no longer make a browser known, but for the one to keep."""

    at: datetime
    keep: PydanticObjectId | None = None


class Account(Record):
    """A person.

    `username` and `email` are what people see. `canonical_username` and `canonical_email` are what
    accounts are found by and kept apart by (see `quartapp.validation`). A stored document may lack
    them: see `models.accounts.canonical`.
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
    roles: list[RoleRef] = []
    authz_version: int = 1
    authz_by: UserRef | None = None
    # Of events that happened to many at once and name none of them: the latest of this person's.
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
    # The address of an account that has yet to verify it in order to hold it: see `User.claim`.
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
    # The half minute of the last code that was used: none of it or before it is taken again.
    totp_step: int = 0
    passkeys: list[PasskeyRef] = []
    recovery_codes: list[str] = Field(default=[], repr=False)
    notice_seq: int = 0
    notices_read: int = 0
    # Counts checks of what this user may give or manage, and who may manage them: see
    # models.authorization.privileges.
    acts: int = 0

    class Settings:
        name = USERS
        indexes = [
            *[
                IndexModel([(field, 1)], name=field, unique=True, sparse=True)
                for field in ("canonical_username", "canonical_email")
            ],
            # For `models.accounts.canonical`, which looks for documents without these fields.
            IndexModel(
                [("created_at", 1)],
                name="not_canonical",
                partialFilterExpression={"canonical_email": None},
            ),
            # For lists and searches; and a version that knows no canonical fields relies on them.
            IndexModel([("username", 1)], name="username", unique=True, collation=CASELESS),
            IndexModel([("email", 1)], name="email", unique=True, collation=CASELESS),
            IndexModel(
                [("canonical_claim", 1)],
                name="canonical_claim",
                unique=True,
                # Leaves out accounts without a claim, in which the field is null.
                partialFilterExpression={"canonical_claim": {"$gt": ""}},
            ),
            IndexModel([("roles.$id", 1)], name="with_role"),
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

    def holds(self, role: Record) -> bool:
        return any(linked_id(link) == role.id for link in self.roles)

    @property
    def closed_by_owner(self) -> bool:
        return self.closed_by is not None and linked_id(self.closed_by) == self.id

    @property
    def may_enter(self) -> bool:
        """Whether the right password leads anywhere: in, or to opening what one has closed."""
        if self.is_active:
            return True
        late = self.deletes_at is not None and self.deletes_at <= clock.now()
        return not self.disabled and self.closed_by_owner and not late

    @classmethod
    async def by_username(cls, username: str, *, tx: Tx | None = None) -> Self | None:
        """Return the account of this username, in any case."""
        canonical = validation.canonical_username
        return await cls._found("username", canonical, username, [username], tx)

    @classmethod
    async def by_email(cls, email: str, *, tx: Tx | None = None) -> Self | None:
        """Return the account of this address, in any of its spellings."""
        spellings = validation.spellings(email)
        return await cls._found("email", validation.canonical_email, email, spellings, tx)

    @classmethod
    async def claiming(cls, email: str, *, tx: Tx | None = None) -> Self | None:
        """Return the account that claims this address without holding it yet, if there is one."""
        claim = validation.canonical_email(email)
        return await cls.find_one({"canonical_claim": claim}, session=tx) if claim else None

    @classmethod
    async def by_login(cls, login: str) -> Self | None:
        """Return the account of this username or address: no username has an @."""
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
        """The account whose `field` has the same canonical form as what was typed.

        The field itself decides, for the canonical one beside it may be missing, or of a value
        that has been replaced: by a version that does not know it, by another program, by hand.
        So there are two queries, whatever the first has found: an unknown login takes no longer.
        The second compares too much as equal, such as soft hyphens and nothing.
        """
        wanted = canonical_form(typed)
        if not wanted:
            return None
        first = {f"canonical_{field}": wanted}
        second = {field: {"$in": spellings}}
        rows = [
            *await cls.find(first, session=tx, limit=1).to_list(),
            *await cls.find(second, session=tx, limit=10, collation=CASELESS).to_list(),
        ]
        return next((row for row in rows if canonical_form(getattr(row, field)) == wanted), None)

    @classmethod
    async def search(cls, text: str, *, after: str | None = None, limit: int = 50) -> list[Self]:
        """Those whose username or address begins with the text, in the order of their usernames,
        with their roles."""
        match: dict[str, Any] = {}
        if text:
            # U+FFFF sorts behind every other character, so this range is the prefix.
            prefix = {"$gte": text, "$lt": text + "\uffff"}
            whole = {"$in": validation.spellings(text)}
            match["$or"] = [
                {"username": prefix},
                {"email": prefix},
                {"email": whole},
                {"canonical_claim": prefix},
            ]
        if after:
            match = {"$and": [match, {"username": {"$gt": after}}]}
        return await cls.listed(
            match, sort="username", limit=limit, fetch=["roles"], collation=CASELESS
        )

    @property
    def credential(self) -> str:
        """What tells this password from another one of the user: see `credential_of`."""
        kept = self.kept_credential and self.kept_credential.model_dump()
        return credential_of({"password_hash": self.password_hash, "kept_credential": kept})

    @property
    def factors(self) -> frozenset[Factor]:
        """The kinds of second factors that they have set up."""
        return factors_of(self.__dict__)


def address_fields(email: str) -> dict[str, str]:
    """Return the fields to set wherever an account gets an address."""
    return {"email": email, "canonical_email": validation.canonical_email(email)}
