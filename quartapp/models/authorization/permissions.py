"""Which permissions a set of roles gives. `role` is a stored document."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from quartapp.models.factors.factor import waits_for_one

Role = Mapping[str, Any]
User = Mapping[str, Any]


def stored(role: Role) -> list[str]:
    """Return the permissions of a role, also those that this version does not know.

    Other values, written by hand, are ignored.
    """
    return [each for each in role.get("permissions") or () if isinstance(each, str)]


def permissions_of(roles: Collection[Role]) -> frozenset[str]:
    """Return the permissions of the roles together."""
    return frozenset(each for role in roles for each in stored(role))


def usable_roles(roles: Sequence[Role], *, shown: bool) -> list[Role]:
    """Return the roles that give their permissions: all, if a second factor was `shown`, else those
    that do not require one."""
    return [role for role in roles if not waits_for_one(role, shown=shown)]


def role_version(role: Role) -> int:
    """Return the stored version of a role; 0 if it has none, or one that is no number."""
    found = role.get("version")
    return found if isinstance(found, int) else 0


def principal_version(user: User, roles: Collection[Role]) -> int:
    """Return the version of what a user may do: the user's `authz_version` plus the versions of the
    roles that the user holds.

    Every change of what a user may do raises it. Editing a role raises the role's version. Taking a
    role away raises `authz_version` by more than the role's version.
    """
    return int(user.get("authz_version") or 0) + sum(map(role_version, roles))
