"""Codes on paper, for whoever has lost the second factor: each stands in for it once.

They are random enough (ASVS 6.5.2) for a plain digest, which no key is needed to check: that a
secret key was lost must not shut out those who still have the paper.
"""

import secrets

from quartapp.activities import RECOVERY_CODE_USED, RECOVERY_CODES_CREATED
from quartapp.db.mongo import Tx, transaction
from quartapp.models.accounts.user import User
from quartapp.models.audit.recording import record
from quartapp.models.authorization.transaction import authorized_transaction
from quartapp.models.base.actor import Actor
from quartapp.models.base.references import DomainError
from quartapp.models.base.tokens import digest_of
from quartapp.validation import plain_code

HOW_MANY = 10
GROUPS, GROUP = 6, 4
# Crockford's: without the letters that look like digits, and u.
ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"
_LOOKALIKES = str.maketrans("oil", "011")


class NothingToRecover(DomainError):
    """There is no second factor that a code could stand in for."""

    def __init__(self) -> None:
        super().__init__("Set up a second factor first. You then receive recovery codes.")


def make() -> list[str]:
    """A set of codes of 120 bits each, in groups."""
    return ["-".join(_group() for _ in range(GROUPS)) for _ in range(HOW_MANY)]


def read(text: str) -> str:
    """Return the code that was typed: in any case, without spaces and dashes, with l for 1, and
    with the digits and letters of any keyboard (see `plain_code`)."""
    plain = "".join(c for c in plain_code(text).casefold() if c.isalnum())
    return plain.translate(_LOOKALIKES)


def digest(user: User, code: str) -> str:
    """By which it is kept: of no worth for another account."""
    return digest_of(f"recovery code {user.id} {read(code)}")


async def use(user: User, code: str, *, by: Actor) -> int | None:
    """Uses it up, and tells its owner. How many are left; None if it is not one of theirs.

    Of two who come with one code at once, one is let in.
    """
    mine = digest(user, code)

    async def work(tx: Tx) -> int | None:
        unused = {"_id": user.id, "recovery_codes": mine}
        if not await User.change(unused, {"$pull": {"recovery_codes": mine}}, tx=tx):
            return None
        after = await User.get(user.id, session=tx)
        left = len(after.recovery_codes) if after else 0
        await record(RECOVERY_CODE_USED, user, by=by, tx=tx, left=left)
        return left

    return await transaction(work)


async def renew(user: User, *, by: Actor) -> list[str]:
    """A new set, and the old one is void. Raises NothingToRecover."""
    codes = make()

    async def work(tx: Tx) -> None:
        current = await User.get(user.id, session=tx)
        if current is None or not current.factors:
            raise NothingToRecover
        change = {"recovery_codes": [digest(user, code) for code in codes]}
        await User.change({"_id": user.id}, {"$set": change}, tx=tx)
        await record(RECOVERY_CODES_CREATED, user, by=by, tx=tx)

    await authorized_transaction(by, work)
    return codes


def _group() -> str:
    return "".join(secrets.choice(ALPHABET) for _ in range(GROUP))
