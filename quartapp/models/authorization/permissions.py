"""Which permissions a set of roles gives. `role` is a stored document."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from quartapp.models.factors.factor import waits_for_one

Role = Mapping[str, Any]


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
