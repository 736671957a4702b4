"""Receipts: how many open tabs have acknowledged that an event ended their session."""

from markupsafe import Markup
from quart import Blueprint, abort, flash, render_template
from quart_auth import login_required

from quartapp.auth import current_user
from quartapp.models import Event
from quartapp.models.base.references import linked_id
from quartapp.policy import Permission, may
from quartapp.routes.pagination import id_or_404

blueprint = Blueprint("receipts", __name__)


@blueprint.get("/receipts/<event_id>")
@login_required
async def show(event_id: str) -> str:
    """Show the receipt of an event. 404 for an unknown event, and unless the user caused it or may
    read the audit log."""
    event = await Event.get(id_or_404(event_id))
    if event is None or not _may_read(event):
        abort(404)
    await event.load_receipts()
    return await render_template("audit/receipt.html", event=event)


async def flash_receipt(words: str, event: Event | None) -> None:
    """Flash the words as a success, followed by the receipt of the event if there is one.

    Call it after `wait_until_enforced`. live.js updates the receipt while acknowledgements are
    missing: see `element`.
    """
    text = Markup("{} {}").format(words, element(event)).rstrip() if event else words
    await flash(text, "success")


def element(event: Event) -> Markup:
    """Return the receipt of an event as HTML, empty if the event ended no open tab.

    While acknowledgements are missing, it is a live region that follows the receipts of the event,
    and has a link to the page of the receipt, for browsers without JavaScript.
    """
    words = event.reach.sentence.strip()
    if not words:
        return Markup("")
    address = f"/receipts/{event.id}"
    if not event.reach.pending:
        return Markup('<span class="receipt" data-source="{}">{}</span>').format(address, words)
    # Acknowledgements count as missed some time after the event, without a further change.
    return Markup(
        '<span class="receipt" data-source="{0}" data-topics="receipts.{1}" data-refresh="5">'
        '{2} <a href="{0}">Refresh</a></span>'
    ).format(address, event.id, words)


def _may_read(event: Event) -> bool:
    """Return whether the current user caused the event, or may read the audit log."""
    own = event.actor is not None and linked_id(event.actor) == current_user.user_id
    return own or may(current_user, Permission.EVENTS_READ)
