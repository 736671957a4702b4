"""Undoing an entry of the audit log."""

from typing import Any

from quart import Blueprint, abort
from quart_auth import login_required

from quartapp.auth import (
    Forbidden,
    current_user,
    fresh_login_required,
    permission_required,
    wait_until_enforced,
)
from quartapp.i18n import gettext as _
from quartapp.log import log
from quartapp.models import Event
from quartapp.models.audit.undo import Undo, undo, undo_of
from quartapp.policy import Permission
from quartapp.routes.audit import admin
from quartapp.routes.audit.receipts import flash_receipt
from quartapp.routes.pagination import id_or_404
from quartapp.routes.redirects import see_other
from quartapp.routes.refusals import returns_to

blueprint = Blueprint("undo", __name__)


async def show_log(event_id: str) -> Any:
    """Return the audit log, for errors of `run`. Ignores its argument."""
    return await admin.index()


@blueprint.post("/events/<event_id>/undo")
@returns_to(show_log, "/admin/events")
@login_required
@permission_required(Permission.EVENTS_READ)
@fresh_login_required
async def run(event_id: str) -> Any:
    """Undo the event with the opposite operation, and answer 303 to the audit log.

    Logs `authz_change`, waits until all workers enforce it, and flashes a success, with how many
    tabs have acknowledged if sessions ended. 404 for an unknown event. Raises Forbidden without the
    permission of the opposite operation. The errors of `undo`, such as NotUndone, are answered with
    the audit log (422, or 403 for MissingPermission).
    """
    event = await Event.get(id_or_404(event_id)) or abort(404)
    how = undo_of(event)
    if how and not current_user.may(how.permission):
        raise Forbidden(how.permission)
    opposite = await undo(event, by=current_user.actor)
    log.info("authz_change", undone=event.verb, by=current_user.username)
    await wait_until_enforced(opposite)
    await flash_receipt(_("The action was undone."), opposite)
    return see_other("/admin/events")


def offered(event: Event) -> Undo | None:
    """Return how the current user can undo the event; None if it cannot be undone, or the user
    lacks a permission for it. A filter of the templates."""
    how = undo_of(event)
    allowed = how and current_user.may(how.permission) and current_user.may(Permission.EVENTS_READ)
    return how if allowed else None
