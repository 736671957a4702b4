"""Recovery codes, each of which replaces a lost second factor once.

They are random (ASVS 6.5.2), so a plain digest protects them. It needs no secret key: users can
still sign in with their codes if the operator has lost the key.
"""

import secrets

from quartapp.activities import RECOVERY_CODE_USED, RECOVERY_CODES_CREATED
from quartapp.db.mongo import Tx, transaction
from quartapp.i18n import lazy_gettext as _
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
    """The user has no second factor, so there is nothing that recovery codes could replace."""

    def __init__(self) -> None:
        super().__init__(_("Set up a second factor first. You then receive recovery codes."))


def make() -> list[str]:
    """Return ten new codes, each of 120 random bits, as six groups of four characters."""
    return ["-".join(_group() for _ in range(GROUPS)) for _ in range(HOW_MANY)]


def read(text: str) -> str:
    """Return the code that was typed: in any case, without spaces and dashes, with l for 1, and
    with the digits and letters of any keyboard (see `plain_code`)."""
    plain = "".join(c for c in plain_code(text).casefold() if c.isalnum())
    return plain.translate(_LOOKALIKES)


def digest(user: User, code: str) -> str:
    """Return the digest that is stored for a code, in any spelling that `read` accepts.

    It includes the user's id, so that equal codes of two users have different digests.
    """
    return digest_of(f"recovery code {user.id} {read(code)}")


async def use(user: User, code: str, *, by: Actor) -> int | None:
    """Use up a recovery code of the user; return how many are left, or None if the code is not
    valid.

    In one transaction, removes the code, records the event RECOVERY_CODE_USED, and notifies and
    emails the user. Of two requests with the same code at once, one gets None. Opens no session,
    and counts no attempt.
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
    """Replace the user's recovery codes by ten new ones, and return these in plain text.

    In an authorized transaction, which also records the event RECOVERY_CODES_CREATED, and notifies
    and emails the user. Ends no sessions. Raises NothingToRecover if the user has no second factor,
    SessionOver and RightsChanged. Does not check that the actor is the user or may manage them.
    """
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
