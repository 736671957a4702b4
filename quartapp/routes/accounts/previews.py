"""What a destructive action would do: the pages at the addresses of these actions, with the button.

They change nothing. The numbers of sessions and open tabs are those of this moment. To count open
tabs, a page inserts a barrier mark and waits for the answers of the workers
(`Barrier.count_open_tabs`). Every action of administrators that takes something away at once has
such a page, and no other confirmation: see docs/adr/0107-previews-in-the-console.md.
"""

import asyncio
from collections.abc import Mapping
from typing import Any

from quart import Blueprint, abort, render_template
from quart_auth import login_required

from quartapp.auth import current_user, permission_required
from quartapp.i18n import gettext as _
from quartapp.models import Role, Session, User
from quartapp.models.accounts import preview as previews
from quartapp.models.accounts.bulk_action import Action, Outcome
from quartapp.models.cluster.barrier_mark import TabsOf
from quartapp.policy import Permission
from quartapp.routes.accounts.user_pages import find, missing_over
from quartapp.routes.addresses import name_in, role_page, user_page
from quartapp.routes.pagination import id_or_404
from quartapp.routes.redirects import origin
from quartapp.runtime import runtime

blueprint = Blueprint("admin_previews", __name__)

# The tab of a user's page that leads to the preview, and shows the effect.
TAB_OF = {Action.REVOKE: "roles", Action.END_SESSIONS: "sessions"}


@blueprint.get("/users/<username>/grants/<role_name>/revoke")
@login_required
@permission_required(Permission.USERS_MANAGE)
async def revoke(username: str, role_name: str) -> str:
    """Show what revoking the role would do, or why it would be refused. 404 for an unknown user or
    role."""
    role = await Role.named(role_name) or abort(404)
    title = _("Revoke the role %(role)s", role=role.name)
    return await _of_user(username, Action.REVOKE, title, _("Revoke role"), role)


@blueprint.get("/users/<username>/disable")
@login_required
@permission_required(Permission.USERS_MANAGE)
async def disable(username: str) -> str:
    """Show what disabling the account would do, or why it would be refused. 404 for an unknown
    user."""
    return await _of_user(username, Action.DISABLE, _("Disable account"), _("Disable account"))


@blueprint.get("/users/<username>/sessions/end")
@login_required
@permission_required(Permission.SESSIONS_MANAGE)
async def end_sessions(username: str) -> str:
    """Show how many sessions and open tabs of the user would end, or why none would. 404 for an
    unknown user."""
    title = _("End all sessions")
    return await _of_user(username, Action.END_SESSIONS, title, title)


async def _of_user(
    username: str, action: Action, title: str, label: str, role: Role | None = None
) -> str:
    """Return the page about an action on one user. Answers 404 for an unknown user."""
    person = await find(username)
    return await page(
        title,
        label,
        back=user_page(person, TAB_OF.get(action, "")),
        trail=person.username,
        **await planned(person, action, role),
    )


async def planned(person: User, action: Action, role: Role | None = None) -> dict[str, Any]:
    """Return what the action would do to the user, as the macro `effects` shows it.

    Asks all workers for the open tabs, unless the action would be refused, as for the last
    administrator, or do nothing.
    """
    seen = await previews.preview(
        action, role, [person], actor=current_user.user_id, lacks=current_user.lacks
    )
    (plan,) = seen.planned
    last = seen.administrator_remains is False
    skipped = Outcome.LAST_ADMINISTRATOR if last else plan.skipped
    return {
        "person": person,
        "role": role,
        "skipped": skipped,
        "missing": plan.missing,
        "sessions": plan.sessions,
        "tabs": await _tabs(skipped, TabsOf(users=[person.id])),
        "lost": plan.lost,
        "remains": seen.administrator_remains,
        "disables": action is Action.DISABLE,
    }


@blueprint.get("/users/<username>/factors/reset")
@login_required
@permission_required(Permission.USERS_MANAGE)
async def reset_factors(username: str) -> str:
    """Show which second factors would be removed, how many sessions and open tabs would end, and
    which permissions the user would lose; or why it would be refused or do nothing. 404 for an
    unknown user."""
    person = await find(username)
    roles, active = await asyncio.gather(Role.everyone(), previews.active_sessions([person.id]))
    missing = missing_over(person, roles)
    skipped = None if person.factors else Outcome.UNCHANGED
    if missing:
        skipped = Outcome.MISSING_PERMISSION
    return await page(
        _("Remove all second factors"),
        _("Remove all second factors"),
        back=user_page(person),
        trail=person.username,
        person=person,
        skipped=skipped,
        missing=missing,
        sessions=active.get(person.id, 0),
        tabs=await _tabs(skipped, TabsOf(users=[person.id])),
        factors=person.factors,
        lost=previews.lost_without_factors(person, previews.roles_of(person, roles)),
    )


@blueprint.get("/sessions/<session_id>/end")
@login_required
@permission_required(Permission.SESSIONS_MANAGE)
async def end_session(session_id: str) -> str:
    """Show which session would end, and how many open tabs; or that it has ended already, or that
    its user has permissions which the administrator lacks. 404 for an unknown session."""
    session = await Session.get(id_or_404(session_id)) or abort(404)
    person = await User.get(session.user_id) or abort(404)
    missing = missing_over(person, await Role.everyone())
    skipped = Outcome.MISSING_PERMISSION if missing else None
    if not session.is_active:
        skipped = Outcome.UNCHANGED
    from_user = await origin() == "user"
    return await page(
        _("End session"),
        _("End session"),
        back=user_page(person, "sessions") if from_user else "/admin/sessions",
        trail=person.username if from_user else _("Active sessions"),
        origin="user" if from_user else "",
        person=person,
        device=session,
        skipped=skipped,
        missing=missing,
        sessions=int(session.is_active),
        tabs=await _tabs(skipped, TabsOf(sessions=[session.id])),
    )


@blueprint.get("/roles/<name>/delete")
@login_required
@permission_required(Permission.ROLES_MANAGE)
async def delete_role(name: str) -> str:
    """Show how many users would lose the role, and how many sessions and open tabs would end, or
    why the deletion would be refused: the role is built in, or has permissions that the
    administrator lacks. 404 for an unknown role."""
    role = await Role.named(name_in(name)) or abort(404)
    missing = sorted(current_user.lacks(role.permissions))
    skipped = Outcome.MISSING_PERMISSION if missing else None
    if role.built_in:
        skipped = Outcome.BUILT_IN
    holders, sessions = await asyncio.gather(
        Role.holders([role]), previews.sessions_with_role(role)
    )
    return await page(
        _("Delete the role %(role)s", role=role.name),
        _("Delete role"),
        back=role_page(role),
        trail=role.name,
        role=role,
        skipped=skipped,
        missing=missing,
        holders=holders[role.id],
        sessions=sessions.number,
        more=sessions.more,
        tabs=await _tabs(skipped, TabsOf(roles=[role.id])),
        lost=role.permissions,
    )


async def _tabs(skipped: Outcome | None, whose: TabsOf) -> Any:
    """Return the number of open tabs, which it asks the workers for; None, without asking, if the
    action would be refused or do nothing."""
    return None if skipped else await runtime().barrier.count_open_tabs(whose)


# What the template reads. Without these, it would see names of Quart and of the layout.
NOTHING: Mapping[str, Any] = {"session": None, "person": None, "takes": True}


async def page(title: str, label: str, *, back: str, trail: str, **effects: Any) -> str:
    """Return the page of a preview, with a button named `label` that does the action unless it
    would be refused or do nothing (`skipped`). `back` is the address of the page that led here,
    `trail` its name, and `effects` what `accounts/preview.html` shows."""
    shown = {**NOTHING, **effects}
    person = shown["person"]
    return await render_template(
        "accounts/preview.html",
        title=title,
        label=label,
        back=back,
        trail=trail,
        own=person is not None and person.id == current_user.user_id,
        **shown,
    )
