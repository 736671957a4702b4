"""People: who they are, and the verbs that change what they may do.

Each verb is one transaction: the change, the sessions it ends, the audit event and the notice. It
returns the event, or None where there was nothing to do. It raises MissingPermission when the actor
manages another user who holds a permission that the actor does not hold.
Sockets hear of it from the change stream, after the commit.
"""

from collections.abc import Callable, Collection, Mapping
from datetime import date, datetime, timedelta
from typing import TYPE_CHECKING, Any, Self

from beanie import Link, PydanticObjectId
from pydantic import BaseModel, Field
from pymongo import IndexModel, ReturnDocument
from pymongo.errors import DuplicateKeyError

from quartapp import clock, policy, validation
from quartapp.db.mongo import Session as Tx
from quartapp.db.mongo import transaction
from quartapp.log import log
from quartapp.models.audit.event import Event, Verb
from quartapp.models.authorization.privileges import require_to_give
from quartapp.models.base.actor import NOBODY, Actor
from quartapp.models.base.record import Record
from quartapp.models.base.references import CASELESS, DomainError, linked_id, ref
from quartapp.models.base.write_lock import hold_administrators
from quartapp.models.email.outbox import Letter, Mail
from quartapp.models.factors.factor import Factor, Totp, factors_of
from quartapp.models.notifications.notice import Kind, Notice
from quartapp.models.sessions.session import (
    Because,
    Reason,
    Session,
    acting,
    count_active,
    credential_of,
    end_and_record,
    fingerprint,
    mark_ended,
    new_token,
)

if TYPE_CHECKING:
    from quartapp.models.factors.passkey import Passkey
    from quartapp.models.roles.role import Role

COMMON_EVENTS = 100
OPEN: Mapping[str, Any] = {"disabled_at": None, "closed_at": None}
# How long an account may claim an address that nobody has verified.
CLAIM_LASTS = timedelta(days=1)
LAST = "This is the last active administrator"


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
            f"The email address of {username} is not verified. Until it is, the account can hold "
            f"no role but {policy.MEMBER} and add no second factor."
        )


class LastAdministrator(DomainError):
    """The change would leave nobody in charge, now or on a day to come."""

    def __init__(self, *, others_leave: bool = False) -> None:
        only = "Every other administrator has a last day" if others_leave else LAST
        super().__init__(f"{only}. Make somebody else one first.")


class PasswordMoved(DomainError):
    """The password was changed by somebody else meanwhile."""

    def __init__(self) -> None:
        super().__init__("The password was changed meanwhile. Start again.")


class RoleGone(DomainError):
    """The role was deleted meanwhile."""

    def __init__(self, name: str) -> None:
        super().__init__(f"The role {name} was deleted meanwhile.")


class KeptCredential(BaseModel):
    """The credential that a password keeps although it was hashed anew: see `credential_of`."""

    hash: str = Field(repr=False)
    credential: str = Field(repr=False)


class WrongCodes(BaseModel):
    """Wrong second factors in a row since this password was set: see models.factors.wrong_codes."""

    credential: str = Field(repr=False)
    known: int = 0
    others: int = 0


class ForgottenBrowsers(BaseModel):
    """Sessions opened until then no longer make a browser known, but for the one to keep."""

    at: datetime
    keep: PydanticObjectId | None = None


class User(Record):
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
    roles: list[Link["Role"]] = []
    authz_version: int = 1
    authz_by: Link["User"] | None = None
    # Of events that happened to many at once and name none of them: the latest of this person's.
    common_events: list[PydanticObjectId] = []
    disabled_at: datetime | None = None
    closes_at: datetime | None = None
    closed_at: datetime | None = None
    closed_by: Link["User"] | None = None
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
    passkeys: list[Link["Passkey"]] = []
    recovery_codes: list[str] = Field(default=[], repr=False)
    notice_seq: int = 0
    notices_read: int = 0
    # Counts checks of what this user may give or manage, and who may manage them: see
    # models.authorization.privileges.
    acts: int = 0

    class Settings:
        name = "users"
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

    # ---- standing

    @property
    def disabled(self) -> bool:
        """Whether administrators have closed the account, or its last day is over."""
        return self.disabled_at is not None or (
            self.closes_at is not None and self.closes_at <= clock.now()
        )

    @property
    def last_day(self) -> date | None:
        """At the end of which, by UTC, the account closes: see models.accounts.account_expiry."""
        return (self.closes_at - timedelta(milliseconds=1)).date() if self.closes_at else None

    @property
    def is_open(self) -> bool:
        """Whether its sessions count. Administrators disable an account; it is closed by its owner,
        or by whoever wants it deleted."""
        return not self.disabled and self.closed_at is None

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

    def holds(self, role: "Role") -> bool:
        return any(linked_id(link) == role.id for link in self.roles)

    @property
    def closed_by_owner(self) -> bool:
        return self.closed_by is not None and linked_id(self.closed_by) == self.id

    @property
    def may_enter(self) -> bool:
        """Whether the right password leads anywhere: in, or to opening what one has closed."""
        if self.is_open:
            return True
        late = self.deletes_at is not None and self.deletes_at <= clock.now()
        return not self.disabled and self.closed_by_owner and not late

    # ---- finding

    @classmethod
    async def by_username(cls, username: str, *, tx: Tx | None = None) -> "User | None":
        """Return the account of this username, in any case."""
        canonical = validation.canonical_username
        return await cls._found("username", canonical, username, [username], tx)

    @classmethod
    async def by_email(cls, email: str, *, tx: Tx | None = None) -> "User | None":
        """Return the account of this address, in any of its spellings."""
        spellings = validation.spellings(email)
        return await cls._found("email", validation.canonical_email, email, spellings, tx)

    @classmethod
    async def claiming(cls, email: str, *, tx: Tx | None = None) -> "User | None":
        """Return the account that claims this address without holding it yet, if there is one."""
        claim = validation.canonical_email(email)
        return await cls.find_one({"canonical_claim": claim}, session=tx) if claim else None

    @classmethod
    async def by_login(cls, login: str) -> "User | None":
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
    ) -> "User | None":
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

    @classmethod
    async def active_administrators(cls, *, tx: Tx | None = None, lasting: bool = False) -> int:
        """How many people with an open account hold the role that may do everything: until their
        last day is over, if they have one; only those who have none if they are to be `lasting`."""
        return await cls.find({**await administering(tx), **_open(lasting)}, session=tx).count()

    @property
    def credential(self) -> str:
        """What tells this password from another one of the user: see `credential_of`."""
        kept = self.kept_credential and self.kept_credential.model_dump()
        return credential_of({"password_hash": self.password_hash, "kept_credential": kept})

    @property
    def factors(self) -> frozenset[Factor]:
        """The kinds of second factors that they have set up."""
        return factors_of(self.__dict__)

    # ---- coming

    @classmethod
    async def register(
        cls,
        username: str,
        email: str,
        password_hash: str,
        *,
        roles: Collection["Role"],
        by: Actor,
        verified: bool = False,
        must_verify: bool = False,
    ) -> "User":
        """Create an account that holds the address, and return it.

        `verified` says that the address counts as verified; `must_verify` that the account cannot
        be used before it is. An unverified address gets a verification mail if a visitor registers.
        Raises Taken, also for the slower of two registrations of one name at once, and Unverified
        for roles that an account with `must_verify` cannot hold.
        """

        async def work(tx: Tx) -> User:
            return await cls.add(
                *(username, email, password_hash),
                roles=roles,
                by=by,
                tx=tx,
                verified=verified,
                must_verify=must_verify,
            )

        return await transaction(work)

    @classmethod
    async def claim(
        cls, username: str, email: str, password_hash: str, *, roles: Collection["Role"], by: Actor
    ) -> "User":
        """Create an account that cannot be used before the address is verified, and return it.

        The account holds the username, and only claims the address: it does not look whether
        another account holds it, so the same is written in both cases. The mail that is queued
        tells the owner of the address which case it is. The account is deleted after CLAIM_LASTS,
        and at once when another account claims or gets the address. Raises Taken for the username,
        and Unverified for roles beyond the default.
        """

        async def work(tx: Tx) -> User:
            return await cls.add(
                *(username, email, password_hash), roles=roles, by=by, tx=tx, claim=True
            )

        return await transaction(work)

    @classmethod
    async def add(
        cls,
        username: str,
        email: str,
        password_hash: str,
        *,
        roles: Collection["Role"],
        by: Actor,
        tx: Tx,
        verified: bool = False,
        must_verify: bool = False,
        claim: bool = False,
    ) -> "User":
        """The writes of `register` and `claim`, for a transaction that does more.

        Deletes an account that only claims the address. Raises Taken, Unverified, and
        MissingPermission if a user creates the account with a role that allows more than they hold.
        """
        await require_to_give(by, [role.id for role in roles], tx)
        user = cls(
            username=username,
            email=email,
            password_hash=password_hash,
            roles=list(roles),  # type: ignore[arg-type]
            must_verify=must_verify or claim,
        )
        if claim:
            user.claimed_email, user.canonical_claim = email, validation.canonical_email(email)
            user.email = f"{user.id}@unverified.invalid"
            user.canonical_email = validation.canonical_email(user.email)
            user.deletes_at = user.created_at + CLAIM_LASTS
        # Visitors register themselves; the command line does it for others.
        visitor = by.user_id is None and by.ip is not None
        sends_mail = claim or (visitor and not verified)
        if verified:
            user.email_verified_at = user.created_at
        elif sends_mail:
            user.letters_asked = [user.created_at]
        if user.awaits_verification and any(role.name != policy.MEMBER for role in roles):
            raise Unverified(username)
        await cls.drop_claim(email, tx=tx)
        try:
            await user.insert(session=tx)
        except DuplicateKeyError as error:
            index = next(iter((error.details or {}).get("keyPattern", {"username": 1})))
            raise Taken(index.removeprefix("canonical_")) from None
        who = by.known_as(user.id, username) if visitor else by
        given = sorted(role.name for role in roles)
        await Event.record(Verb.USER_REGISTERED, by=who, subject=user.id, tx=tx, roles=given)
        await user.tell(Kind.WELCOME, tx, by=username)
        if sends_mail:
            await Mail.queue(Letter.CONFIRM, email, user=user.id, tx=tx)
        return user

    @classmethod
    async def drop_claim(cls, email: str, *, tx: Tx) -> None:
        """Delete the account that only claims this address, if there is one.

        Nobody could sign in to it, so a user, its notifications and the address in its audit
        events are all that there is to delete.
        """
        claiming = await cls.claiming(email, tx=tx)
        if claiming is None:
            return
        await cls.erase(claiming.id, tx=tx)
        notices = Notice.get_motor_collection()
        await notices.delete_many({"user.$id": claiming.id}, session=tx)
        await Event.change_all({"actor.$id": claiming.id}, {"$set": {"ip": None}}, tx=tx)
        await Event.record(
            Verb.USER_ERASED, by=NOBODY, subject=claiming.id, tx=tx, reason="replaced"
        )

    # ---- the email address

    async def verify(self, email: str, *, tx: Tx) -> bool:
        """Mark the address as verified, from which on the account can be used.

        An account that claimed the address now holds it. Returns False if the account was verified
        or deleted meanwhile, or has another address. Raises Taken if another account holds it.
        """
        match, change = self.proof(email)
        try:
            return await User.change(match, {"$set": change}, tx=tx)
        except DuplicateKeyError:
            raise Taken("email") from None

    def proof(self, email: str) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return the filter and the changes of an update that makes this address a verified one."""
        now = clock.now()
        change = {"email_verified_at": now, "must_verify": False}
        match = {"_id": self.id, "email_verified_at": None}
        if self.claimed_email is None:
            return {**match, "email": email}, change
        in_time = {"deletes_at": {"$gt": now}, "erasing_until": None}
        claim_is_over = {"claimed_email": None, "canonical_claim": None, "deletes_at": None}
        held = {**address_fields(email), **claim_is_over}
        return {**match, **in_time, "claimed_email": email}, {**change, **held}

    async def require_verified(self, tx: Tx) -> None:
        """Raise Unverified for an account that cannot be used yet."""
        found = await User.get(self.id, session=tx)
        if found is not None and found.awaits_verification:
            raise Unverified(found.username)

    # ---- authority

    async def grant(self, role: "Role", *, by: Actor) -> Event | None:
        """Give the role; None if it was held. Open pages gain it in place.

        Raises RoleGone, Unverified for an account that must verify its address first, and
        MissingPermission if the role, or the user, has a permission that the actor does not hold.
        """

        async def work(tx: Tx) -> Event | None:
            await require_to_give(by, [role.id], tx)
            if role.name != policy.MEMBER:
                await self.require_verified(tx)
            changed = await self.change_authority(
                {"roles.$id": {"$ne": role.id}},
                {"$addToSet": {"roles": ref("roles", role.id)}},
                by=by,
                tx=tx,
            )
            if not changed:
                return None
            # Writing the role's document makes a grant and a deletion at once exclude each other.
            if not await role.count_grant(tx):
                raise RoleGone(role.name)
            await self.tell(Kind.ROLE_GRANTED, tx, by=by.username, role=role.name)
            return await Event.record(
                Verb.ROLE_GRANTED, by=by, subject=self.id, tx=tx, role=role.name
            )

        return await acting(by, work, managing=self.id)

    async def revoke(self, role: "Role", *, by: Actor) -> Event | None:
        """Takes the role and ends the user's sessions; None if it was not held.

        Raises LastAdministrator.
        """

        async def work(tx: Tx) -> Event | None:
            before = (0, 0)
            if role.name == policy.ADMIN:
                await hold_administrators(tx)
                before = await count_administrators(tx)
            changed = await self.change_authority(
                {"roles.$id": role.id},
                {"$pull": {"roles": ref("roles", role.id)}},
                by=by,
                tx=tx,
            )
            if not changed:
                return None
            await require_an_administrator(before, tx)
            event = Event.of(Verb.ROLE_REVOKED, by=by, subject=self.id, role=role.name)
            mine = {"user.$id": self.id}
            event.note_ended_sessions(await count_active(mine, tx))
            await mark_ended(mine, Reason.ROLE_REVOKED, by=by, event=event, tx=tx)
            await self.tell(Kind.ROLE_REVOKED, tx, by=by.username, role=role.name)
            return await event.insert(session=tx)

        return await acting(by, work, managing=self.id)

    async def disable(self, *, by: Actor) -> Event | None:
        """Closes the account and ends its sessions; None if it was closed.

        Raises LastAdministrator.
        """

        async def work(tx: Tx) -> Event | None:
            await hold_administrators(tx)
            before = await count_administrators(tx)
            closed = {"disabled_at": clock.now(), "closes_at": None}
            changed = await self.change_authority(
                {"disabled_at": None}, {"$set": closed}, by=by, tx=tx
            )
            if not changed:
                return None
            await require_an_administrator(before, tx)
            await self.forget_browsers(tx=tx)
            event = Event.of(Verb.USER_DISABLED, by=by, subject=self.id)
            mine = {"user.$id": self.id}
            event.note_ended_sessions(await count_active(mine, tx))
            await mark_ended(mine, Reason.ACCOUNT_DISABLED, by=by, event=event, tx=tx)
            await self.tell(Kind.ACCOUNT_DISABLED, tx, by=by.username)
            return await event.insert(session=tx)

        return await acting(by, work, managing=self.id)

    async def enable(self, *, by: Actor) -> Event | None:
        """Opens the account again, without a last day; None if it was open."""

        async def work(tx: Tx) -> Event | None:
            over = {"closes_at": {"$lte": clock.now()}}
            changed = await self.change_authority(
                {"$or": [{"disabled_at": {"$ne": None}}, over]},
                {"$set": {"disabled_at": None, "closes_at": None}},
                by=by,
                tx=tx,
            )
            if not changed:
                return None
            await self.tell(Kind.ACCOUNT_ENABLED, tx, by=by.username)
            return await Event.record(Verb.USER_ENABLED, by=by, subject=self.id, tx=tx)

        return await acting(by, work, managing=self.id)

    async def close(
        self, *, by: Actor, deletes_at: datetime | None = None, with_posts: bool = False
    ) -> Event | None:
        """Closes the account and ends its sessions; its owner may open again what they closed.

        With `deletes_at` it is erased then, and if so wished with all that its owner has written;
        or sooner, if its owner has wished so and another does it now, so that it holds whatever the
        owner wishes then. None if it was closed, or is erased no later, already. Raises
        LastAdministrator.
        """
        own = by.user_id == self.id
        if deletes_at is None:
            condition: dict[str, Any] = {"closed_at": None}
        else:
            later = [{"deletes_at": None}, {"deletes_at": {"$gt": deletes_at}}]
            condition = {"$or": later if own else [*later, {"closed_by.$id": self.id}]}

        async def work(tx: Tx) -> Event | None:
            await hold_administrators(tx)
            before = await count_administrators(tx)
            there = await User.get(self.id, session=tx)
            wished = there.deletes_at if there else None
            until = min(wished or deletes_at, deletes_at) if deletes_at else None
            closing = {"closed_at": clock.now(), "closed_by": ref("users", by.user_id)}
            leaving = {"deletes_at": until, "deletes_posts": with_posts} if until else {}
            change = {"$set": closing | leaving}
            if not await self.change_authority(condition, change, by=by, tx=tx):
                return None
            await require_an_administrator(before, tx)
            verb = Verb.USER_LEAVING if until else Verb.USER_DEACTIVATED
            event = Event.of(verb, by=by, subject=self.id)
            if until:
                event.details["until"] = clock.to_the_minute(until)
                event.details["posts"] = "removed" if with_posts else "kept"
            mine, reason = {"user.$id": self.id}, Reason.ACCOUNT_DISABLED
            because = Because.DELETED if until else None
            await mark_ended(mine, reason, by=by, event=event, because=because, tx=tx)
            if not own:
                await self.tell(Kind.ACCOUNT_CLOSED, tx, by=by.username)
            gone = Letter.LEAVING if own else Letter.REMOVED
            letter = gone if until else Letter.CLOSED
            words = {"until": until and until.isoformat(), "ip": by.ip if own else None}
            await self.write(letter, tx, **words)
            return await event.insert(session=tx)

        return await acting(by, work, managing=self.id)

    async def restore(self, *, by: Actor) -> Event | None:
        """Opens again what was closed, and forgets that it was to be deleted; None if there is
        nothing to open, or it is too late. An account that is also disabled stays so."""

        async def work(tx: Tx) -> Event | None:
            return await self.open_again(by=by, tx=tx)

        return await acting(by, work, managing=self.id)

    async def open_again(self, *, by: Actor, tx: Tx) -> Event | None:
        """The writes of `restore`, for a transaction that does more."""
        nothing = {"closed_at": None, "closed_by": None, "deletes_at": None, "deletes_posts": False}
        in_time = [{"deletes_at": None}, {"deletes_at": {"$gt": clock.now()}}]
        condition = {"closed_at": {"$ne": None}, "erasing_until": None, "$or": in_time}
        if not await self.change_authority(condition, {"$set": nothing}, by=by, tx=tx):
            return None
        if by.user_id != self.id:
            await self.tell(Kind.ACCOUNT_RESTORED, tx, by=by.username)
        await self.write(Letter.RESTORED, tx)
        return await Event.record(Verb.USER_RESTORED, by=by, subject=self.id, tx=tx)

    async def end_sessions(
        self, reason: Reason, *, by: Actor, keep: PydanticObjectId | None = None
    ) -> Event | None:
        """End all sessions of the user, and forget all browsers, but for the session to keep.

        Returns the event; None if there was no session to end.
        """

        async def work(tx: Tx) -> Event | None:
            match: dict[str, Any] = {"user.$id": self.id}
            if keep:
                match["_id"] = {"$ne": keep}
            await self.forget_browsers(tx=tx, keep=keep)
            event = await end_and_record(
                match, reason, Verb.SESSIONS_ENDED, by=by, subject=self.id, tx=tx
            )
            if event and reason is Reason.ENDED_BY_ADMIN:
                await self.tell(Kind.SESSIONS_ENDED, tx, by=by.username)
            return event

        return await acting(by, work, managing=self.id)

    @classmethod
    async def number_change(cls, user_id: PydanticObjectId, version: int) -> None:
        """Gives a change of rights that was written past these verbs a version of its own.

        Many workers see such a change; the condition lets one of them number it.
        """
        await cls.change(
            {"_id": user_id, "authz_version": version},
            {"$inc": {"authz_version": 1}, "$set": {"authz_by": None}},
        )

    # ---- passwords

    async def change_password(
        self, password_hash: str, *, by: Actor, keep: PydanticObjectId | None = None
    ) -> str | None:
        """Sets the new hash and ends the other sessions. The one to keep gets the returned token.

        Raises PasswordMoved when the hash is no longer the one that this document was read with.
        """
        token, digest = new_token()

        async def work(tx: Tx) -> bool:
            now = clock.now()
            changed = await User.change(
                {"_id": self.id, "password_hash": self.password_hash},
                {
                    "$set": {
                        "password_hash": password_hash,
                        "password_changed_at": now,
                        # Whoever knew the old password may have asked for it.
                        "pending_email": None,
                    }
                },
                tx=tx,
            )
            if not changed:
                raise PasswordMoved
            event = Event.of(Verb.PASSWORD_CHANGED, by=by, subject=self.id)
            others = {"user.$id": self.id, "_id": {"$ne": keep}}
            await mark_ended(others, Reason.PASSWORD_CHANGED, by=by, event=event, tx=tx)
            await event.insert(session=tx)
            await self.tell(Kind.PASSWORD_CHANGED, tx)
            await self.write(Letter.PASSWORD_CHANGED, tx, ip=by.ip)
            return await Session.change(
                {"_id": keep, "user.$id": self.id, "ended_at": None},
                {
                    "$set": {
                        "digest": digest,
                        "credential": fingerprint(password_hash),
                        "confirmed_at": now,
                    }
                },
                tx=tx,
            )

        return token if await acting(by, work, managing=self.id) else None

    async def upgrade_hash(self, password_hash: str) -> None:
        """Store the same password hashed anew. Sessions, links and known browsers stay.

        Changes nothing when the hash is no longer the one that this document was read with.
        """
        kept = KeptCredential(hash=fingerprint(password_hash), credential=self.credential)
        changed = await User.change(
            {"_id": self.id, "password_hash": self.password_hash},
            {"$set": {"password_hash": password_hash, "kept_credential": kept.model_dump()}},
        )
        if changed:
            self.password_hash, self.kept_credential = password_hash, kept

    async def forget_browsers(self, *, tx: Tx, keep: PydanticObjectId | None = None) -> None:
        """Make every browser unknown but that of the session to keep.

        An intruder's browser is then told of again, and has no allowance of its own at the sign-in.
        """
        forgotten = ForgottenBrowsers(at=clock.now(), keep=keep).model_dump()
        await User.change({"_id": self.id}, {"$set": {"browsers_forgotten": forgotten}}, tx=tx)

    # ---- notices

    async def tell(self, kind: Kind, tx: Tx, **data: Any) -> None:
        """Stores a notice under the user's next number, in the transaction of what it tells of."""
        numbered = await User.get_motor_collection().find_one_and_update(
            {"_id": self.id},
            {"$inc": {"notice_seq": 1}},
            projection={"notice_seq": 1},
            return_document=ReturnDocument.AFTER,
            session=tx,
        )
        if numbered:
            notice = Notice(
                user=ref("users", self.id), seq=numbered["notice_seq"], kind=kind, data=data
            )
            await notice.insert(session=tx)

    @classmethod
    async def tell_all(
        cls, ids: Collection[PydanticObjectId], kind: Kind, tx: Tx, **data: Any
    ) -> None:
        """The same for many, in three writes and reads however many they are."""
        await cls.change_all({"_id": {"$in": list(ids)}}, {"$inc": {"notice_seq": 1}}, tx=tx)
        users = cls.get_motor_collection()
        numbered = users.find({"_id": {"$in": list(ids)}}, {"notice_seq": 1}, session=tx)
        notices = [
            Notice(user=ref("users", row["_id"]), seq=row["notice_seq"], kind=kind, data=data)
            for row in await numbered.to_list(None)
        ]
        if notices:
            await Notice.insert_many(notices, session=tx)

    async def write(self, letter: Letter, tx: Tx, **data: str | None) -> None:
        """Queue an email to the user, in the transaction of what it tells of.

        An address that was not verified may be somebody else's, and gets none of these.
        """
        if not self.verified:
            log.warning("mail_suppressed", letter=letter.value, user=str(self.id), why="unverified")
            return
        await Mail.queue(letter, self.email, user=self.id, tx=tx, **data)

    async def warn_of_wrong_codes(self, *, ip: str | None, blocked: bool = False) -> None:
        """Tell the user that somebody has the password and guesses at the second factor.

        With `blocked`, that codes no longer sign in: then it is in the audit log as well.
        """
        kind = Kind.CODES_BLOCKED if blocked else Kind.CODES_REFUSED
        letter = Letter.CODES_BLOCKED if blocked else Letter.CODES_REFUSED

        async def work(tx: Tx) -> None:
            await self.tell(kind, tx)
            await self.write(letter, tx, ip=ip)
            if blocked:
                await Event.record(Verb.CODES_BLOCKED, by=Actor(ip=ip), subject=self.id, tx=tx)

        await transaction(work)

    async def read_notices(self) -> None:
        """Marks all notices up to the newest that this document knows of as read."""
        await User.change(
            {"_id": self.id, "notices_read": {"$lt": self.notice_seq}},
            {"$set": {"notices_read": self.notice_seq}},
        )
        await Notice.change_all(
            {"user.$id": self.id, "seq": {"$lte": self.notice_seq}, "read_at": None},
            {"$set": {"read_at": clock.now()}},
        )

    async def change_authority(
        self, condition: Mapping[str, Any], change: Mapping[str, Any], *, by: Actor, tx: Tx
    ) -> bool:
        """A conditional update that also raises the version and says who did it."""
        update: dict[str, Any] = {**change, "$inc": {"authz_version": 1}}
        update["$set"] = {**change.get("$set", {}), "authz_by": ref("users", by.user_id)}
        return await User.change({"_id": self.id, **condition}, update, tx=tx)


def address_fields(email: str) -> dict[str, str]:
    """Return the fields to set wherever an account gets an address."""
    return {"email": email, "canonical_email": validation.canonical_email(email)}


async def count_administrators(tx: Tx) -> tuple[int, int]:
    """How many are active, and how many of those have no last day."""
    now = await User.active_administrators(tx=tx)
    return now, await User.active_administrators(tx=tx, lasting=True)


async def require_an_administrator(before: tuple[int, int], tx: Tx) -> None:
    """Where there was one, there must be one; and where one was to stay, one must be to stay, or
    the day would come that sees the last one go. Raises LastAdministrator."""
    had, lasting = before
    now, lasting_now = await count_administrators(tx)
    if had and not now:
        raise LastAdministrator
    if lasting and not lasting_now:
        raise LastAdministrator(others_leave=had > 1)


async def administering(tx: Tx | None = None) -> dict[str, Any]:
    """The filter for whoever holds the role that may do everything, disabled or not."""
    roles = User.get_motor_collection().database["roles"]
    admin = await roles.find_one({"name": policy.ADMIN}, session=tx)
    return {"roles.$id": admin["_id"] if admin else None}


def _open(lasting: bool) -> dict[str, Any]:
    without = {"closes_at": None}
    if lasting:
        return {**OPEN, **without}
    return {**OPEN, "$or": [without, {"closes_at": {"$gt": clock.now()}}]}
