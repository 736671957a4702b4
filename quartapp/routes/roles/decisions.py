"""Pages for administrators: requests for roles, and the decisions about them."""

import asyncio
from typing import Any

from quart import Blueprint, abort, flash, render_template, request
from quart_auth import login_required

from quartapp.auth import (
    current_user,
    fresh_login_required,
    permission_required,
    wait_until_enforced,
)
from quartapp.forms.roles import DeclineForm, GrantRequestForm
from quartapp.i18n import gettext as _
from quartapp.log import log
from quartapp.models import Role, RoleRequest
from quartapp.models.roles.request import DecidedAlready
from quartapp.policy import Permission
from quartapp.routes.accounts.admin import flash_grant
from quartapp.routes.accounts.user_pages import require_to_manage
from quartapp.routes.pagination import cut, id_after, id_or_404
from quartapp.routes.redirects import see_other
from quartapp.routes.refusals import returns_to
from quartapp.runtime import runtime

blueprint = Blueprint("admin_requests", __name__)

PAGE = 25
HOME = "/admin/requests"


@blueprint.get("/requests")
@login_required
@permission_required(Permission.USERS_MANAGE)
async def index() -> Any:
    """Show a page of the open requests, newest first, and behind the last of them those that were
    decided. With `view=decided`, a page of the decided ones only."""
    return await _page()


async def show_sent(request_id: str, **_: object) -> Any:
    """Return the page with the submitted values and their errors at the request, for
    `returns_to`."""
    grant, decline = await GrantRequestForm.from_request(), await DeclineForm.from_request()
    for form in (grant, decline):
        form.validate()
    return await _page(sent=request_id, grant=grant, decline=decline)


@blueprint.post("/requests/<request_id>/grant")
@returns_to(show_sent, HOME)
@login_required
@permission_required(Permission.USERS_MANAGE)
@fresh_login_required
async def grant(request_id: str) -> Any:
    """Grant the request, with `until` for a limited time, wait until all workers know it, and
    answer 303 to the list with a message.

    An invalid end shows the list with the error (422), and so do refusals: a request that was
    decided or withdrawn meanwhile or whose role was deleted (422), and a role that the
    administrator may not grant (403). Answers 404 for an unknown request. Logs `authz_change`, also
    if the user had the role. Counts the open requests again, for the navigation of this worker.
    """
    asked, form = await _find(request_id), await GrantRequestForm.from_request()
    await _require_to_decide(asked, granting=True)
    if not form.posted:
        return await _page(sent=request_id, grant=form)
    until, by = form.until.moment, current_user.actor
    granted = await asked.grant(by=by, until=until)
    name = asked.asker.username if asked.asker else ""
    log.info("authz_change", user=name, granted=asked.role_name, by=current_user.username)
    await asyncio.gather(wait_until_enforced(), runtime().open_requests.refresh())
    await flash_grant(name, asked.role_name, granted, until)
    return see_other(HOME)


@blueprint.post("/requests/<request_id>/decline")
@returns_to(show_sent, HOME)
@login_required
@permission_required(Permission.USERS_MANAGE)
@fresh_login_required
async def decline(request_id: str) -> Any:
    """Decline the request, with an optional reason for the user, and answer 303 to the list with a
    message.

    Errors are answered as in `grant`. Logs `role_request_declined`, and counts the open requests
    again, for the navigation of this worker.
    """
    asked, form = await _find(request_id), await DeclineForm.from_request()
    await _require_to_decide(asked)
    if not form.posted:
        return await _page(sent=request_id, decline=form)
    await asked.decline(by=current_user.actor, answer=form.reason.data or "")
    await runtime().open_requests.refresh()
    name = asked.asker.username if asked.asker else ""
    log.info("role_request_declined", user=name, role=asked.name, by=current_user.username)
    words = {"name": name, "role": asked.role_name}
    await flash(
        _("The request of %(name)s for the role %(role)s was declined.", **words), "success"
    )
    return see_other(HOME)


async def _find(request_id: str) -> RoleRequest:
    """Return the request with its user and role. Answers 404 if there is none, and raises
    DecidedAlready if its user was deleted."""
    found = await RoleRequest.with_links(id_or_404(request_id)) or abort(404)
    if found.asker is None:
        raise DecidedAlready(None)
    return found


async def _require_to_decide(asked: RoleRequest, *, granting: bool = False) -> None:
    """Raise the error of a request about which this administrator cannot decide, whatever the form
    says, or which cannot be granted: `returns_to` shows it beside those of the form."""
    for refusal in asked.refusals_to_decide(lacks=current_user.lacks):
        raise refusal
    if asked.asker and isinstance(asked.role, Role):
        require_to_manage(asked.asker, await Role.everyone())
        lacks = current_user.lacks
        for refusal in asked.asker.refusals_to_grant(asked.role, lacks=lacks) if granting else ():
            raise refusal


async def _page(
    *,
    sent: str = "",
    grant: GrantRequestForm | None = None,
    decline: DeclineForm | None = None,
) -> Any:
    """Return the page that the query asks for: open requests and, below the last of them, decided
    ones; or with `view=decided` those only. For each open request it shows which permissions the
    administrator lacks for it, or that its role was deleted.

    A submitted form, `grant` or `decline`, is shown at the request with the id `sent`, and gives
    the status; else it is 200.
    """
    decided_only = request.args.get("view") == "decided"
    open_ones, more, decided, more_decided = [], None, [], None
    if not decided_only:
        rows = await RoleRequest.open_page(before=id_after(), limit=PAGE + 1)
        open_ones, more = cut(rows, PAGE, lambda row: row.id)
    # The decided ones are below the last page of the open ones.
    if not more:
        before = id_after() if decided_only else None
        rows = await RoleRequest.decided_page(before=before, limit=PAGE + 1)
        decided = rows[:PAGE]
        if len(rows) > PAGE:
            more_decided = f"{HOME}?view=decided&after={decided[-1].id}"
    page = await render_template(
        "roles/requests.html",
        requests=open_ones,
        decided=decided,
        lacking=await _lacking(open_ones),
        decided_only=decided_only,
        sent=sent,
        grant=grant or GrantRequestForm(),
        decline=decline or DeclineForm(),
        # For the requests other than `sent`.
        blank={"grant": GrantRequestForm(), "decline": DeclineForm()},
        next=more,
        next_decided=more_decided,
    )
    return page, (grant or decline or GrantRequestForm()).status


async def _lacking(requests: list[RoleRequest]) -> dict[Any, list[str]]:
    """Return, by the request's id, the permissions that the administrator lacks to decide about it:
    those of the role, and those that the user has."""
    roles = await Role.everyone()
    lacking = {}
    for each in requests:
        of_user = current_user.lacks_over(each.asker, roles) if each.asker else frozenset()
        lacking[each.id] = sorted(current_user.lacks(each.permissions) | of_user)
    return lacking
