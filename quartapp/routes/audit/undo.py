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
from quartapp.models import Event, User
from quartapp.models.accounts.bulk_action import Outcome
from quartapp.models.audit.undo import (
    NotUndone,
    Undo,
    require_undoable,
    subject_and_role,
    undo,
    undo_of,
)
from quartapp.policy import Permission
from quartapp.routes.accounts import previews
from quartapp.routes.addresses import user_page
from quartapp.routes.audit.log_entries import log_entries
from quartapp.routes.audit.receipts import flash_receipt
from quartapp.routes.pagination import id_or_404
from quartapp.routes.redirects import origin, see_other
from quartapp.routes.refusals import returns_to

blueprint = Blueprint("undo", __name__)


@blueprint.get("/events/<event_id>/undo")
@login_required
@permission_required(Permission.EVENTS_READ)
async def show(event_id: str) -> Any:
    """Show the entry and what undoing it would do, or why it cannot be undone: with a button,
    unless it would be refused. Undoes nothing. If sessions would end, counts their open tabs as
    `previews.planned` does. `from` says which page it leads back to. 404 for an unknown event."""
    event = await _find(event_id)
    (entry,) = await log_entries([event])
    shown: dict[str, Any] = {"entry": entry, "takes": False}
    try:
        how = await require_undoable(event)
        shown |= {"effect": how.effect, "takes": how.takes is not None}
        if not current_user.may(how.permission):
            shown |= {"skipped": Outcome.MISSING_PERMISSION, "missing": [how.permission]}
        elif how.takes:
            person, role = await subject_and_role(event)
            shown |= await previews.planned(person, how.takes, role)
    except NotUndone as refused:
        shown["refused"] = str(refused)
    came_from = await origin()
    back, trail = _page_of(came_from, event)
    return await previews.page(
        _("Undo this action"), _("Undo"), back=back, trail=trail, origin=came_from, **shown
    )


@blueprint.post("/events/<event_id>/undo")
@returns_to(show, "/admin/events/{event_id}/undo")
@login_required
@permission_required(Permission.EVENTS_READ)
@fresh_login_required
async def run(event_id: str) -> Any:
    """Undo the event, and answer 303 to the page that `from` names: the `user` whom it is about,
    the `dashboard`, or by default the audit log.

    Logs `authz_change`, waits until all workers enforce it, and flashes a success, with how many
    tabs have acknowledged if sessions ended. 404 for an unknown event. Raises Forbidden without the
    permission of the opposite operation. The errors of `undo`, such as NotUndone, are answered with
    the preview (422, or 403 for MissingPermission).
    """
    event = await _find(event_id)
    how = undo_of(event)
    if how and not current_user.may(how.permission):
        raise Forbidden(how.permission)
    opposite = await undo(event, by=current_user.actor)
    log.info("authz_change", undone=event.verb, by=current_user.username)
    await wait_until_enforced(opposite)
    await flash_receipt(_("The action was undone."), opposite)
    return see_other(_page_of(await origin(), event)[0])


async def _find(event_id: str) -> Event:
    """Return the event with its users. Answers 404 if there is none."""
    found = await Event.find_with_links(
        {"_id": id_or_404(event_id)}, limit=1, fetch=["actor", "subject"]
    )
    return found[0] if found else abort(404)


def _page_of(came_from: str, event: Event) -> tuple[str, str]:
    """Return the address and the name of the page from which the administrator came: the user's
    activity, the dashboard, or for anything else the audit log."""
    if came_from == "user" and isinstance(event.subject, User):
        return user_page(event.subject, "activity"), event.subject.username
    if came_from == "dashboard":
        return "/admin", _("Dashboard")
    return "/admin/events", _("Audit log")


def offered(event: Event) -> Undo | None:
    """Return how the current user can undo the event; None if it cannot be undone, or the user
    lacks a permission for it. A filter of the templates."""
    how = undo_of(event)
    allowed = how and current_user.may(how.permission) and current_user.may(Permission.EVENTS_READ)
    return how if allowed else None
