"""The errors of creating, changing and deleting a role, and the rules about names and permissions.

The rules are functions that return all errors, so that a form can show them at once. `Role` applies
them in its transactions.
"""

from collections.abc import Collection
from typing import Protocol

from quartapp.i18n import lazy_gettext as _
from quartapp.models.authorization.privileges import ADD, CHANGE, Lacks, MissingPermission
from quartapp.models.base.references import DomainError
from quartapp.policy import ADMIN, DEFAULT_ROLES, MANAGEMENT_PERMISSIONS


class RoleTaken(DomainError):
    """Another role has this name."""

    field = "name"

    def __init__(self) -> None:
        super().__init__(_("A role with this name already exists."))


class BuiltInRole(DomainError):
    """The role is part of the application, and cannot be renamed, changed or deleted."""

    def __init__(self, text: str, field: str | None = None) -> None:
        self.field = field
        super().__init__(text)


class ManagementByDefault(DomainError):
    """Every new account gets the role, so it cannot have permissions to manage other users."""

    field = "permissions"

    def __init__(self, name: str, permissions: Collection[str]) -> None:
        super().__init__(
            _(
                "The role %(name)s is given to every new account, so it cannot include "
                "%(permissions)s.",
                name=name,
                permissions=", ".join(sorted(permissions)),
            )
        )


class RoleGone(DomainError):
    """The role was deleted while the operation was under way."""

    field = "role"

    def __init__(self, name: str) -> None:
        super().__init__(_("The role %(name)s was deleted in the meantime.", name=name))


class RoleChanged(DomainError):
    """Somebody has changed the role, which now has this `version`, since the editor read it."""

    def __init__(self, name: str, version: int) -> None:
        self.version = version
        super().__init__(
            _(
                "The role %(name)s was changed in the meantime. Check your changes, and save them "
                "again.",
                name=name,
            )
        )


class Stored(Protocol):
    """What the rules read of a role."""

    name: str

    @property
    def built_in(self) -> bool: ...

    @property
    def known(self) -> Collection[str]: ...


def refusals_of_new(name: str, permissions: Collection[str], lacks: Lacks) -> list[DomainError]:
    """Return why the actor cannot create a role of this name with these permissions:
    ManagementByDefault for a management permission of a role that new accounts get, and
    MissingPermission for permissions that the actor lacks."""
    return [*_management_by_default([name], permissions), *_lacking(name, permissions, lacks)]


def refusals_of_change(
    role: Stored,
    changes: Collection[str],
    *,
    name: str,
    permissions: Collection[str],
    lacks: Lacks,
) -> list[DomainError]:
    """Return why the actor cannot change these fields of the role, after which it has this name and
    these permissions; nothing without a change.

    BuiltInRole for a new name of a built-in role, and for any change of `admin` except
    `requires_factor` and `requestable`; ManagementByDefault; and MissingPermission if the actor
    lacks a known permission that the role has or gets.
    """
    if not changes:
        return []
    found: list[DomainError] = []
    if role.name == ADMIN and set(changes) - {"requires_factor", "requestable"}:
        text = _("The role %(name)s is built in and cannot be changed.", name=role.name)
        found.append(BuiltInRole(text))
    elif role.built_in and "name" in changes:
        text = _("The role %(name)s is built in and cannot be renamed.", name=role.name)
        found.append(BuiltInRole(text, "name"))
    found += _management_by_default([role.name, name], permissions)
    # The unknown permissions stay, so the actor does not need to hold them.
    if missing := lacks(role.known):
        found.append(MissingPermission(CHANGE, missing, role.name))
    return [*found, *_lacking(role.name, set(permissions).difference(role.known), lacks)]


def _lacking(name: str, added: Collection[str], lacks: Lacks) -> list[DomainError]:
    """Return MissingPermission if the actor lacks permissions that are added to the role."""
    missing = lacks(added)
    return [MissingPermission(ADD, missing, name, "permissions")] if missing else []


def _management_by_default(
    names: Collection[str], permissions: Collection[str]
) -> list[DomainError]:
    """Return ManagementByDefault for each of the names, in any case, that is that of a default role
    if one of the permissions is a management permission."""
    management = MANAGEMENT_PERMISSIONS.intersection(permissions)
    defaults = sorted(DEFAULT_ROLES.intersection(each.casefold() for each in names))
    return [ManagementByDefault(name, management) for name in defaults if management]
