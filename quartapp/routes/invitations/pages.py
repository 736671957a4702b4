"""Accepting an invitation, which creates an account with a verified address."""

from typing import Any

from quart import Blueprint, flash, render_template

from quartapp import auth
from quartapp.forms.invitations import InvitedForm
from quartapp.i18n import gettext as _
from quartapp.log import log
from quartapp.models import Invitation, User
from quartapp.models.accounts.account import Taken
from quartapp.models.accounts.registration import taken
from quartapp.models.base.actor import Actor
from quartapp.models.invitations.invitation import InvitationGone, InvitationState
from quartapp.routes.accounts.new_password import check_new_password, count_registration
from quartapp.routes.redirects import see_other
from quartapp.routes.refusals import refuse
from quartapp.routes.sessions.sign_in import sign_in
from quartapp.runtime import hasher

blueprint = Blueprint("invitations", __name__)


@blueprint.route("/invited/<token>", methods=["GET", "POST"])
async def accept(token: str) -> Any:
    """Show the form of an invited user; on POST create the account, sign in and redirect (303) to
    `/` with a message.

    Answers 410 with the reason if the invitation is not open, or if an account has the address. A
    POST counts as a registration. Success logs `user_created` and ends the session that the browser
    had. Errors show the form (422; 429 after too many attempts; 503 while the hasher is busy).
    """
    found = await Invitation.by_token(token)
    state = await found.state() if found else None
    if found is None or state is not InvitationState.OPEN:
        return await _gone(state)
    if await User.by_email(found.email):
        return await _gone("taken", found.email)
    form = await InvitedForm.from_request()
    form.email = found.email
    with form.catch_retry_later():
        if await form.passes(count_registration, _check_password, _check_username):
            try:
                user = await Invitation.accept(
                    token,
                    form.username.data or "",
                    await hasher().hash(form.password.data or ""),
                    by=Actor(ip=auth.remote_address()),
                )
            except InvitationGone as gone:
                return await _gone(gone.state)
            except Taken as error:
                if error.field == "email":
                    return await _gone("taken", found.email)
                refuse(form, error)
            else:
                log.info("user_created", user=user.username, ip=auth.remote_address())
                await sign_in(user, remember=False)
                await flash(_("Welcome. Your account is ready."), "success")
                return see_other("/")
    page = await render_template("invitations/accept.html", form=form, invitation=found)
    return page, form.status, form.headers


async def _check_password(form: InvitedForm) -> None:
    """Add an error to the form if the policy refuses the password. Raises Busy."""
    await check_new_password(form, form.username.data or "", form.email)


async def _check_username(form: InvitedForm) -> None:
    """Add an error to the form if another account has the username."""
    refuse(form, *await taken(form.valid_data("username"), None))


async def _gone(why: str | None, email: str | None = None) -> Any:
    """Answer 410 with a page that says why. Logs the warning `authn_token_reuse` if the invitation
    was accepted before."""
    if why == InvitationState.ACCEPTED:
        log.warning("authn_token_reuse", ip=auth.remote_address())
    return await render_template("invitations/gone.html", why=why, email=email), 410
