"""The list of active sessions for administrators."""

from ipaddress import ip_address

from quart import Blueprint, render_template, request
from quart_auth import login_required

from quartapp.auth import permission_required
from quartapp.i18n import gettext as _
from quartapp.models import User
from quartapp.models.sessions.session_list import FILTERED, Wanted, active_page
from quartapp.policy import Permission
from quartapp.routes.pagination import moment_and_id_after, next_page

blueprint = Blueprint("admin_sessions", __name__)

PAGE = 50


@blueprint.get("/sessions")
@login_required
@permission_required(Permission.SESSIONS_MANAGE)
async def index() -> str:
    """Show a page of the active sessions of all users, the last used first.

    The filters are `person`, a username; `ip`, an address; and `online`, if it is not empty. A
    username that nobody has, or a text that is no address, gives an error and no session.
    """
    person, ip = request.args.get("person", "").strip(), request.args.get("ip", "").strip()
    online = bool(request.args.get("online"))
    errors = {}
    user = await User.by_username(person) if person else None
    if person and user is None:
        errors["person"] = _("There is no user with this name.")
    if ip and not _is_address(ip):
        errors["ip"] = _("Enter an IP address, such as 192.0.2.1.")
    sessions, place = [], None
    if not errors:
        wanted = Wanted(user and user.id, ip or None, online)
        sessions, place = await active_page(wanted, before=moment_and_id_after(), limit=PAGE)
    older = place and next_page(f"{place[0].isoformat()}_{place[1]}")
    return await render_template(
        "sessions/admin_list.html",
        sessions=sessions,
        next=older,
        person=person,
        ip=ip,
        online=online,
        errors=errors,
        first=not request.args.get("after"),
        at_most=FILTERED if user or ip or online else None,
    )


def _is_address(text: str) -> bool:
    """Return whether the text is an IPv4 or IPv6 address."""
    try:
        ip_address(text)
    except ValueError:
        return False
    return True
