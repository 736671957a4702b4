"""The rule that users grant and manage no more permissions than they hold themselves.

Every check runs inside the transaction of the change. The transaction writes the user documents of
the actor and of the user who is managed, as do granting and revoking a role and removing a second
factor. It also shares the lock of the roles, which editing and deleting a role hold. So whatever
changes the permissions of either user conflicts with it: one of the two runs again and sees the
outcome of the other. The command line has no user and is not limited. See docs/adr/0074 and 0091.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

from beanie import PydanticObjectId

from quartapp import clock, policy
from quartapp.db.mongo import Tx
from quartapp.i18n import lazy_gettext as _
from quartapp.models.accounts import role_ends
from quartapp.models.authorization.permissions import permissions_of, stored, usable_roles
from quartapp.models.base.actor import Actor
from quartapp.models.base.record import documents
from quartapp.models.base.references import ROLES, SESSIONS, USERS, DomainError
from quartapp.models.factors.factor import has_shown_one

# Returns those of the permissions that the actor does not hold.
Lacks = Callable[[Collection[str]], Collection[str]]


class MissingPermission(DomainError):
    """The actor lacks permissions that `target` (a user, role or invitation) holds or would give.

    `missing` lists them in alphabetical order. `sentence` is one of the lazy texts below, and is
    filled with both.
    """

    def __init__(
        self, sentence: str, missing: Collection[str], target: str, field: str | None = None
    ) -> None:
        self.missing = sorted(missing)
        self.target = target
        self.field = field
        super().__init__(sentence % {"missing": ", ".join(self.missing), "target": target})


GIVE = _("You cannot grant the role %(target)s. It includes %(missing)s, which you do not have.")
CHANGE = _("You cannot change the role %(target)s. It includes %(missing)s, which you do not have.")
ADD = _("You cannot add %(missing)s to the role %(target)s, because you do not have it.")
DELETE = _(
    "You cannot delete the role %(target)s. Its users have %(missing)s, which you do not have."
)
MANAGE = _("You cannot manage %(target)s, who has permissions that you do not have: %(missing)s.")
INVITATION = _(
    "You cannot manage the invitation to %(target)s. It includes %(missing)s, which you do not "
    "have."
)


@dataclass(frozen=True, slots=True)
class Holdings:
    """The permissions of a user as the database stores them, also those that this version does not
    know.

    `everything` is true for the command line and for users who hold the role `admin`, which
    includes permissions that only a newer version knows.
    """

    permissions: frozenset[str] = frozenset()
    everything: bool = False

    @classmethod
    def of(cls, roles: Collection[Mapping[str, Any]]) -> "Holdings":
        """Return the permissions of these stored roles together."""
        return cls(
            permissions_of(roles),
            any(role.get("name") == policy.ADMIN for role in roles),
        )

    def lacks(self, wanted: Collection[str]) -> frozenset[str]:
        """Return those of the wanted permissions that are not held; empty if `everything` is
        true."""
        return frozenset() if self.everything else frozenset(wanted) - self.permissions


OPERATOR = Holdings(everything=True)


async def roles_of(user: Mapping[str, Any], tx: Tx | None) -> list[Mapping[str, Any]]:
    """Return the stored documents of the user's roles, leaving out roles that no longer exist or
    whose grant has expired. Reads the database."""
    return (await _roles_of_each([user], tx))[0]


async def _roles_of_each(
    users: Collection[Mapping[str, Any]], tx: Tx | None
) -> list[list[Mapping[str, Any]]]:
    """Return the stored documents of each user's roles, in the order of the users, read with one
    query. Roles that no longer exist, or whose grant has expired, are left out."""
    held = [role_ends.held_roles(user, clock.now()) for user in users]
    match = {"_id": {"$in": list(set().union(*held))}}
    roles = await documents(ROLES).find(match, session=tx).to_list(None)
    return [[role for role in roles if role["_id"] in ids] for ids in held]


async def usable(user: Mapping[str, Any], *, shown: bool, tx: Tx | None) -> Holdings:
    """Return what the user's roles allow now. Reads the database, and writes nothing.

    Leaves out expired grants, and roles that require a second factor, unless one was `shown`.
    """
    roles = await roles_of(user, tx)
    return Holdings.of(usable_roles(roles, shown=shown))


async def holdings_of(by: Actor, tx: Tx) -> Holdings:
    """Return the permissions of the actor, as the database has them now; OPERATOR for one without a
    user.

    Roles that require a second factor count only if the actor's session has shown one. Writes the
    actor's user document (see `_claimed`), so the answer stays true until the commit.
    """
    if by.user_id is None:
        return OPERATOR
    user = await _claimed(by.user_id, tx)
    session = await documents(SESSIONS).find_one({"_id": by.session_id}, session=tx) or {}
    return await usable(user, shown=has_shown_one(session, user), tx=tx)


async def require_to_manage(
    by: Actor, session: Mapping[str, Any], user_id: PydanticObjectId, tx: Tx
) -> None:
    """Raise MissingPermission if the user holds a permission that the actor does not hold.

    `session` is the stored session of the actor, empty if there is none. All roles of the user
    count, also those that require a second factor. Returns without a query if the actor is this
    user, or the command line. Otherwise writes both user documents (see `_claimed`).
    """
    if by.user_id is None or by.user_id == user_id:
        return
    actor = await _claimed(by.user_id, tx)
    # Granting a role to the user at the same time writes this document too.
    user = await _claimed(user_id, tx)
    own, theirs = await _roles_of_each([actor, user], tx)
    held = Holdings.of(usable_roles(own, shown=has_shown_one(session, actor)))
    if missing := held.lacks(Holdings.of(theirs).permissions):
        raise MissingPermission(MANAGE, missing, str(user.get("username")))


async def require_to_give(by: Actor, role_ids: Collection[PydanticObjectId], tx: Tx) -> None:
    """Raise MissingPermission if one of the roles has a permission that the actor does not hold.

    Returns without a query if `role_ids` is empty or the actor is the command line. Otherwise
    writes the actor's user document (see `_claimed`). Ids of roles that do not exist are ignored:
    the caller checks that, also for the command line.
    """
    if by.user_id is None or not role_ids:
        return
    held = await holdings_of(by, tx)
    roles = documents(ROLES).find({"_id": {"$in": list(role_ids)}}, session=tx)
    for role in await roles.to_list(None):
        for refusal in refusals_to_give(role["name"], stored(role), held.lacks):
            raise refusal


def refusals_to_give(
    name: str, permissions: Collection[str], lacks: Lacks
) -> list[MissingPermission]:
    """Return the error of giving somebody the role of this name with these permissions: one if the
    actor lacks any of them, else none."""
    missing = lacks(permissions)
    return [MissingPermission(GIVE, missing, name, "role")] if missing else []


async def _claimed(user_id: PydanticObjectId, tx: Tx) -> Mapping[str, Any]:
    """Increment `acts` in the user's document and return the document; empty if there is none.

    The write makes every other transaction that writes this document conflict with this one.
    """
    change = {"$inc": {"acts": 1}}
    return await documents(USERS).find_one_and_update({"_id": user_id}, change, session=tx) or {}
