"""One-time tokens: random, kept as a digest, used once, dead after a while."""

from datetime import datetime, timedelta
from enum import StrEnum

from pydantic import Field
from pymongo import IndexModel

from quartapp import clock, policy
from quartapp.database import Session as Tx
from quartapp.database import transaction
from quartapp.models.actor import Actor
from quartapp.models.guard import hold_administrators
from quartapp.models.record import Record
from quartapp.models.references import DomainError
from quartapp.models.role import Role
from quartapp.models.session import digest_of, new_token
from quartapp.models.user import User

SETUP_LASTS = timedelta(hours=1)


class Purpose(StrEnum):
    """What a token is good for."""

    SETUP = "setup"


class TokenSpent(DomainError):
    """The token was used, is too old, or has no purpose any more."""

    def __init__(self) -> None:
        super().__init__("This link was used already, or it is too old.")


class Token(Record):
    purpose: Purpose
    digest: str = Field(repr=False)
    created_at: datetime
    expires_at: datetime
    used_at: datetime | None = None

    class Settings:
        name = "tokens"
        indexes = [
            IndexModel([("digest", 1)], name="by_token", unique=True),
            IndexModel([("expires_at", 1)], name="kept", expireAfterSeconds=86400),
        ]


async def issue_setup() -> str | None:
    """A fresh token for making the first administrator, in place of all before it.

    None when there is an administrator.
    """
    if await User.active_administrators():
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
    found = await Token.find_one(_usable(token))
    return found is not None and not await User.active_administrators()


async def make_first_administrator(
    token: str, username: str, email: str, password_hash: str, *, by: Actor
) -> User:
    """Uses the token up. Raises TokenSpent and Taken; then the token is as good as before."""
    roles = [role for name in (policy.ADMIN, policy.MEMBER) if (role := await Role.named(name))]

    async def work(tx: Tx) -> User:
        await hold_administrators(tx)
        used = await Token.change(_usable(token), {"$set": {"used_at": clock.now()}}, tx=tx)
        if not used or await User.active_administrators(tx=tx):
            raise TokenSpent
        return await User.add(username, email, password_hash, roles=roles, by=by, tx=tx)

    return await transaction(work)


def _usable(token: str) -> dict[str, object]:
    return {
        "purpose": Purpose.SETUP,
        "digest": digest_of(token),
        "used_at": None,
        "expires_at": {"$gt": clock.now()},
    }
