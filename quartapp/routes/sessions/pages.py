"""The active sessions of a user, and ending them."""

from typing import Any

from quart import Blueprint, abort, flash, render_template
from quart_auth import login_required, logout_user

from quartapp.auth import current_user, fresh_login_required, wait_until_enforced
from quartapp.i18n import gettext as _
from quartapp.i18n.devices import device_name
from quartapp.models import Session, User
from quartapp.models.sessions.reason import Reason
from quartapp.routes.audit.receipts import flash_receipt
from quartapp.routes.pagination import id_or_404
from quartapp.routes.redirects import see_other
from quartapp.routes.refusals import returns_to

blueprint = Blueprint("sessions", __name__)

HOME = "/account/sessions"


@blueprint.get("/account/sessions")
@login_required
async def mine(**_: object) -> str:
    """Show the user's active sessions, the current one first. Ignores its arguments."""
    sessions = await Session.of_user(current_user.user_id)
    sessions.sort(key=lambda session: session.id != current_user.session_id)
    return await render_template("sessions/list.html", sessions=sessions)


@blueprint.post("/account/sessions/<session_id>/end")
@returns_to(mine, HOME)
@login_required
@fresh_login_required
async def end(session_id: str) -> Any:
    """End a session of the user, and wait until no worker accepts it.

    Redirects (303) to the list with a message: that the device was signed out and what became of
    its tabs, or that the session had ended before. If it is the current session, removes the cookie
    and redirects to `/` without a message. Answers 404 for an id that is not a session of the user.
    """
    session = await Session.get(id_or_404(session_id))
    if session is None or session.user_id != current_user.user_id:
        abort(404)
    event = await session.end(Reason.ENDED_BY_USER, by=current_user.actor)
    if session.id == current_user.session_id:
        await wait_until_enforced()
        logout_user()
        return see_other("/")
    await wait_until_enforced(event)
    device = device_name(session.device)
    if event:
        await flash_receipt(_("%(device)s was signed out.", device=device), event)
    else:
        await flash(_("The session on %(device)s had already ended.", device=device), "info")
    return see_other("/account/sessions")


@blueprint.post("/account/sessions/end-others")
@returns_to(mine, HOME)
@login_required
@fresh_login_required
async def end_others() -> Any:
    """End all sessions of the user but the current one, and wait until no worker accepts them.

    Redirects (303) to the list with a message: how many were active and what became of their tabs,
    or that there were none.
    """
    user = await User.get(current_user.user_id)
    event = user and await user.end_sessions(
        Reason.ENDED_BY_USER, by=current_user.actor, keep=current_user.session_id
    )
    await wait_until_enforced(event)
    if event:
        await flash_receipt(_("Sessions ended: %(num)s.", num=event.details["count"]), event)
    else:
        await flash(_("You have no other active sessions."), "info")
    return see_other("/account/sessions")
