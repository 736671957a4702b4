"""The activity page of a user, with the report "This wasn't me"."""

import asyncio
from typing import Any

from quart import Blueprint, abort, render_template
from quart_auth import login_required

from quartapp.activities import ACTIVITY_DISOWNED, EMAIL_CHANGED
from quartapp.auth import current_user, fresh_login_required, signed_in_user, wait_until_enforced
from quartapp.i18n import gettext as _
from quartapp.log import log
from quartapp.models import Session
from quartapp.models.audit import activity
from quartapp.routes import redirects
from quartapp.routes.audit.receipts import flash_receipt
from quartapp.routes.pagination import cut, id_after, id_or_404
from quartapp.routes.redirects import see_other
from quartapp.routes.refusals import returns_to

blueprint = Blueprint("timeline", __name__)

PAGE = 30


@blueprint.get("/account/timeline")
@login_required
async def index(**_: object) -> str:
    """Show 30 of the user's activities, newest first, and which of them the user has reported.

    `after` in the query is the id of the last one of the page before; an invalid one is ignored.
    """
    mine = current_user.user_id
    rows = await activity.page(mine, before=id_after(), limit=PAGE + 1)
    shown, older = cut(rows, PAGE, lambda event: event.id)
    sessions, disowned = await asyncio.gather(
        Session.named({event.session for event in shown if event.session}),
        activity.disowned(mine, [event.id for event in shown]),
    )
    return await render_template(
        "audit/activity.html",
        entries=[activity.Entry.of(event, mine, sessions) for event in shown],
        disowned=disowned,
        first=id_after() is None,
        older=older,
    )


@blueprint.post("/account/timeline/<event_id>/not-me")
@returns_to(index, "/account/timeline")
@login_required
@fresh_login_required
async def not_me(event_id: str) -> Any:
    """Report an activity as not being the user's, and answer 303 to the steps that secure the
    account.

    Has the effects of `activity.disown`: ends all other sessions, forgets all other browsers,
    queues emails and records the event ACTIVITY_DISOWNED. Logs the warning `activity_disowned`,
    waits until no worker accepts these sessions, and flashes how many there were and how many tabs
    have acknowledged. Reporting again repeats all of this. 404 for an event that the user cannot
    report. OwnSession, for the sign-in of the session in use, is answered with the activity page.
    """
    event = await activity.find(id_or_404(event_id), current_user.user_id) or abort(404)
    said = await activity.disown(event, by=current_user.actor)
    log.warning("activity_disowned", user=current_user.username, verb=event.verb)
    await wait_until_enforced(said)
    await flash_receipt(_("Other sessions signed out: %(num)s.", num=said.details["count"]), said)
    return see_other(redirects.AFTER_STRANGER)


@blueprint.get(redirects.AFTER_STRANGER)
@login_required
async def remains() -> str:
    """Show the steps that secure the account, with the latest report and the latest change of email
    address, if any. Also works without a report.
    """
    user = await signed_in_user()
    return await render_template(
        "audit/not_me.html",
        user=user,
        said=await activity.latest(user.id, ACTIVITY_DISOWNED),
        moved=await activity.latest(user.id, EMAIL_CHANGED),
    )
