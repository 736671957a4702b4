"""Pages for administrators: list, send, send again and withdraw invitations."""

from typing import Any

from quart import Blueprint, abort, flash, render_template
from quart_auth import login_required

from quartapp.auth import current_user, fresh_login_required, permission_required, rate_limits
from quartapp.forms.invitations import InviteForm
from quartapp.i18n import gettext as _
from quartapp.log import log
from quartapp.models import Invitation, Role
from quartapp.models.accounts.account import Taken
from quartapp.models.accounts.bulk_action import Outcome
from quartapp.models.authorization.privileges import MissingPermission
from quartapp.models.invitations import invitation
from quartapp.models.invitations.invitation import (
    InvitationState,
    InvitedAlready,
    TooManyInvitations,
)
from quartapp.models.roles.refusals import RoleGone
from quartapp.policy import Permission
from quartapp.routes.accounts import previews
from quartapp.routes.pagination import cut, id_after, id_or_404
from quartapp.routes.redirects import see_other
from quartapp.routes.refusals import refuse, returns_to
from quartapp.routes.roles.selection import selected_role
from quartapp.runtime import settings
from quartapp.validation import mailbox_of

blueprint = Blueprint("admin_invitations", __name__)

HOME = "/admin/invitations"


@blueprint.route("/invitations", methods=["GET", "POST"])
@login_required
@permission_required(Permission.USERS_MANAGE)
@fresh_login_required
async def index() -> Any:
    """Show a page of the invitations with a form; on POST create one, queue its email and redirect
    (303) to this page with a message.

    Refusals show the page again with all errors (`_check`): 422, 403 if it is only a role that the
    user may not grant, 429 if the address has been invited too often.
    """
    form = await InviteForm.from_request()
    await _offer(form)
    with form.catch_retry_later():
        if await form.passes(_count_email, _check) and await _invite(form):
            await flash(
                _("An invitation to %(email)s is on its way.", email=form.email.data), "success"
            )
            return see_other(HOME)
    return await _page(form)


async def show_list(**_: object) -> Any:
    """Return the list of invitations with an empty form. Ignores its arguments."""
    form = InviteForm()
    await _offer(form)
    return await _page(form)


@blueprint.get("/invitations/<invitation_id>/withdraw")
@login_required
@permission_required(Permission.USERS_MANAGE)
async def show_withdrawal(invitation_id: str) -> str:
    """Show what withdrawing the invitation would do, or why it would be refused or do nothing: its
    role has permissions that the administrator lacks, or it is not pending. 404 for an unknown
    invitation."""
    found = await Invitation.one(_id=id_or_404(invitation_id)) or abort(404)
    missing = sorted(current_user.lacks(found.allows))
    skipped = Outcome.MISSING_PERMISSION if missing else None
    if await found.state() not in (InvitationState.OPEN, InvitationState.VOID):
        skipped = Outcome.UNCHANGED
    return await previews.page(
        _("Withdraw the invitation"),
        _("Withdraw invitation"),
        back=HOME,
        trail=_("Invitations"),
        skipped=skipped,
        missing=missing,
        effect=_(
            "The link in the email to %(email)s no longer works. You can send another invitation.",
            email=found.email,
        ),
    )


@blueprint.post("/invitations/<invitation_id>/withdraw")
@returns_to(show_withdrawal, "/admin/invitations/{invitation_id}/withdraw")
@login_required
@permission_required(Permission.USERS_MANAGE)
@fresh_login_required
async def withdraw(invitation_id: str) -> Any:
    """Withdraw an invitation and redirect (303) to the list.

    Flashes a success and logs `invitation_withdrawn`, or flashes that the invitation was no longer
    pending. Raises MissingPermission, which is shown on the preview (403). 404 for an unknown
    invitation.
    """
    found = await _find(invitation_id)
    if await found.withdraw(by=current_user.actor):
        log.info("invitation_withdrawn", invitation=str(found.id), by=current_user.username)
        await flash(
            _(
                "The invitation to %(email)s was withdrawn. Its link no longer works.",
                email=found.email,
            ),
            "success",
        )
    else:
        await flash(
            _("The invitation to %(email)s was no longer pending.", email=found.email), "info"
        )
    return see_other(HOME)


@blueprint.post("/invitations/<invitation_id>/again")
@returns_to(show_list, HOME)
@login_required
@permission_required(Permission.USERS_MANAGE)
@fresh_login_required
async def send_again(invitation_id: str) -> Any:
    """Queue another email for an invitation, so that older links no longer work, and redirect (303)
    to the list.

    Flashes a success and logs `user_invited`, or flashes that the invitation was no longer pending.
    If it is refused, because an account or another invitation has the address or there are too
    many, shows the list with an error and 422. Counts an email to the address first; past the
    limit, raises RateLimitExceeded, which is shown on the list (429). 404 for an unknown
    invitation.
    """
    found, at_most = await _find(invitation_id), settings().invitations_per_user
    await _count(found.email)
    try:
        sent = await found.send_again(by=current_user.actor, at_most=at_most)
    except (Taken, InvitedAlready, TooManyInvitations) as refused:
        form = InviteForm()
        await _offer(form)
        form.refuse(f"{found.email}: {refused}")
        return await _page(form)
    if sent:
        log.info("user_invited", invitation=str(found.id), by=current_user.username)
        await flash(
            _(
                "Another email to %(email)s is on its way. Older links no longer work.",
                email=found.email,
            ),
            "success",
        )
    else:
        await flash(
            _("The invitation to %(email)s was no longer pending.", email=found.email), "info"
        )
    return see_other(HOME)


async def _count_email(form: InviteForm) -> None:
    """Count an email to the address if all fields are valid, before the form says what the models
    know about it. Raises RateLimitExceeded."""
    if not form.errors:
        await _count(form.email.data or "")


async def _check(form: InviteForm) -> None:
    """Add to the form the errors of an address and a role for which no invitation can be sent, and
    of a user who has sent too many."""
    refusals = await Invitation.refusals(
        form.valid_data("email"),
        await selected_role(form, form.other_role),
        by=current_user.actor,
        lacks=current_user.lacks,
        at_most=settings().invitations_per_user,
    )
    refuse(form, *refusals)


async def _invite(form: InviteForm) -> bool:
    """Create the invitation, queue its email and log `user_invited`; return whether that was done.
    If it is refused, the form has the error.
    """
    email = form.email.data or ""
    try:
        role = await Role.chosen(form.other_role) if form.other_role else None
        made = await Invitation.write(
            email, role, by=current_user.actor, at_most=settings().invitations_per_user
        )
    except (Taken, InvitedAlready, TooManyInvitations, MissingPermission, RoleGone) as refused:
        refuse(form, refused)
        return False
    log.info("user_invited", invitation=str(made.id), by=current_user.username)
    return True


async def _offer(form: InviteForm) -> None:
    """Fill the form's list of roles with those that the user may grant."""
    form.offer(await Role.everyone(), lacks=current_user.lacks)


async def _count(email: str) -> None:
    """Count an email to this mailbox, from all inviters together. Raises RateLimitExceeded."""
    await rate_limits.count("invitation", (mailbox_of(email), settings().limit_invitation))


async def _find(invitation_id: str) -> Invitation:
    """Return the invitation of this id, or answer 404."""
    return await Invitation.get(id_or_404(invitation_id)) or abort(404)


async def _page(form: InviteForm) -> Any:
    """Return a page of the list with the form, its status and headers. For each invitation it shows
    which permissions of its role the user lacks."""
    rows = await Invitation.page(before=id_after(), limit=invitation.PAGE + 1)
    shown, older = cut(rows, invitation.PAGE, lambda row: row[0].id)
    lacking = {row.id: sorted(current_user.lacks(row.allows)) for row, _state in shown}
    page = await render_template(
        "invitations/admin_list.html", form=form, invitations=shown, lacking=lacking, next=older
    )
    return page, form.status, form.headers
