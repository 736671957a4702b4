"""The list of active sessions for administrators."""

from quart import Blueprint, render_template
from quart_auth import login_required

from quartapp.auth import permission_required
from quartapp.models import Session
from quartapp.policy import Permission
from quartapp.routes.pagination import cut, moment_and_id_after

blueprint = Blueprint("admin_sessions", __name__)

PAGE = 50


@blueprint.get("/sessions")
@login_required
@permission_required(Permission.SESSIONS_MANAGE)
async def index() -> str:
    """Show a page of the active sessions of all users, the last used first."""
    rows = await Session.active_page(before=moment_and_id_after(), limit=PAGE + 1)
    sessions, older = cut(rows, PAGE, lambda row: f"{row.seen_at.isoformat()}_{row.id}")
    return await render_template("sessions/admin_list.html", sessions=sessions, next=older)
