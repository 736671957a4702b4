"""Permissions, built-in roles, and the rules for who may do what. Nothing here awaits."""

from __future__ import annotations

from collections.abc import Collection
from enum import StrEnum
from typing import Any, Protocol

from quartapp.i18n import lazy_gettext as _


class Permission(StrEnum):
    """What a role can allow. Permissions are code; roles, which hold them, are data."""

    POSTS_WRITE = "posts.write"
    POSTS_MODERATE = "posts.moderate"
    USERS_READ = "users.read"
    USERS_MANAGE = "users.manage"
    ROLES_MANAGE = "roles.manage"
    SESSIONS_MANAGE = "sessions.manage"
    EVENTS_READ = "events.read"


LABELS = {
    Permission.POSTS_WRITE: _("Write posts and comments"),
    Permission.POSTS_MODERATE: _("Remove anyone's posts and comments"),
    Permission.USERS_READ: _("See all users"),
    Permission.USERS_MANAGE: _("Grant and revoke roles, disable accounts"),
    Permission.ROLES_MANAGE: _("Create, change and delete roles"),
    Permission.SESSIONS_MANAGE: _("See active sessions and end them"),
    Permission.EVENTS_READ: _("Read the audit log"),
}

# Permissions that act on other people or read about them. Every permission is either listed here or
# safe for an account that a stranger has just created.
MANAGEMENT_PERMISSIONS = frozenset(
    {
        Permission.POSTS_MODERATE,
        Permission.USERS_READ,
        Permission.USERS_MANAGE,
        Permission.ROLES_MANAGE,
        Permission.SESSIONS_MANAGE,
        Permission.EVENTS_READ,
    }
)

ADMIN = "admin"
MEMBER = "member"
# Roles that every new account receives. They never allow one of MANAGEMENT_PERMISSIONS.
DEFAULT_ROLES = frozenset({MEMBER})
# The descriptions are stored in English.
BUILT_IN_ROLES: dict[str, tuple[str, frozenset[Permission]]] = {
    ADMIN: (_("Has all permissions."), frozenset(Permission)),
    "moderator": (
        _("Moderates posts and comments."),
        frozenset({Permission.POSTS_WRITE, Permission.POSTS_MODERATE, Permission.USERS_READ}),
    ),
    MEMBER: (_("Writes posts and comments."), frozenset({Permission.POSTS_WRITE})),
}


class PermissionHolder(Protocol):
    """A signed-in user with permissions, or a visitor: `user_id` None and no permissions."""

    @property
    def user_id(self) -> Any: ...

    @property
    def permissions(self) -> Collection[str]: ...


class Authored(Protocol):
    """Something with one author, such as a post."""

    @property
    def author_id(self) -> Any: ...


def may(actor: PermissionHolder, permission: Permission) -> bool:
    """Return whether the actor has the permission."""
    return permission in actor.permissions


def owns(actor: PermissionHolder, thing: Authored) -> bool:
    """Return whether the actor is signed in and is the author."""
    return actor.user_id is not None and actor.user_id == thing.author_id


def may_edit(actor: PermissionHolder, thing: Authored) -> bool:
    """Return whether the actor is the author and has the permission to write posts."""
    return owns(actor, thing) and may(actor, Permission.POSTS_WRITE)


def may_delete(actor: PermissionHolder, thing: Authored) -> bool:
    """Return whether the actor is the author, with or without permissions, or a moderator."""
    return owns(actor, thing) or may(actor, Permission.POSTS_MODERATE)
