"""Actions on a user: roles, sessions, disabling, expiry and second factors.

Each leads to the tab of the user's page that shows the effect.

An error of the models, such as LastAdministrator or MissingPermission, is not caught here: it is
shown on the page with the button, which `returns_to` names, with 403 for a missing permission and
422 for all others.
"""

import asyncio
from datetime import datetime
from functools import partial
from typing import Any

from quart import Blueprint, abort, flash
from quart_auth import login_required

from quartapp.activities import ROLE_END_CHANGED, ROLE_END_REMOVED
from quartapp.auth import (
    current_user,
    fresh_login_required,
    permission_required,
    wait_until_enforced,
)
from quartapp.forms.accounts import AccountExpiryForm
from quartapp.forms.roles import GrantForm
from quartapp.i18n import gettext as _
from quartapp.i18n.times import format_day, format_time
from quartapp.log import log
from quartapp.models import Event, Role, User
from quartapp.models.accounts import account_expiry
from quartapp.models.accounts.administrators import LastAdministrator, refusals_to_lose
from quartapp.models.factors import enrolment
from quartapp.models.sessions.reason import Reason
from quartapp.policy import Permission
from quartapp.routes.accounts import previews, user_pages
from quartapp.routes.accounts.user_pages import find, require_to_manage
from quartapp.routes.addresses import user_page
from quartapp.routes.audit.receipts import flash_receipt
from quartapp.routes.redirects import see_other
from quartapp.routes.refusals import refuse, returns_to
from quartapp.routes.roles.selection import selected_role

blueprint = Blueprint("admin_users", __name__)


@blueprint.post("/users/<username>/grants")
@returns_to(user_pages.roles_sent, "/admin/users/{username}/roles")
@login_required
@permission_required(Permission.USERS_MANAGE)
@fresh_login_required
async def grant(username: str) -> Any:
    """Grant the role, with `until` for a limited time, wait until all workers know it, and redirect
    (303) to the tab with the roles. The message differs if the user had the role already. That
    changes the end of the grant.

    An invalid form, also one with a role that does not exist, is shown on that tab with all errors
    (422), with 403 if it is only a role that the administrator may not grant. Answers 404 for an
    unknown user. Logs `authz_change`, also if the user had the role.
    """
    person, everyone = await find(username), await Role.everyone()
    require_to_manage(person, everyone)
    form = await GrantForm.from_request()
    form.offer(everyone, lacks=current_user.lacks)
    if not await form.passes(partial(_check_grant, person)):
        return await user_pages.roles_tab(person, form)
    role = await Role.chosen(form.role.data)
    until = form.until.moment
    granted = await person.grant(role, by=current_user.actor, until=until)
    log.info("authz_change", user=person.username, granted=role.name, by=current_user.username)
    await wait_until_enforced()
    await flash_grant(person.username, role.name, granted, until)
    return see_other(user_page(person, "roles"))


async def _check_grant(person: User, form: GrantForm) -> None:
    """Add to the form the errors of a role that cannot be granted to the user."""
    if role := await selected_role(form, form.role.data):
        refuse(form, *person.refusals_to_grant(role, lacks=current_user.lacks))


async def flash_grant(name: str, role: str, event: Event | None, until: datetime | None) -> None:
    """Flash what the event of the grant says: that the user has the role, and until when, or that
    they had it and its end was changed or removed. Without an event, flash that nothing changed."""
    words = {"name": name, "role": role, "until": format_time(until) if until else ""}
    if event is None and until:
        text = _("%(name)s already has the role %(role)s until %(until)s.", **words)
    elif event is None:
        text = _("%(name)s already has the role %(role)s.", **words)
    elif event.verb == ROLE_END_REMOVED.audit:
        text = _("%(name)s keeps the role %(role)s, which no longer ends.", **words)
    elif event.verb == ROLE_END_CHANGED.audit:
        text = _("%(name)s had the role %(role)s, which now ends on %(until)s.", **words)
    elif until:
        text = _("%(name)s has the role %(role)s until %(until)s.", **words)
    else:
        text = _("%(name)s now has the role %(role)s.", **words)
    await flash(text, "success" if event else "info")


@blueprint.post("/users/<username>/grants/<role_name>/revoke")
@returns_to(previews.revoke, "/admin/users/{username}/grants/{role_name}/revoke")
@login_required
@permission_required(Permission.USERS_MANAGE)
@fresh_login_required
async def revoke(username: str, role_name: str) -> Any:
    """Revoke the role, which ends all sessions of the user, and redirect (303) to the tab with the
    roles.

    Waits until no worker accepts those sessions. The message says whether active sessions ended and
    how many tabs have acknowledged it, or that the user did not have the role. Answers 404 for an
    unknown user or role. Logs `authz_change`, also if the user did not have the role.
    """
    person, role = await asyncio.gather(find(username), Role.named(role_name))
    if role is None:
        abort(404)
    event = await person.revoke(role, by=current_user.actor)
    log.info("authz_change", user=person.username, revoked=role.name, by=current_user.username)
    return await _answer(
        person,
        event,
        done=_("%(name)s no longer has the role %(role)s.", name=person.username, role=role.name),
        unchanged=_(
            "%(name)s did not have the role %(role)s.", name=person.username, role=role.name
        ),
        tab="roles",
    )


@blueprint.post("/users/<username>/sessions/end")
@returns_to(previews.end_sessions, "/admin/users/{username}/sessions/end")
@login_required
@permission_required(Permission.SESSIONS_MANAGE)
@fresh_login_required
async def end_sessions(username: str) -> Any:
    """End all sessions of the user, wait until no worker accepts them, and redirect (303) to the
    tab with the sessions.

    The message has the number of active sessions and what became of their tabs, or says that there
    were none. Answers 404 for an unknown user.
    """
    person = await find(username)
    event = await person.end_sessions(Reason.ENDED_BY_ADMIN, by=current_user.actor)
    await wait_until_enforced(event)
    if event:
        words = _(
            "Sessions of %(name)s ended: %(num)s.",
            name=person.username,
            num=event.details["count"],
        )
        await flash_receipt(words, event)
    else:
        await flash(_("%(name)s had no active sessions.", name=person.username), "info")
    return see_other(user_page(person, "sessions"))


@blueprint.post("/users/<username>/disable")
@returns_to(previews.disable, "/admin/users/{username}/disable")
@login_required
@permission_required(Permission.USERS_MANAGE)
@fresh_login_required
async def disable(username: str) -> Any:
    """Disable the account, which ends its sessions, and redirect (303) to the user's page.

    Waits until no worker accepts the sessions. The message says so and what became of open tabs, or
    that the account was disabled before. Logs `user_disabled` if it was not. Answers 404 for an
    unknown user.
    """
    person = await find(username)
    event = await person.disable(by=current_user.actor)
    if event:
        log.info("user_disabled", user=person.username, by=current_user.username)
    return await _answer(
        person,
        event,
        done=_("The account of %(name)s is disabled.", name=person.username),
        unchanged=_("The account of %(name)s is already disabled.", name=person.username),
    )


@blueprint.post("/users/<username>/enable")
@returns_to(user_pages.overview_sent, "/admin/users/{username}")
@login_required
@permission_required(Permission.USERS_MANAGE)
@fresh_login_required
async def enable(username: str) -> Any:
    """Enable the account, or remove the expiry of an account that is not disabled, and redirect
    (303) to the user's page.

    Waits until all workers know it. The message says that the account is enabled, or that nothing
    was changed. Logs `user_enabled` if something was. Sessions that have ended stay ended. Answers
    404 for an unknown user.
    """
    person = await find(username)
    by = current_user.actor
    enabled = await person.enable(by=by) or await account_expiry.remove_expiry(person, by=by)
    await wait_until_enforced()
    if enabled:
        log.info("user_enabled", user=person.username, by=current_user.username)
        await flash(_("The account of %(name)s is enabled.", name=person.username), "success")
    else:
        await flash(_("Nothing was changed."), "info")
    return see_other(user_page(person))


@blueprint.post("/users/<username>/last-day")
@returns_to(user_pages.overview_sent, "/admin/users/{username}")
@login_required
@permission_required(Permission.USERS_MANAGE)
@fresh_login_required
async def set_expiry(username: str) -> Any:
    """Set the date at whose end the account is disabled, or remove it if the field is empty.

    Waits until all workers know it, and redirects (303) to the user's page with a message, which
    says if nothing was changed. Logs `user_updated` if something was. A date before today or more
    than ten years ahead, and any date for the last administrator, is an error of the form (422).
    Answers 404 for an unknown user.
    """
    person = await find(username)
    require_to_manage(person, await Role.everyone())
    form = await AccountExpiryForm.from_request()
    if not await form.passes(partial(_check_expiry, person)):
        return await user_pages.overview_tab(person, form)
    day, by = form.date.data, current_user.actor
    if day is None:
        event = await account_expiry.remove_expiry(person, by=by)
        words = _("The account of %(name)s no longer expires.", name=person.username)
    else:
        try:
            event = await account_expiry.set_expiry(person, day, by=by)
        except LastAdministrator as error:
            form.refuse(str(error), "date")
            return await user_pages.overview_tab(person, form)
        words = _(
            "The account of %(name)s expires at the end of %(day)s (UTC).",
            name=person.username,
            day=format_day(day),
        )
    await wait_until_enforced()
    if event:
        log.info("user_updated", user=person.username, last_day=str(day or ""), by=by.username)
        await flash(words, "success")
    else:
        await flash(_("Nothing was changed."), "info")
    return see_other(user_page(person))


async def _check_expiry(person: User, form: AccountExpiryForm) -> None:
    """Add to the form the errors of a date on which the account cannot expire. No date is right."""
    day = form.valid_data("date")
    if day is None and not form.date.errors:
        return
    if day and not account_expiry.is_possible(day):
        form.refuse(_("Enter a date from today up to ten years ahead."), "date")
    for refusal in await refusals_to_lose(person.id, when_expired=True):
        form.refuse(str(refusal), "date")


@blueprint.post("/users/<username>/factors/reset")
@returns_to(previews.reset_factors, "/admin/users/{username}/factors/reset")
@login_required
@permission_required(Permission.USERS_MANAGE)
@fresh_login_required
async def reset_factors(username: str) -> Any:
    """Remove all second factors and recovery codes of the user, which ends all their sessions, and
    redirect (303) to the user's page.

    Waits until no worker accepts the sessions. The message says so and what became of open tabs, or
    that the user had no factor. Logs `user_updated` if they had one. Answers 404 for an unknown
    user.
    """
    person = await find(username)
    event = await enrolment.reset(person, by=current_user.actor)
    if event:
        log.info("user_updated", user=person.username, reset="factors", by=current_user.username)
    return await _answer(
        person,
        event,
        done=_("%(name)s no longer has second factors.", name=person.username),
        unchanged=_("%(name)s had no second factor.", name=person.username),
    )


async def _answer(
    person: User, event: Event | None, *, done: str, unchanged: str, tab: str = ""
) -> Any:
    """Wait until no worker accepts the sessions that the event ended, and redirect (303) to the tab
    of the user's page with a message.

    The message is the sentence `done`, whether active sessions ended and what became of their tabs;
    without an event it is `unchanged`, also after a wait. Logs nothing.
    """
    await wait_until_enforced(event)
    if event:
        signed_out = _("%(name)s was signed out.", name=person.username)
        ended = signed_out if event.ended_sessions else _("There were no active sessions.")
        await flash_receipt(f"{done} {ended}", event)
    else:
        await flash(unchanged, "info")
    return see_other(user_page(person, tab))
