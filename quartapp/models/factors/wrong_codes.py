"""Counts of wrong second factors in a row: at most 100 for one password (NIST SP 800-63B-4, 3.2.2).

A visitor who enters codes has shown the password, so the counts start at zero with a new password,
for example after a reset by email. Browsers in which the user has signed in before have a count of
their own, which a stranger with the password cannot use up.
"""

from pymongo import ReturnDocument

from quartapp.i18n import lazy_gettext as _
from quartapp.models.accounts.user import User
from quartapp.models.base.references import DomainError

# Together 100, the maximum of NIST SP 800-63B-4.
IN_KNOWN_BROWSERS, ELSEWHERE = 20, 80


class FactorsBlocked(DomainError):
    """The count of wrong second factors is used up, so no code is checked."""

    def __init__(self) -> None:
        super().__init__(
            _(
                "There were too many wrong codes, so codes no longer sign in to this account. Set "
                "a new password by email (“Forgot your password?”), or sign in with a passkey "
                "alone."
            )
        )


async def begin(user: User, *, known: bool) -> bool:
    """Count an attempt as wrong before it is checked; return whether it is the last one allowed.

    One atomic update of the user document, in the count of known browsers if `known`, else in the
    other. Both counts start at zero if the password has changed since the last one. Raises
    FactorsBlocked, without counting, if the count is at its maximum. If the attempt succeeds, call
    `forgive`.
    """
    lane, most = ("known", IN_KNOWN_BROWSERS) if known else ("others", ELSEWHERE)
    same = {"$eq": ["$wrong_codes.credential", user.credential]}
    one_more = {"known": 0, "others": 0} | {lane: 1}
    found = await User.get_motor_collection().find_one_and_update(
        {
            "_id": user.id,
            "$or": [
                {"wrong_codes.credential": {"$ne": user.credential}},
                {f"wrong_codes.{lane}": {"$lt": most}},
            ],
        },
        [
            {
                "$set": {
                    "wrong_codes": {
                        name: {"$cond": [same, {"$add": [f"$wrong_codes.{name}", more]}, more]}
                        for name, more in one_more.items()
                    }
                    | {"credential": user.credential}
                }
            }
        ],
        projection={"wrong_codes": 1},
        return_document=ReturnDocument.AFTER,
    )
    if found is None:
        raise FactorsBlocked
    return found["wrong_codes"][lane] == most


async def forgive(user: User, *, known: bool) -> None:
    """Set the count of known browsers, or the other one, to zero, because an attempt succeeded.

    Changes nothing if the password has changed since.
    """
    lane = "known" if known else "others"
    mine = {"_id": user.id, "wrong_codes.credential": user.credential}
    await User.change(mine, {"$set": {f"wrong_codes.{lane}": 0}})
