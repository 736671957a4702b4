"""The list of active sessions for administrators, and ending one of them."""

from typing import Any

from quart import Blueprint, abort, flash, render_template, request
from quart_auth import login_required, logout_user

from quartapp.auth import (
    current_user,
    fresh_login_required,
    permission_required,
    wait_until_enforced,
)
from quartapp.forms.sessions import SessionFilterForm
from quartapp.i18n import gettext as _
from quartapp.i18n.devices import device_name
from quartapp.models import Session, User
from quartapp.models.sessions.reason import Reason
from quartapp.models.sessions.session_list import FILTERED, Wanted, active_page
from quartapp.policy import Permission
from quartapp.routes.accounts import previews
from quartapp.routes.accounts.user_pages import latest_activity
from quartapp.routes.addresses import user_page
from quartapp.routes.audit.receipts import flash_receipt
from quartapp.routes.pagination import id_or_404, moment_and_id_after, next_page
from quartapp.routes.redirects import origin, see_other
from quartapp.routes.refusals import returns_to

blueprint = Blueprint("admin_sessions", __name__)

PAGE = 50


@blueprint.get("/sessions")
@login_required
@permission_required(Permission.SESSIONS_MANAGE)
async def index() -> str:
    """Show a page of the active sessions of all users, the last used first.

    The filters are `person`, a username; `ip`, an address; and `online`, if it is not empty. A
    username that nobody has, or a text that is no address, gives an error and no session, with the
    status 200.
    """
    form = SessionFilterForm(formdata=request.args)
    form.validate()
    name, ip, online = form.person.data, form.ip.data, bool(form.online.data)
    user = await User.by_username(name) if name else None
    if name and user is None and not form.person.errors:
        form.refuse(_("There is no user with this name."), "person")
    sessions, place = [], None
    if not form.errors:
        wanted = Wanted(user and user.id, ip or None, online)
        sessions, place = await active_page(wanted, before=moment_and_id_after(), limit=PAGE)
    filtered = bool(name or ip or online)
    older = place and next_page(f"{place[0].isoformat()}_{place[1]}")
    return await render_template(
        "sessions/admin_list.html",
        sessions=sessions,
        **await latest_activity(sessions),
        next=older,
        form=form,
        filtered=filtered,
        first=not request.args.get("after"),
        at_most=FILTERED if filtered else None,
    )


@blueprint.post("/sessions/<session_id>/end")
@returns_to(previews.end_session, "/admin/sessions/{session_id}/end")
@login_required
@permission_required(Permission.SESSIONS_MANAGE)
@fresh_login_required
async def end(session_id: str) -> Any:
    """End a session of any user, wait until no worker accepts it, and redirect (303) to the list;
    with `from=user`, to the sessions of the user.

    The message says what became of its tabs, or that the session had ended before. Logs nothing. If
    it is the current session, removes the cookie and redirects to `/` without a message. Answers
    404 for an unknown session. The error of a user who holds more permissions is shown on
    the preview (403).
    """
    session = await Session.get(id_or_404(session_id)) or abort(404)
    event = await session.end(Reason.ENDED_BY_ADMIN, by=current_user.actor)
    await wait_until_enforced(event)
    if session.id == current_user.session_id:
        logout_user()
        return see_other("/")
    device = device_name(session.device)
    if event:
        await flash_receipt(_("The session on %(device)s ended.", device=device), event)
    else:
        await flash(_("The session on %(device)s had already ended.", device=device), "info")
    person = await User.get(session.user_id) if await origin() == "user" else None
    return see_other(user_page(person, "sessions") if person else "/admin/sessions")
