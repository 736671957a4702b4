"""Wrong second factors in a row: at most 100 for one password (NIST SP 800-63B-4, 3.2.2).

Who guesses at second factors knows the password. So the count goes with the password: a new one,
set by mail say, begins at zero. Browsers in which the user has signed in have a part of their own,
which a stranger with the password cannot use up.
"""

from pymongo import ReturnDocument

from quartapp.models.accounts.user import User
from quartapp.models.base.references import DomainError

# Together 100.
IN_KNOWN_BROWSERS, ELSEWHERE = 20, 80


class FactorsBlocked(DomainError):
    """There were so many wrong second factors that none is looked at any more."""

    def __init__(self) -> None:
        super().__init__(
            "There were too many wrong codes, so codes no longer sign in to this account. Set a "
            "new password by email (“Forgot your password?”), or sign in with a passkey alone."
        )


async def begin(user: User, *, known: bool) -> bool:
    """Count an attempt as wrong before it is judged, and return whether it is the last one.

    Raises FactorsBlocked, without counting, when there were too many. See `forgive`.
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
    """The attempt was right: the next one is the first in a row, from there."""
    lane = "known" if known else "others"
    mine = {"_id": user.id, "wrong_codes.credential": user.credential}
    await User.change(mine, {"$set": {f"wrong_codes.{lane}": 0}})
