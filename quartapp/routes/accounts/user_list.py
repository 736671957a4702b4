"""The list of users for administrators, and creating a user."""

import asyncio
from typing import Any
from urllib.parse import urlencode

from quart import Blueprint, flash, render_template, request
from quart_auth import login_required
from werkzeug.datastructures import MultiDict

from quartapp.auth import (
    current_user,
    fresh_login_required,
    permission_required,
    rate_limits,
)
from quartapp.forms.users import LONGEST_TEXT, NewUserForm, UserFilterForm
from quartapp.i18n import gettext as _
from quartapp.log import log
from quartapp.models import Role, User
from quartapp.models.accounts import user_list
from quartapp.models.accounts.account import Taken, Unverified
from quartapp.models.accounts.registration import create_for, refusals_to_create
from quartapp.models.accounts.user_list import InvalidPlace, Order, Place, Status, UserFilter
from quartapp.models.authorization.privileges import MissingPermission
from quartapp.models.base.tokens import new_token
from quartapp.models.limits import hash_cost
from quartapp.models.roles.refusals import RoleGone
from quartapp.policy import MEMBER, Permission
from quartapp.routes.accounts.bulk import allowed_actions
from quartapp.routes.addresses import user_page
from quartapp.routes.redirects import see_other
from quartapp.routes.refusals import refuse
from quartapp.routes.roles.selection import selected_role
from quartapp.runtime import hasher, settings
from quartapp.validation import mailbox_of

blueprint = Blueprint("admin_user_list", __name__)

PAGE = 50
# The parameters of the list; those of a place begin anew when a filter changes.
FILTERS = ("q", "role", "status", "factor", "sort")


@blueprint.get("/users")
@login_required
@permission_required(Permission.USERS_READ)
async def index() -> Any:
    """Show a page of the users that the filters select, with their number and links to the pages
    before and after it. The users can be selected for the actions that the administrator has the
    permission for.

    Answers 422 with a message, and without users, if a filter or a place is invalid.
    """
    roles = await Role.everyone()
    form = UserFilterForm(formdata=_filled(request.args))
    form.role.offer(roles, first=_("Any role"))
    found = counted = place = None
    problems = [] if form.validate() else form.problems
    wanted = _wanted(form, roles) if not problems else UserFilter()
    try:
        place = _place(wanted.order)
    except InvalidPlace:
        problems.append(_("This page of the list does not exist. Start from the first page."))
    if not problems:
        found, counted = await asyncio.gather(
            user_list.page(wanted, place, size=PAGE), user_list.count(wanted)
        )
    page = await render_template(
        "accounts/admin_users.html",
        form=form,
        problems=problems,
        page=found,
        counted=counted,
        previous=found and found.before and _address("before", found.before.text(wanted.order)),
        next=found and found.after and _address("after", found.after.text(wanted.order)),
        filtered=any(request.args.get(name) for name in FILTERS if name != "sort"),
        sorted_by=_sorted_address,
        order=wanted.order,
        actions=allowed_actions(),
        grantable=[role for role in roles if not current_user.lacks(role.permissions)],
    )
    return page, 422 if problems else 200


def _filled(sent: MultiDict[str, str]) -> MultiDict[str, str]:
    """Return the parameters, with the default order if none is given."""
    filled = MultiDict(sent)
    if not filled.get("sort"):
        filled["sort"] = "username"
    return filled


def _wanted(form: UserFilterForm, roles: list[Role]) -> UserFilter:
    """Return the filter that the valid form describes."""
    named = {role.name: role.id for role in roles}
    return UserFilter(
        text=form.q.data or "",
        role=named.get(form.role.data or ""),
        status=Status(form.state.data) if form.state.data else None,
        without_factor=form.factor.data == "none",
        order=Order(form.sort.data),
    )


def _place(order: Order) -> Place | None:
    """Return the place that the parameter `before` or `after` tells; None without one. Raises
    InvalidPlace."""
    for name in ("before", "after"):
        if text := request.args.get(name, ""):
            if len(text) > LONGEST_TEXT:
                raise InvalidPlace
            return Place.parse(text, order, back=name == "before")
    return None


def _address(name: str, place: str) -> str:
    """Return the URL of the list with the present filters, at this place."""
    return f"{request.path}?{urlencode({**_filters(), name: place})}"


def _sorted_address(order: str) -> str:
    """Return the URL of the first page of the list in another order."""
    return f"{request.path}?{urlencode({**_filters(), 'sort': order})}"


def _filters() -> dict[str, str]:
    return {name: request.args[name] for name in FILTERS if request.args.get(name)}


@blueprint.route("/users/new", methods=["GET", "POST"])
@login_required
@permission_required(Permission.USERS_MANAGE)
@fresh_login_required
async def new() -> Any:
    """Create a user. GET shows the form.

    The POST creates an account without a known password, queues an email with a link to set one,
    logs `user_created` and redirects (303) to the user's page with a message. The form is shown
    again with all its errors (422), with 403 if it is only a role that the administrator may not
    grant (logged as `authz_fail`), with 429 if too many emails were sent to the address, and with
    503 while the hasher is busy.
    """
    form = await NewUserForm.from_request()
    form.offer(await Role.everyone(), lacks=current_user.lacks)
    with form.catch_retry_later():
        if await form.passes(_count_email, _check) and (user := await _create(form)):
            await flash(
                _(
                    "The account %(username)s was created. An email to %(email)s with a link to "
                    "set a password is on its way.",
                    username=user.username,
                    email=form.email.data,
                ),
                "success",
            )
            return see_other(user_page(user))
    page = await render_template("accounts/admin_user_new.html", form=form)
    return page, form.status, form.headers


async def _count_email(form: NewUserForm) -> None:
    """Count an email to the address if all fields are valid, also if the account is refused then.
    Raises RateLimitExceeded."""
    if not form.errors:
        mailbox = mailbox_of(form.email.data or "")
        await rate_limits.count("invitation", (mailbox, settings().limit_invitation))


async def _check(form: NewUserForm) -> None:
    """Add to the form the errors of a username, an address and a role that cannot be used."""
    username, email = form.valid_data("username"), form.valid_data("email")
    selected = await selected_role(form, form.other_role)
    roles = [await Role.chosen(MEMBER), *([selected] if selected else [])]
    refuse(form, *await refusals_to_create(username, email, roles, lacks=current_user.lacks))


async def _create(form: NewUserForm) -> User | None:
    """Create the account with a random password, log `user_created`, and return the user. None,
    with an error in the form, if it is refused.

    Raises Busy.
    """
    email = form.email.data or ""
    names = [MEMBER, *([form.other_role] if form.other_role else [])]
    # Nobody knows this password. It costs as much as any other to compare with.
    await hash_cost.highest(settings().bcrypt_cost)
    unknown = await hasher().hash(new_token()[0])
    try:
        roles = [await Role.chosen(name) for name in names]
        user = await create_for(
            form.username.data or "", email, unknown, roles=roles, by=current_user.actor
        )
    except (Taken, MissingPermission, RoleGone, Unverified) as refused:
        refuse(form, refused)
        return None
    log.info("user_created", user=user.username, by=current_user.username)
    return user
