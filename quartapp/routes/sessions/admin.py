"""The list of active sessions for administrators."""

from quart import Blueprint, render_template
from quart_auth import login_required

from quartapp.auth import permission_required
from quartapp.models import Session
from quartapp.policy import Permission
from quartapp.routes.pagination import moment_and_id_after, next_page

blueprint = Blueprint("admin_sessions", __name__)

PAGE = 50


@blueprint.get("/sessions")
@login_required
@permission_required(Permission.SESSIONS_MANAGE)
async def index() -> str:
    """Show a page of the active sessions of all users, the last used first."""
    sessions, place = await Session.active_page(before=moment_and_id_after(), limit=PAGE)
    older = place and next_page(f"{place[0].isoformat()}_{place[1]}")
    return await render_template("sessions/admin_list.html", sessions=sessions, next=older)
