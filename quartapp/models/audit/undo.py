"""Undoing what an event of the audit log tells of: for ten minutes, by the opposite operation.

The opposite operation is an ordinary one, with all its checks, notifications and its own event.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import datetime, timedelta

from quartapp import clock
from quartapp.activities import (
    ACCOUNT_DEACTIVATED,
    ACCOUNT_DISABLED,
    ACCOUNT_ENABLED,
    ACCOUNT_RESTORED,
    DELETION_SCHEDULED,
    ROLE_EDITED,
    ROLE_END_CHANGED,
    ROLE_END_REMOVED,
    ROLE_GRANTED,
    ROLE_GRANTED_UNTIL,
    ROLE_REVOKED,
    Activity,
)
from quartapp.i18n import lazy_gettext as _
from quartapp.models.accounts.bulk_action import Action
from quartapp.models.accounts.user import User
from quartapp.models.audit.event import Event
from quartapp.models.base.actor import Actor
from quartapp.models.base.references import DomainError, linked_id
from quartapp.models.roles.refusals import RoleChanged
from quartapp.models.roles.role import Role
from quartapp.policy import Permission

UNDONE_WITHIN = timedelta(minutes=10)
# Events of one user that are read to find the latest one that changed the same thing.
LOOKED_AT = 50


class NotUndone(DomainError):
    """The event cannot be undone, or not any more."""


@dataclass(frozen=True, slots=True)
class Undo:
    """How events of an activity are undone.

    `permission` is what the actor needs. `effect` is a sentence that says what undoing does.
    `changes` are the activities that change the same thing: after another one of these, the event
    cannot be undone. `takes` is the opposite operation if it takes something from the user, for a
    preview.
    """

    permission: Permission
    effect: str
    run: Callable[[Event, Actor], Awaitable[Event | None]]
    changes: tuple[Activity, ...] = ()
    takes: Action | None = None


def undo_of(event: Event) -> Undo | None:
    """Return how the event can be undone; None if its activity has no opposite, if it happened
    automatically (`Event.automatic`), or if it is older than UNDONE_WITHIN. Reads nothing, so
    `undo` may refuse it nevertheless."""
    if event.automatic or clock.now() - event.at > UNDONE_WITHIN:
        return None
    return UNDOABLE.get(event.verb)


async def undo(event: Event, *, by: Actor) -> Event | None:
    """Do the opposite of what the event tells of, with an operation such as `User.revoke`, and
    return the event of that; None for an edit of a role, which ends no sessions.

    The caller has checked the permission of `undo_of(event)`, and waits with `wait_until_enforced`.
    Raises NotUndone if there is no opposite, the event happened automatically, the time is over,
    the same thing was changed again, the operation finds nothing to change, the end of the grant
    has passed, or the user or the role does not exist any more; RoleChanged for an edit after which
    the role was edited again; and the errors of the operation, such as LastAdministrator,
    MissingPermission and SessionOver.
    """
    return await (await require_undoable(event)).run(event, by)


async def require_undoable(event: Event) -> Undo:
    """Return how the event can be undone. Raises NotUndone if there is no opposite, the event
    happened automatically, the time is over, or the same thing was changed again. Changes nothing.

    An edit of a role is not compared with later edits here: `undo` does that.
    """
    how = undo_of(event)
    if how is None:
        raise NotUndone(_("This can be undone only in the first ten minutes."))
    if how.changes and await _was_changed_again(event, how.changes):
        raise NotUndone(_("This cannot be undone, because it was changed again."))
    return how


async def subject_and_role(event: Event) -> tuple[User, Role | None]:
    """Return the user that the event is about, and the role if it names one, else None. Raises
    NotUndone if one of them does not exist any more."""
    return await _user(event), await _role(event) if "role" in event.details else None


async def _was_changed_again(event: Event, changes: tuple[Activity, ...]) -> bool:
    """Return whether a later event of the subject, about the same role if there is one, is of one
    of these activities. Looks only at the subject's latest LOOKED_AT events of these activities,
    about whichever role; False if none of them is about the same one."""
    later = await Event.page(
        subject=linked_id(event.subject),
        verbs={activity.audit_name for activity in changes},
        limit=LOOKED_AT,
        fetch=(),
    )
    role = event.details.get("role")
    same = (each for each in later if each.details.get("role") == role)
    return next((each.id for each in same), event.id) != event.id


async def _user(event: Event) -> User:
    """Return the subject. Raises NotUndone if the account was deleted."""
    user = await User.get(linked_id(event.subject)) if event.subject else None
    if user is None:
        raise NotUndone(_("This cannot be undone, because the account was deleted."))
    return user


async def _role(event: Event) -> Role:
    """Return the role that the event names. Raises NotUndone if it was renamed or deleted."""
    role = await Role.named(str(event.details.get("role")))
    if role is None:
        raise NotUndone(_("This cannot be undone, because the role was renamed or deleted."))
    return role


def _happened(event: Event | None) -> Event:
    """Return the event. Raises NotUndone if there is none, because nothing was to be changed."""
    if event is None:
        raise NotUndone(_("This cannot be undone, because it was changed again."))
    return event


async def _revoke(event: Event, by: Actor) -> Event:
    return _happened(await (await _user(event)).revoke(await _role(event), by=by))


async def _grant(event: Event, by: Actor) -> Event:
    """Grant the role, with the end that it had, and return the event. Raises NotUndone if that has
    passed."""
    end = event.details.get("end")
    # Earlier versions stored it as a text.
    until = datetime.fromisoformat(end) if isinstance(end, str) else end
    if until and until <= clock.now():
        raise NotUndone(_("This cannot be undone, because the role would have ended by now."))
    return _happened(await (await _user(event)).grant(await _role(event), by=by, until=until))


async def _enable(event: Event, by: Actor) -> Event:
    return _happened(await (await _user(event)).enable(by=by))


async def _disable(event: Event, by: Actor) -> Event:
    return _happened(await (await _user(event)).disable(by=by))


async def _restore(event: Event, by: Actor) -> Event:
    return _happened(await (await _user(event)).restore(by=by))


async def _edit_back(event: Event, by: Actor) -> None:
    """Take back the permissions that an edit of a role added, add those that it removed, and
    restore `requires_factor`. Its name, description and `requestable` stay. Raises RoleChanged if
    the role was edited again, and NotUndone if it was renamed or deleted."""
    role, details = await _role(event), event.details
    added, removed = set(details.get("allowed", ())), set(details.get("forbidden", ()))
    if details.get("version") != role.version:
        raise RoleChanged(role.name, role.version)
    factor = details.get("requires_factor")
    await role.edit(
        name=role.name,
        description=role.description,
        permissions=[*(set(role.known) - added), *map(Permission, removed)],
        requires_factor=None if factor is None else not factor,
        seen_version=role.version,
        by=by,
    )


_ROLES = (ROLE_GRANTED, ROLE_GRANTED_UNTIL, ROLE_END_CHANGED, ROLE_END_REMOVED, ROLE_REVOKED)
_ACCESS = (ACCOUNT_DISABLED, ACCOUNT_ENABLED)
_CLOSING = (ACCOUNT_DEACTIVATED, DELETION_SCHEDULED, ACCOUNT_RESTORED)
_RESTORE = Undo(
    Permission.USERS_MANAGE,
    _("The account becomes active again. Sessions that have ended stay ended."),
    _restore,
    _CLOSING,
)
_REVOKE = Undo(
    Permission.USERS_MANAGE,
    _("The role is revoked again, and the user is signed out on all devices."),
    _revoke,
    _ROLES,
    takes=Action.REVOKE,
)
# By the audit name of the activity.
UNDOABLE = {
    ROLE_GRANTED.audit_name: _REVOKE,
    ROLE_GRANTED_UNTIL.audit_name: _REVOKE,
    ROLE_REVOKED.audit_name: Undo(
        Permission.USERS_MANAGE,
        _("The role is granted again. Sessions that have ended stay ended."),
        _grant,
        _ROLES,
    ),
    ACCOUNT_DISABLED.audit_name: Undo(
        Permission.USERS_MANAGE,
        _("The account is enabled again. Sessions that have ended stay ended."),
        _enable,
        _ACCESS,
    ),
    ACCOUNT_ENABLED.audit_name: Undo(
        Permission.USERS_MANAGE,
        _("The account is disabled again, and the user is signed out on all devices."),
        _disable,
        _ACCESS,
        takes=Action.DISABLE,
    ),
    ACCOUNT_DEACTIVATED.audit_name: _RESTORE,
    DELETION_SCHEDULED.audit_name: _RESTORE,
    ROLE_EDITED.audit_name: Undo(
        Permission.ROLES_MANAGE,
        _("The role gets the permissions back that it had before."),
        _edit_back,
    ),
}
