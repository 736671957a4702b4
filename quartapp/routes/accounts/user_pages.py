"""The tabs of a user's page for administrators. Each is a page with the same header.

`overview_sent` and `roles_sent` are for `returns_to`: they show a tab with the submitted values in
its forms.
"""

import asyncio
from collections.abc import Sequence
from typing import Any

from quart import Blueprint, abort, render_template
from quart_auth import login_required

from quartapp.activities import SIGNED_IN, catalogue
from quartapp.auth import Forbidden, current_user, permission_required
from quartapp.forms.accounts import AccountExpiryForm
from quartapp.forms.roles import GrantForm
from quartapp.i18n import lazy_gettext as _
from quartapp.models import Event, Role, Session, User
from quartapp.models.accounts import explain
from quartapp.models.accounts.preview import roles_of
from quartapp.models.authorization.privileges import MANAGE, MissingPermission
from quartapp.models.sessions.session_list import latest_entries
from quartapp.policy import Permission, may
from quartapp.routes.addresses import name_in, user_page
from quartapp.routes.audit.log_entries import log_entries

blueprint = Blueprint("admin_user_pages", __name__)

# The last part of the address of each tab, with its title and its template.
TABS = {
    "": (_("Overview"), "accounts/admin_user_overview.html"),
    "roles": (_("Roles"), "accounts/admin_user_roles.html"),
    "sessions": (_("Sessions"), "accounts/admin_user_sessions.html"),
    "activity": (_("Activity"), "accounts/admin_user_activity.html"),
}
ENTRIES = 20


@blueprint.get("/users/<username>")
@login_required
@permission_required(Permission.USERS_READ)
async def overview(username: str) -> Any:
    """Show the account of a user, and what can be done to it. 404 if there is none of this name."""
    return await overview_tab(await find(username))


@blueprint.get("/users/<username>/roles")
@login_required
@permission_required(Permission.USERS_READ)
async def roles(username: str) -> Any:
    """Show the roles of a user, what would be lost without each, and why the user has each
    permission. 404 for an unknown user."""
    return await roles_tab(await find(username))


@blueprint.get("/users/<username>/sessions")
@login_required
@permission_required(Permission.USERS_READ)
async def sessions(username: str) -> Any:
    """Show the active sessions of a user. 404 for an unknown user."""
    person = await find(username)
    active, everyone = await _sessions_and_roles(person)
    return await _page(
        person,
        "sessions",
        active,
        missing=missing_over(person, everyone),
        sessions=active,
        **await latest_activity(active),
    )


async def latest_activity(sessions: Sequence[Session]) -> dict[str, Any]:
    """Return what the lists of sessions show of the latest entry of the audit log that was recorded
    in each session: the entries and the names of activities. No entries without `events.read`, and
    none for a session in which nothing happened after the sign-in, whose time the lists show."""
    reads = may(current_user, Permission.EVENTS_READ)
    found = await latest_entries(sessions) if reads else {}
    latest = {each: entry for each, entry in found.items() if entry.verb != SIGNED_IN.audit_name}
    return {"latest": latest, "activities": catalogue.log_labels()}


@blueprint.get("/users/<username>/activity")
@login_required
@permission_required(Permission.USERS_READ)
async def activity(username: str) -> Any:
    """Show the latest ENTRIES entries of the audit log about a user. 404 for an unknown user."""
    person = await find(username)
    active, events = await asyncio.gather(
        Session.of_user(person.id),
        Event.page(subject=person.id, common=person.common_events, limit=ENTRIES),
    )
    return await _page(person, "activity", active, entries=await log_entries(events))


async def overview_sent(username: str, **_: object) -> Any:
    """Return the overview with the submitted expiry in its form. Ignores other arguments of the
    URL. Answers 404 for an unknown user, and raises Forbidden without users.read."""
    return await overview_tab(await find(username), await AccountExpiryForm.from_request())


async def roles_sent(username: str, **_: object) -> Any:
    """Return the tab with the roles and the submitted grant in its form. Ignores other arguments of
    the URL. Answers 404 for an unknown user, and raises Forbidden without users.read."""
    return await roles_tab(await find(username), await GrantForm.from_request())


async def overview_tab(person: User, expiry: AccountExpiryForm | None = None) -> Any:
    """Return the tab with the account, the roles and the form for the expiry; its status is that of
    the form, 200 without one. Raises Forbidden without users.read, which the sender of a rejected
    form may lack."""
    _require_reader()
    active, everyone = await _sessions_and_roles(person)
    form = expiry or AccountExpiryForm()
    return await _page(
        person,
        "",
        active,
        form.status,
        missing=missing_over(person, everyone),
        held=roles_of(person, everyone),
        expiry=form,
    )


async def roles_tab(person: User, grant: GrantForm | None = None) -> Any:
    """Return the tab with the roles of the user, why they have each permission, and the form that
    grants one of the other roles; its status is that of the form, 200 without one. Raises Forbidden
    without users.read."""
    _require_reader()
    active, everyone = await _sessions_and_roles(person)
    held = roles_of(person, everyone)
    form = grant or GrantForm()
    form.offer((role for role in everyone if role not in held), lacks=current_user.lacks)
    explained = await explain.held_roles(person, held)
    return await _page(
        person,
        "roles",
        active,
        form.status,
        missing=missing_over(person, everyone),
        held=explained,
        permissions=explain.by_permission(explained),
        form=form,
        # Whether the form is about a role that the user has.
        changing=(form.role.data or "").casefold() in {role.name.casefold() for role in held},
        blank=GrantForm(),
    )


async def _sessions_and_roles(person: User) -> tuple[list[Session], list[Role]]:
    """Return the active sessions of the user, and all roles. Reads both at the same time."""
    return await asyncio.gather(Session.of_user(person.id), Role.everyone())


def _require_reader() -> None:
    """Raise Forbidden without users.read."""
    if not may(current_user, Permission.USERS_READ):
        raise Forbidden(Permission.USERS_READ)


def require_to_manage(person: User, everyone: Sequence[Role]) -> None:
    """Raise MissingPermission if the user has a permission that the administrator lacks."""
    if missing := missing_over(person, everyone):
        raise MissingPermission(MANAGE, missing, person.username)


def missing_over(person: User, everyone: Sequence[Role]) -> list[str]:
    """Return the permissions of the user that the administrator lacks, in alphabetical order: with
    any of them, the administrator cannot manage the user."""
    return sorted(current_user.lacks_over(person, everyone))


async def _page(
    person: User, tab: str, active: Sequence[Session], status: int = 200, **shown: Any
) -> Any:
    """Return a tab, with what is `shown` in it, and the status. Its header tells from the active
    sessions whether the user has an open page, and when they were last seen."""
    seen = [person.seen_at, *(session.seen_at for session in active)]
    page = await render_template(
        TABS[tab][1],
        person=person,
        url=user_page(person),
        here=user_page(person, tab),
        links=[
            {"href": user_page(person, name), "text": text}
            for name, (text, _template) in TABS.items()
        ],
        active=len(active),
        online=any(session.online for session in active),
        last_seen=max(filter(None, seen), default=None),
        **shown,
    )
    return page, status


async def find(username: str) -> User:
    """Return the user that this part of an address stands for. Answers 404 if there is none."""
    return await User.by_username(name_in(username)) or abort(404)
