"""Receipts: how many open tabs have acknowledged that an event ended their session."""

import asyncio
from typing import Any

from markupsafe import Markup
from quart import Blueprint, abort, flash, render_template
from quart_auth import login_required

from quartapp.auth import current_user
from quartapp.i18n import gettext as _
from quartapp.i18n import lazy_gettext
from quartapp.models import Event
from quartapp.models.accounts.bulk_action import Action, BulkAction, count_done
from quartapp.models.audit.receipt import Reach
from quartapp.models.base.references import linked_id
from quartapp.policy import Permission, may
from quartapp.routes.pagination import id_or_404

blueprint = Blueprint("receipts", __name__)

ACTION_LABELS = {
    Action.GRANT: lazy_gettext("Grant role"),
    Action.REVOKE: lazy_gettext("Revoke role"),
    Action.END_SESSIONS: lazy_gettext("End sessions"),
    Action.DISABLE: lazy_gettext("Disable accounts"),
}


@blueprint.get("/receipts/<event_id>")
@login_required
async def show(event_id: str) -> str:
    """Show the receipt of an event. 404 for an unknown event, and unless the user caused it or may
    read the audit log."""
    event = await Event.get(id_or_404(event_id))
    if event is None or not _may_read(event.actor):
        abort(404)
    await event.load_receipts()
    return await render_template("audit/receipt.html", event=event)


@blueprint.get("/receipts/bulk/<bulk_id>")
@login_required
async def show_bulk(bulk_id: str) -> str:
    """Show what became of an action for each user, and how many of their open tabs have
    acknowledged. 404 unless the user did it or may read the audit log."""
    found = await BulkAction.get(id_or_404(bulk_id))
    if found is None or not _may_read(found.by):
        abort(404)
    users, reach = await asyncio.gather(found.users(), found.reach())
    return await render_template(
        "accounts/bulk_receipt.html",
        action=found,
        label=ACTION_LABELS[found.action],
        users=users,
        done=count_done(found.results),
        receipt=receipt_element(f"/receipts/bulk/{found.id}", reach),
    )


async def flash_receipt(words: str, event: Event | None) -> None:
    """Flash the words as a success, followed by the receipt of the event if there is one.

    Call it after `wait_until_enforced`. live.js updates the receipt while acknowledgements are
    missing: see `element`.
    """
    text = Markup("{} {}").format(words, element(event)).rstrip() if event else words
    await flash(text, "success")


def element(event: Event) -> Markup:
    """Return the receipt of an event as HTML: see `receipt_element`."""
    return receipt_element(f"/receipts/{event.id}", event.reach, topic=f"receipts.{event.id}")


def receipt_element(address: str, reach: Reach, *, topic: str = "") -> Markup:
    """Return a receipt as HTML, empty if no open tab was ended. `address` is that of its page.

    While acknowledgements are missing, it is a live region that follows the topic, or without one
    is refreshed every second, and has a link to the page of the receipt, for browsers without
    JavaScript.
    """
    words = reach.sentence.strip()
    if not words:
        return Markup("")
    if not reach.pending:
        return Markup('<span class="receipt" data-source="{}">{}</span>').format(address, words)
    # Acknowledgements count as missed some time after the event, without a further change.
    follows = Markup('data-topics="{}" data-refresh="5"').format(topic)
    return Markup(
        '<span class="receipt" data-source="{0}" {1}>{2} <a href="{0}">{3}</a></span>'
    ).format(address, follows if topic else Markup('data-refresh="1"'), words, _("Refresh"))


def _may_read(actor: Any) -> bool:
    """Return whether the current user is this actor, or may read the audit log."""
    own = actor is not None and linked_id(actor) == current_user.user_id
    return own or may(current_user, Permission.EVENTS_READ)
