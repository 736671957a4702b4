"""The page of the user's own roles, on which they ask for others."""

import asyncio
from typing import Any

from quart import Blueprint, abort, flash, render_template
from quart_auth import login_required

from quartapp.auth import current_user, signed_in_user
from quartapp.forms.roles import RoleRequestForm
from quartapp.i18n import gettext as _
from quartapp.log import log
from quartapp.models import Role, RoleRequest, User
from quartapp.models.authorization.transaction import SessionOver
from quartapp.models.base.references import DomainError, linked_id
from quartapp.models.roles.request import RequestState
from quartapp.routes.pagination import cut, id_after, id_or_404
from quartapp.routes.redirects import see_other
from quartapp.routes.refusals import refuse, returns_to
from quartapp.routes.roles.selection import selected_role

blueprint = Blueprint("account_roles", __name__)

PAGE = 20
HOME = "/account/roles"


@blueprint.route("/account/roles", methods=["GET", "POST"])
@login_required
async def index() -> Any:
    """Show the user's roles, what they allow and until when, and a page of the user's requests; on
    POST ask for the role, log `role_requested`, and answer 303 to this page with a message.

    Refusals show the form again with all errors (422), such as a role that cannot be requested or
    was deleted. SessionOver is raised to the error handler.
    """
    form = await RoleRequestForm.from_request()
    form.offer(await Role.everyone())
    if await form.passes(_check):
        user = await signed_in_user()
        try:
            role = await Role.chosen(form.role.data or "")
            await RoleRequest.ask(user, role, form.reason.data or "", by=current_user.actor)
        except SessionOver:
            raise
        except DomainError as refused:
            refuse(form, refused)
        else:
            log.info("role_requested", user=user.username, role=role.name)
            await flash(_("You have asked for the role %(role)s.", role=role.name), "success")
            return see_other(HOME)
    return await _page(form)


async def _check(form: RoleRequestForm) -> None:
    """Add to the form the errors of a role that the user cannot ask for, and of a user who has
    asked too often."""
    role = await selected_role(form, form.role.data)
    refuse(form, *await RoleRequest.refusals_to_ask(await signed_in_user(), role))


async def show(**_: object) -> Any:
    """Return the page for errors of `withdraw`."""
    return await _page(RoleRequestForm())


@blueprint.post("/account/roles/requests/<request_id>/withdraw")
@returns_to(show, HOME)
@login_required
async def withdraw(request_id: str) -> Any:
    """Withdraw the request and answer 303 to the page of the user's roles with a message.

    A request that was decided already is an error (422). Logs nothing. Answers 404 for an unknown
    request, and for one of another user.
    """
    request = await RoleRequest.get(id_or_404(request_id)) or abort(404)
    if linked_id(request.user) != current_user.user_id:
        abort(404)
    await request.withdraw(by=current_user.actor)
    words = _("Your request for the role %(role)s was withdrawn.", role=request.name)
    await flash(words, "success")
    return see_other(HOME)


async def _page(form: RoleRequestForm) -> Any:
    """Return the page with the status of the form, which offers the roles that the user can request
    and has not requested yet."""
    user = await User.get(current_user.user_id) or abort(404)
    rows, roles = await asyncio.gather(
        RoleRequest.of_user(user.id, before=id_after(), limit=PAGE + 1), Role.everyone()
    )
    requests, older = cut(rows, PAGE, lambda request: request.id)
    asked = {linked_id(each.role) for each in rows if each.state is RequestState.OPEN}
    held = [role for role in roles if role.id in user.role_ids]
    form.offer(
        role for role in roles if role.can_be_requested and role.id not in user.role_ids | asked
    )
    page = await render_template(
        "roles/account.html",
        form=form,
        person=user,
        held=held,
        withheld=current_user.withheld,
        requests=requests,
        next=older,
    )
    return page, form.status
