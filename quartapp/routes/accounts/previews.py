"""What a revocation would do: the pages at the addresses of revocations, which ask to confirm it.

They change nothing. The numbers of sessions and open tabs are those of this moment. To count open
tabs, a page inserts a barrier mark and waits for the answers of the workers
(`Barrier.count_open_tabs`).
"""

from typing import Any

from quart import Blueprint, abort, render_template
from quart_auth import login_required

from quartapp.auth import current_user, permission_required
from quartapp.i18n import gettext as _
from quartapp.models import Role, Session, User
from quartapp.models.accounts import preview as previews
from quartapp.models.accounts.bulk_action import Action, Outcome
from quartapp.models.accounts.preview import Planned
from quartapp.models.cluster.barrier_mark import TabsOf
from quartapp.policy import Permission
from quartapp.routes.pagination import id_or_404
from quartapp.runtime import runtime

blueprint = Blueprint("admin_previews", __name__)


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
    """Return the page about an action on one user. It says that the action would be refused for the
    last administrator. Answers 404 for an unknown user."""
    person = await User.by_username(username) or abort(404)
    seen = await previews.preview(
        action, role, [person], actor=current_user.user_id, lacks=current_user.lacks
    )
    (planned,) = seen.planned
    if seen.administrator_remains is False:
        planned = Planned(person, skipped=Outcome.LAST_ADMINISTRATOR)
    return await _page(
        title,
        label,
        TabsOf(users=[person.id]),
        person=person,
        back=f"/admin/users/{person.username}",
        skipped=planned.skipped,
        missing=planned.missing,
        sessions=planned.sessions,
        lost=planned.lost,
        remains=seen.administrator_remains,
        disables=action is Action.DISABLE,
    )


@blueprint.get("/sessions/<session_id>/end")
@login_required
@permission_required(Permission.SESSIONS_MANAGE)
async def end_session(session_id: str) -> str:
    """Show which session would end, and how many open tabs; or that it has ended already, or that
    its user has permissions which the administrator lacks. 404 for an unknown session."""
    session = await Session.get(id_or_404(session_id)) or abort(404)
    person = await User.get(session.user_id) or abort(404)
    missing = sorted(current_user.lacks_over(person, await Role.everyone()))
    skipped = Outcome.MISSING_PERMISSION if missing else None
    return await _page(
        _("End session"),
        _("End session"),
        TabsOf(sessions=[session.id]),
        person=person,
        device=session,
        back="/admin/sessions",
        skipped=skipped if session.is_active else Outcome.UNCHANGED,
        missing=missing,
        sessions=int(session.is_active),
    )


@blueprint.get("/roles/<name>/delete")
@login_required
@permission_required(Permission.ROLES_MANAGE)
async def delete_role(name: str) -> str:
    """Show how many users would lose the role, and how many sessions and open tabs would end, or
    why the deletion would be refused: the role is built in, or has permissions that the
    administrator lacks. 404 for an unknown role."""
    role = await Role.named(name) or abort(404)
    missing = sorted(current_user.lacks(role.permissions))
    skipped = Outcome.MISSING_PERMISSION if missing else None
    holders = await Role.holders([role])
    sessions = await previews.sessions_with_role(role)
    return await _page(
        _("Delete the role %(role)s", role=role.name),
        _("Delete role"),
        TabsOf(roles=[role.id]),
        role=role,
        back=f"/admin/roles/{role.name}",
        skipped=Outcome.BUILT_IN if role.built_in else skipped,
        missing=missing,
        holders=holders[role.id],
        sessions=sessions.number,
        more=sessions.more,
        lost=role.permissions,
    )


async def _page(title: str, label: str, whose: TabsOf, **words: Any) -> str:
    """Return the page with these `words`, and the number of open tabs, which it counts unless the
    action would be refused or do nothing (`skipped`)."""
    tabs = None if words["skipped"] else await runtime().barrier.count_open_tabs(whose)
    person = words.get("person")
    # Without one, the template would see the session of Quart.
    words.setdefault("session", None)
    return await render_template(
        "accounts/preview.html",
        title=title,
        label=label,
        tabs=tabs,
        own=person is not None and person.id == current_user.user_id,
        **words,
    )
