"""The dashboard for administrators."""

from collections.abc import Sequence
from typing import Any

from quart import Blueprint, render_template
from quart_auth import login_required

from quartapp import clock
from quartapp.activities import ROLE_GRANTED, ROLE_GRANTED_UNTIL, ROLE_REVOKED, catalogue
from quartapp.auth import current_user, permission_required
from quartapp.i18n import lazy_gettext as _
from quartapp.models import Event, Mail, Worker
from quartapp.models.base.counting import CappedCount
from quartapp.models.cluster.worker import WorkerState
from quartapp.models.sessions.session_list import count_signed_in
from quartapp.models.statistics.hourly_count import Counted, HourlyCount
from quartapp.policy import Permission, may
from quartapp.routes.audit.log_entries import log_entries
from quartapp.routes.dashboard import charts

blueprint = Blueprint("dashboard", __name__)

# Each of them shows a part of the page.
PERMISSIONS = (
    Permission.USERS_READ,
    Permission.SESSIONS_MANAGE,
    Permission.USERS_MANAGE,
    Permission.EVENTS_READ,
)
LATEST = (ROLE_GRANTED, ROLE_GRANTED_UNTIL, ROLE_REVOKED)
ENTRIES, MAILS = 8, 5
NAMES = {
    Counted.SIGN_INS: _("Sign-ins"),
    Counted.FAILURES: _("Failed attempts"),
    Counted.ACCOUNTS: _("New accounts"),
}
# A worker writes a heartbeat every half second. One that has not for so long may be dead.
SILENT_SECONDS = 5.0


@blueprint.get("")
@login_required
@permission_required(*PERMISSIONS)
async def show() -> str:
    """Show the parts that the user may see: the signed-in users with `sessions.manage`; the workers
    and numbers of emails also with `users.manage`, which shows the failing emails too; the charts
    with `users.read`; and the latest grants and revocations with `events.read`."""
    parts: dict[str, Any] = {}
    if may(current_user, Permission.SESSIONS_MANAGE):
        parts["signed_in"] = await count_signed_in()
    if may(current_user, Permission.SESSIONS_MANAGE) or may(current_user, Permission.USERS_MANAGE):
        parts |= await _system()
    if may(current_user, Permission.USERS_MANAGE):
        parts["troubled"] = await Mail.troubled(limit=MAILS)
        parts["mail_subjects"] = {name: email.subject for name, email in catalogue.emails.items()}
    if may(current_user, Permission.USERS_READ):
        parts |= await _statistics()
    if may(current_user, Permission.EVENTS_READ):
        verbs = [activity.audit_name for activity in LATEST]
        parts["entries"] = await log_entries(await Event.page(verbs=verbs, limit=ENTRIES))
    return await render_template("dashboard/show.html", **parts)


async def _system() -> dict[str, Any]:
    """Return the workers, the number of their tabs, the longest lag of their change streams, and
    the numbers of emails. Workers without a heartbeat for SILENT_SECONDS are listed, but their tabs
    and lag do not count."""
    workers = await Worker.running()
    running = [worker for worker in workers if worker.age < SILENT_SECONDS]
    return {
        "workers": workers,
        "silent_after": SILENT_SECONDS,
        "tabs": CappedCount(
            sum(worker.sockets or 0 for worker in running),
            more=any(worker.sockets is None for worker in running),
        ),
        "lag": _longest_lag(running),
        "mails": await Mail.numbers(),
    }


def _longest_lag(workers: Sequence[WorkerState]) -> float | None:
    """Return the lag of the change stream that is furthest behind; None if none is known."""
    return max((worker.lag for worker in workers if worker.lag is not None), default=None)


async def _statistics() -> dict[str, Any]:
    """Return the counts of the last day and month in the time zone of the reader."""
    now = clock.now()
    counts = await HourlyCount.since(charts.month_start(now))
    day, month = charts.last_day(counts, now), charts.last_month(counts, now)
    return {"day": day, "month": month, "names": NAMES}
