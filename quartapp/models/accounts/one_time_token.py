"""One-time tokens: random, kept as a digest, used once, dead after a while."""

import hmac
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any

from beanie import Link, PydanticObjectId
from pydantic import Field
from pymongo import IndexModel

from quartapp import clock, policy
from quartapp.db.mongo import Tx, transaction
from quartapp.models.accounts.administrators import active_administrators
from quartapp.models.accounts.registration import add_user
from quartapp.models.accounts.user import User
from quartapp.models.base.actor import Actor
from quartapp.models.base.record import Record
from quartapp.models.base.references import DomainError, linked_id, user_ref
from quartapp.models.base.tokens import digest_of, new_token
from quartapp.models.base.write_lock import hold_administrators
from quartapp.models.roles.role import Role

SETUP_LASTS = timedelta(hours=1)


class Purpose(StrEnum):
    """What a token is good for."""

    SETUP = "setup"
    CONFIRM = "confirm"
    RESET = "reset"
    RETURN = "return"
    UNDO = "undo"


# Who has closed their account may come back, and set a forgotten password to do so. And an intruder
# who has changed the address may have closed it.
FOR_CLOSED = {Purpose.RESET, Purpose.RETURN, Purpose.UNDO}


class TokenSpent(DomainError):
    """The token was used, is too old, or has no purpose any more."""

    def __init__(self) -> None:
        super().__init__("This link was used already or has expired.")


class Token(Record):
    """What a link is worth. One that was sent to somebody is bound to their password and to the
    address: when the account has another, the link is dead, whoever changed it and however. But the
    link that undoes a change of address is for the time after it, and outlives both.
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
        """A token for the user as just read. One of the same id is void from now on.

        Of the code a keyed digest is kept (see `code_digest`): a million of them are soon tried.
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
        """The token and its user, if it is worth something; that does not use it up."""
        found = await cls.find_one(_usable(purpose, token))
        user = await found.holder() if found else None
        return (found, user) if found and user else None

    @classmethod
    async def working(cls, purpose: Purpose, user: User, *, but: PydanticObjectId) -> int:
        """Return how many links of this purpose work for the user, apart from the one of the id.

        By the rule of `holder` and `usable`: a link that is void does not count.
        """
        match = {
            "_id": {"$ne": but},
            "purpose": purpose,
            "user.$id": user.id,
            "email": user.email,
            "credential": user.credential,
            **_unused(),
        }
        return await cls.find(match).count()

    async def holder(self, *, tx: Tx | None = None) -> User | None:
        """Whom it was made for, if nothing has happened since that voids it."""
        user = await User.get(linked_id(self.user), session=tx) if self.user else None
        if user is None:
            return None
        if not (user.may_enter if self.purpose in FOR_CLOSED else user.is_active):
            return None
        if self.purpose is Purpose.UNDO:
            return user
        return user if self.credential == user.credential else None

    async def use(self, *, tx: Tx) -> User:
        """Uses it up, and returns its user. Raises TokenSpent, for the slower of two as well."""
        now = clock.now()
        match = {"_id": self.id, "used_at": None, "expires_at": {"$gt": now}}
        if not await Token.change(match, {"$set": {"used_at": now}}, tx=tx):
            raise TokenSpent
        user = await self.holder(tx=tx)
        if user is None:
            raise TokenSpent
        return user


def code_digest(key: str, token_id: PydanticObjectId, code: str) -> str:
    """By which a code is kept: worth nothing to whoever has the database but not the key."""
    return hmac.digest(key.encode(), f"code {token_id} {code}".encode(), "sha256").hex()


async def issue_setup() -> str | None:
    """A fresh token for making the first administrator, in place of all before it.

    None when there is an administrator.
    """
    if await active_administrators():
        return None
    now = clock.now()
    await Token.change_all({"purpose": Purpose.SETUP, "used_at": None}, {"$set": {"used_at": now}})
    token, digest = new_token()
    await Token(
        purpose=Purpose.SETUP, digest=digest, created_at=now, expires_at=now + SETUP_LASTS
    ).insert()
    return token


async def setup_is_open(token: str) -> bool:
    """Whether the link still leads anywhere."""
    found = await Token.find_one(_usable(Purpose.SETUP, token))
    return found is not None and not await active_administrators()


async def make_first_administrator(
    token: str, username: str, email: str, password_hash: str, *, by: Actor
) -> User:
    """Use the token up and return the new administrator, whose address counts as verified.

    The operator who has the link vouches for it: no mail server may be set up yet. Raises
    TokenSpent and Taken; then the token is as good as before.
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

    return await transaction(work)


def _usable(purpose: Purpose, token: str) -> dict[str, Any]:
    return {
        "purpose": purpose,
        "digest": digest_of(token),
        **_unused(),
    }


def _unused() -> dict[str, Any]:
    return {"used_at": None, "expires_at": {"$gt": clock.now()}}
