"""The audit log for administrators."""

from quart import Blueprint, render_template
from quart_auth import login_required

from quartapp.auth import permission_required
from quartapp.models import Event
from quartapp.policy import Permission
from quartapp.routes.pagination import cut, id_after

blueprint = Blueprint("admin_events", __name__)

PAGE = 50


@blueprint.get("/events")
@login_required
@permission_required(Permission.EVENTS_READ)
async def index() -> str:
    """Show a page of the audit log, newest events first."""
    rows = await Event.page(before=id_after(), limit=PAGE + 1)
    events, older = cut(rows, PAGE, lambda event: event.id)
    return await render_template("audit/admin_events.html", events=events, next=older)
