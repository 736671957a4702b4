"""One-time tokens in links: random, stored as a digest, used once, and valid for a limited time."""

import hmac
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any

from beanie import Link, PydanticObjectId
from pydantic import Field
from pymongo import IndexModel

from quartapp import clock, policy
from quartapp.db.mongo import Tx, transaction
from quartapp.i18n import lazy_gettext as _
from quartapp.models.accounts.administrators import active_administrators
from quartapp.models.accounts.registration import add_user
from quartapp.models.accounts.user import User
from quartapp.models.base.actor import Actor
from quartapp.models.base.record import Record
from quartapp.models.base.references import DomainError, linked_id, user_ref
from quartapp.models.base.tokens import digest_of, new_token
from quartapp.models.base.write_lock import hold_administrators
from quartapp.models.roles.role import Role
from quartapp.models.statistics import hourly_count
from quartapp.models.statistics.hourly_count import Counted

SETUP_LASTS = timedelta(hours=1)


class Purpose(StrEnum):
    """What a token allows: SETUP creates the first administrator, CONFIRM verifies an address,
    RESET sets a new password, RETURN restores an account, UNDO restores the last email address.
    """

    SETUP = "setup"
    CONFIRM = "confirm"
    RESET = "reset"
    RETURN = "return"
    UNDO = "undo"


# The purposes that also work for an account that its owner has deactivated: the owner restores it,
# perhaps after resetting the password; and an intruder who changed the address may have done it.
FOR_CLOSED = {Purpose.RESET, Purpose.RETURN, Purpose.UNDO}


class TokenSpent(DomainError):
    """The token was used, has expired, or is invalid because the account has changed."""

    def __init__(self) -> None:
        super().__init__(_("This link was used already or has expired."))


class Token(Record):
    """A stored token. `code` is the keyed digest of a code that does the same, `guesses` its tries.

    A token for a user is bound to their password: it is invalid when that changes, no matter how. A
    token that undoes a change of address is not.
    """

    purpose: Purpose
    digest: str = Field(repr=False)
    created_at: datetime
    expires_at: datetime
    used_at: datetime | None = None
    user: Link[User] | None = None
    email: str | None = None
    credential: str | None = Field(default=None, repr=False)
    code: str | None = Field(default=None, repr=False)
    guesses: int = 0

    class Settings:
        name = "tokens"
        indexes = [
            IndexModel([("digest", 1)], name="by_token", unique=True),
            IndexModel([("user.$id", 1), ("purpose", 1), ("created_at", -1)], name="of_user"),
            IndexModel([("expires_at", 1)], name="kept", expireAfterSeconds=86400),
        ]

    @classmethod
    async def issue(
        cls,
        token_id: PydanticObjectId,
        purpose: Purpose,
        user: User,
        email: str,
        *,
        lasts: timedelta,
        code: str | None = None,
    ) -> str:
        """Store a token for the user, valid for `lasts`, and return its text. Deletes the token
        with the same id first; not in a transaction.

        It is bound to the user's present password. Only its digest is stored. `code` is the digest
        of a code (`code_digest`): a plain digest of six digits could be guessed.
        """
        now = clock.now()
        token, digest = new_token()
        await cls.erase(token_id)
        await cls(
            id=token_id,
            purpose=purpose,
            digest=digest,
            created_at=now,
            expires_at=now + lasts,
            user=user_ref(user.id),
            email=email,
            credential=user.credential,
            code=code,
        ).insert()
        return token

    @classmethod
    async def usable(cls, purpose: Purpose, token: str) -> "tuple[Token, User] | None":
        """Return the token and its user. None if it is unknown, was used, has expired, or is void
        because of the user's state (`valid_user`). Does not use it up."""
        found = await cls.find_one(_usable(purpose, token))
        user = await found.valid_user() if found else None
        return (found, user) if found and user else None

    @classmethod
    async def count_usable(cls, purpose: Purpose, user: User, *, but: PydanticObjectId) -> int:
        """Return how many unused and unexpired tokens of this purpose the user has for their
        present or claimed address and their password, not counting the one with the id `but`."""
        match = {
            "_id": {"$ne": but},
            "purpose": purpose,
            "user.$id": user.id,
            "email": user.address,
            "credential": user.credential,
            **_unused(),
        }
        return await cls.find(match).count()

    async def valid_user(self, *, tx: Tx | None = None) -> User | None:
        """Return the user of the token; None if it is void because of the user's state.

        It is void if the user does not exist, if the account is not active (for RESET, RETURN and
        UNDO: if its owner can neither sign in nor restore it), or, except for UNDO, if the password
        has changed. Does not check whether the token was used or has expired.
        """
        user = await User.get(linked_id(self.user), session=tx) if self.user else None
        if user is None:
            return None
        if not (user.can_sign_in_or_restore if self.purpose in FOR_CLOSED else user.is_active):
            return None
        if self.purpose is Purpose.UNDO:
            return user
        return user if self.credential == user.credential else None

    async def use(self, *, tx: Tx) -> User:
        """Use the token up, in the caller's transaction, and return its user.

        Raises TokenSpent if it was used, has expired or is void. Of two uses at once, one raises
        it.
        """
        now = clock.now()
        match = {"_id": self.id, "used_at": None, "expires_at": {"$gt": now}}
        if not await Token.change(match, {"$set": {"used_at": now}}, tx=tx):
            raise TokenSpent
        user = await self.valid_user(tx=tx)
        if user is None:
            raise TokenSpent
        return user


def code_digest(key: str, token_id: PydanticObjectId, code: str) -> str:
    """Return the digest of a code, keyed so that it cannot be guessed from the database alone."""
    return hmac.digest(key.encode(), f"code {token_id} {code}".encode(), "sha256").hex()


async def issue_setup() -> str | None:
    """Store a token for creating the first administrator, valid for an hour, and return it. Older
    ones are marked as used.

    Returns None, without a write, if there is an active administrator.
    """
    if await active_administrators():
        return None
    now = clock.now()
    # These tokens have no user; the index by user finds them.
    earlier = {"user.$id": None, "purpose": Purpose.SETUP, "used_at": None}
    await Token.change_all(earlier, {"$set": {"used_at": now}})
    token, digest = new_token()
    await Token(
        purpose=Purpose.SETUP, digest=digest, created_at=now, expires_at=now + SETUP_LASTS
    ).insert()
    return token


async def setup_is_open(token: str) -> bool:
    """Return whether the set-up token is valid and there is no active administrator."""
    found = await Token.find_one(_usable(Purpose.SETUP, token))
    return found is not None and not await active_administrators()


async def make_first_administrator(
    token: str, username: str, email: str, password_hash: str, *, by: Actor
) -> User:
    """Create an account with the roles `admin` and `member`, use up the set-up token, and return
    the user.

    In one transaction. The address counts as verified without an email, because the operator has
    the link. Has the effects of `add_user`. `by` is a visitor or the command line: for a signed-in
    user without all permissions, MissingPermission is raised. Raises TokenSpent if the token is not
    valid or there is an administrator, and Taken; then the token stays valid. Counts the account
    for the dashboard after the commit.
    """
    roles = [role for name in (policy.ADMIN, policy.MEMBER) if (role := await Role.named(name))]

    async def work(tx: Tx) -> User:
        await hold_administrators(tx)
        used = await Token.change(
            _usable(Purpose.SETUP, token), {"$set": {"used_at": clock.now()}}, tx=tx
        )
        if not used or await active_administrators(tx=tx):
            raise TokenSpent
        return await add_user(
            username, email, password_hash, roles=roles, by=by, tx=tx, verified=True
        )

    user = await transaction(work)
    hourly_count.add(Counted.ACCOUNTS)
    return user


def _usable(purpose: Purpose, token: str) -> dict[str, Any]:
    """Return the filter for the unused, unexpired token of this purpose."""
    return {
        "purpose": purpose,
        "digest": digest_of(token),
        **_unused(),
    }


def _unused() -> dict[str, Any]:
    return {"used_at": None, "expires_at": {"$gt": clock.now()}}
