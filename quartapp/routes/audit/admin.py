"""The audit log for administrators."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import urlencode

from beanie import PydanticObjectId
from quart import Blueprint, Response, abort, flash, render_template, request
from quart_auth import login_required
from werkzeug.datastructures import MultiDict

from quartapp import clock
from quartapp.activities import catalogue
from quartapp.auth import current_user, live_permission, permission_required
from quartapp.forms.audit import EventFilterForm, local_value
from quartapp.i18n import gettext as _
from quartapp.i18n.times import current_zone
from quartapp.log import log
from quartapp.models.audit.export import Format, export, record_export
from quartapp.models.audit.search import EXAMINED, EventFilter, EventPage, find_person, page
from quartapp.policy import Permission
from quartapp.routes.audit.log_entries import log_entries
from quartapp.routes.pagination import id_after, id_parameter
from quartapp.routes.redirects import see_other, with_next

blueprint = Blueprint("admin_events", __name__)

PAGE = 50
EXPORT_ROWS, EXPORT_SECONDS = 100_000, 600
# How many exports of one worker run at the same time. Others wait.
_running = asyncio.Semaphore(2)


@blueprint.get("/events")
@login_required
@permission_required(Permission.EVENTS_READ)
async def index() -> Any:
    """Show a page of the entries that the filter in the query selects, newest first.

    With an error in the filter, shows no entries, and answers 422.
    """
    form = filter_form()
    wanted = await wanted_events(form)
    shown = EventPage([])
    if wanted is not None:
        after, before = id_after(), id_parameter("before")
        shown = await page(wanted, after=None if before else after, before=before, size=PAGE)
    text = await render_template(
        "audit/admin_events.html",
        form=form,
        entries=await log_entries(shown.events),
        newer=shown.newer and _address(before=shown.newer),
        older=shown.older and _address(after=shown.older),
        examined=EXAMINED if shown.partial else None,
        filtered=wanted is None or not wanted.is_empty,
        query=urlencode(_filters()),
        local_value=local_value(current_zone()),
        export_rows=EXPORT_ROWS,
    )
    return text, 422 if wanted is None else 200


@blueprint.get("/events/export")
@login_required
@permission_required(Permission.EVENTS_READ)
async def export_events() -> Any:
    """Answer with the entries that the filter selects as a file of the format in the query, `jsonl`
    or `csv`; 404 for another format. An error in the filter answers as `index` does.

    Redirects (303) to `/confirm` with a message if the session is not fresh, and to the log if the
    link is on a page of another site, because a download changes something: it records the audit
    event AUDIT_EXPORTED and logs `audit_exported` before the first byte. It sends at most
    EXPORT_ROWS entries, for at most EXPORT_SECONDS, and stops when the user loses the permission:
    then the last line of the file says so. `after` in the query is an entry behind which the file
    begins. At most two exports of a worker run at once; others wait. HEAD gets only the headers and
    records nothing.
    """
    if (name := request.args.get("format", "jsonl")) not in list(Format):
        abort(404)
    file_format = Format(name)
    wanted = await wanted_events(filter_form())
    if wanted is None:
        return await index()
    if request.headers.get("Sec-Fetch-Site") == "cross-site":
        return see_other(f"/admin/events?{urlencode(_filters())}")
    if not current_user.fresh:
        await flash(_("Enter your password, then select the export again."), "info")
        return see_other(with_next("/confirm", f"/admin/events?{urlencode(_filters())}"))
    if request.method == "HEAD":
        return Response(b"", content_type=file_format.content_type)
    await record_export(wanted, file_format, by=current_user.actor)
    log.info("audit_exported", user=current_user.username, format=file_format.value)
    lines = export(
        wanted,
        file_format,
        after=id_after(),
        rows=EXPORT_ROWS,
        seconds=EXPORT_SECONDS,
        allowed=live_permission(Permission.EVENTS_READ),
    )
    response = Response(_bytes(lines), content_type=file_format.content_type)
    response.timeout = EXPORT_SECONDS
    name = f"audit-{clock.now():%Y%m%dT%H%M%SZ}.{file_format.value}"
    response.headers["Content-Disposition"] = f'attachment; filename="{name}"'
    return response


async def _bytes(lines: AsyncIterator[str]) -> AsyncIterator[bytes]:
    """Yield the text as UTF-8, when one of the places for exports is free."""
    async with _running:
        async for piece in lines:
            yield piece.encode()


def filter_form() -> EventFilterForm:
    """Return the form with the filter in the query of this request."""
    form = EventFilterForm(formdata=MultiDict(_filters()))
    form.offer({name: str(label) for name, label in catalogue.log_labels().items()})
    return form


async def wanted_events(form: EventFilterForm) -> EventFilter | None:
    """Return the filter that the form has, or None if it is invalid: then its fields have errors.

    The person is found by username, or by the id of a deleted user.
    """
    valid, person = form.validate(), None
    if (name := form.person.data) and not form.person.errors:
        person = await find_person(name)
        if person is None:
            valid = False
            form.refuse(_("There is no user %(name)s.", name=name), "person")
    if not valid:
        return None
    return await EventFilter.about(
        person,
        kind=form.kind.data or "",
        ip=form.ip.data or "",
        text=form.q.data or "",
        **form.between(current_zone()),
    )


def _filters() -> dict[str, str]:
    """Return those parameters of this request that filter, if they are not empty."""
    names = ("person", "kind", "ip", "since", "until", "q")
    return {name: value for name in names if (value := request.args.get(name))}


def _address(**place: PydanticObjectId) -> str:
    """Return the address of another page with the same filter."""
    return f"/admin/events?{urlencode({**_filters(), **place})}"
