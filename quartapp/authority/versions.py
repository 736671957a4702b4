"""Raising a version after another program has changed what a user may do without raising it.

Clients order the states of a session by `Principal.version`. Our own operations raise it with every
change. After a change by another program, such as the mongo shell, the workers whose sockets see
the difference raise it.
"""

from collections.abc import Iterable, Iterator

from beanie import PydanticObjectId

from quartapp.authority.session_rule import HeldRole, Principal
from quartapp.models import Role, User


async def raise_versions(pairs: Iterable[tuple[Principal, Principal]]) -> None:
    """Raise the versions of what has changed between each pair of states of one session.

    That is each role that has changed, once for all of its holders, or else the user. The updates
    are conditional on the version that was read, so one of several workers makes each. Raises the
    driver's errors.
    """
    roles: dict[tuple[PydanticObjectId, int], int] = {}
    users: set[tuple[PydanticObjectId, int]] = set()
    for before, now in pairs:
        changed = list(_changed_roles(before, now))
        for was, found in changed:
            key = found.id, found.version
            roles[key] = max(roles.get(key, 0), was.version + 1)
        if not changed:
            users.add((now.user_id, _user_version(now)))
    for (role_id, seen), version in roles.items():
        await Role.raise_version(role_id, seen=seen, version=version)
    for user_id, version in users:
        await User.raise_version(user_id, version)


def is_raised(before: Principal, now: Principal) -> bool:
    """Return whether the version of the user is higher in the later state, or that of a role."""
    return _user_version(before) < _user_version(now) or any(
        was.version < found.version for was, found in _roles_of_both(before, now)
    )


def has_lowered_role(before: Principal, now: Principal) -> bool:
    """Return whether a role of both states has a lower version in the later one, as after it was
    replaced by hand."""
    return any(found.version < was.version for was, found in _roles_of_both(before, now))


def _user_version(principal: Principal) -> int:
    """Return the part of the version that comes from the user's `authz_version`."""
    return principal.version - sum(role.version for role in principal.held)


def _changed_roles(before: Principal, now: Principal) -> Iterator[tuple[HeldRole, HeldRole]]:
    """Yield, before and now, the roles that have changed without a higher version."""
    for was, found in _roles_of_both(before, now):
        if found.version < was.version or (found.version == was.version and found != was):
            yield was, found


def _roles_of_both(before: Principal, now: Principal) -> Iterator[tuple[HeldRole, HeldRole]]:
    held = {role.id: role for role in before.held}
    return ((held[role.id], role) for role in now.held if role.id in held)
