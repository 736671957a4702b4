"""Pages for administrators: delete and restore accounts."""

from functools import partial
from typing import Any

from quart import Blueprint, flash, render_template
from quart_auth import login_required

from quartapp import clock
from quartapp.auth import (
    current_user,
    fresh_login_required,
    permission_required,
    wait_until_enforced,
)
from quartapp.forms.privacy import KEEP, REMOVE, DeleteForm
from quartapp.i18n import gettext as _
from quartapp.i18n.times import format_time
from quartapp.log import log
from quartapp.models import Event, Role, User
from quartapp.models.accounts.administrators import LastAdministrator
from quartapp.models.accounts.bulk_action import Action, Outcome
from quartapp.models.authorization.privileges import MissingPermission
from quartapp.policy import Permission
from quartapp.routes.accounts import previews
from quartapp.routes.accounts.user_pages import find, overview_sent, require_to_manage
from quartapp.routes.addresses import user_page
from quartapp.routes.audit.receipts import flash_receipt
from quartapp.routes.privacy.account_deletion import check_administrators
from quartapp.routes.redirects import see_other
from quartapp.routes.refusals import refuse, returns_to
from quartapp.runtime import settings

blueprint = Blueprint("admin_leaving", __name__)


@blueprint.route("/users/<username>/delete", methods=["GET", "POST"])
@login_required
@permission_required(Permission.USERS_MANAGE)
@fresh_login_required
async def delete(username: str) -> Any:
    """Show what deleting a user's account would do, with a form; on POST schedule the deletion and
    answer as `_closed` does.

    The account is deactivated at once, all its sessions end, and it is erased after DELETION_GRACE,
    or earlier if its owner has scheduled that. The form asks for the username. Refusals show the
    form with all errors: 403 for MissingPermission, 422 if there is another one. 404 for an unknown
    user.
    """
    person = await find(username)
    form = await DeleteForm.from_request(data={"posts": REMOVE if person.deletes_posts else KEEP})
    form.expect(person.username)
    until = clock.now() + settings().deletion_grace
    if await form.passes(partial(_check, person)):
        try:
            event = await person.deactivate(
                by=current_user.actor, deletes_at=until, with_posts=form.with_posts
            )
        except (LastAdministrator, MissingPermission) as refused:
            refuse(form, refused)
        else:
            return await _closed(await find(username), event)
    until = min(until, person.deletes_at or until)
    effects = await previews.planned(person, Action.DISABLE)
    # What follows from disabling the account; there is more to do for one that is disabled.
    if effects["skipped"] is Outcome.UNCHANGED:
        effects["skipped"] = None
    page = await render_template(
        "privacy/admin_delete.html", **{**effects, "form": form, "until": until, "disables": False}
    )
    return page, form.status


async def _check(person: User, form: DeleteForm) -> None:
    """Add an error to the form if the user has a permission that the administrator lacks; else, if
    the user is the last administrator."""
    try:
        require_to_manage(person, await Role.everyone())
    except MissingPermission as missing:
        refuse(form, missing)
    else:
        await check_administrators(person, form)


@blueprint.post("/users/<username>/restore")
@returns_to(overview_sent, "/admin/users/{username}")
@login_required
@permission_required(Permission.USERS_MANAGE)
@fresh_login_required
async def restore(username: str) -> Any:
    """Restore a deactivated account and redirect (303) to the user's page.

    Cancels its deletion. Waits until all workers know it. Flashes a success and logs
    `user_restored`, or flashes that the account cannot be restored. MissingPermission is shown on
    the user's page (403). 404 for an unknown user.
    """
    person = await find(username)
    restored = await person.restore(by=current_user.actor)
    await wait_until_enforced()
    if restored:
        log.info("user_restored", user=person.username, by=current_user.username)
        await flash(_("The account of %(name)s was restored.", name=person.username), "success")
    else:
        await flash(
            _("The account of %(name)s cannot be restored now.", name=person.username), "info"
        )
    return see_other(user_page(person))


async def _closed(person: User, event: Event | None) -> Any:
    """Redirect (303) to the user's page after the deletion was scheduled.

    Waits until no worker accepts the sessions that ended, and flashes the date with the receipt of
    the event, and logs `user_closed`. Without an event nothing was changed, because an earlier
    deletion is scheduled: then the message says only that.
    """
    if event:
        log.info("user_closed", user=person.username, by=current_user.username)
    await wait_until_enforced(event)
    if event and person.deletes_at:
        until = format_time(person.deletes_at)
        words = _(
            "The account of %(name)s will be permanently deleted on %(time)s.",
            name=person.username,
            time=until,
        )
        await flash_receipt(words, event)
    else:
        await flash(
            _("The account of %(name)s will be deleted before that date.", name=person.username),
            "info",
        )
    return see_other(user_page(person))
