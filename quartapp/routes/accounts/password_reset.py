"""Password recovery: requesting a link and setting a new password."""

from functools import partial
from typing import Any

from quart import Blueprint, flash, render_template
from quart_auth import logout_user

from quartapp import auth
from quartapp.auth import current_user, rate_limits, wait_until_enforced
from quartapp.forms.accounts import ForgotForm, ResetForm
from quartapp.i18n import gettext as _
from quartapp.log import log
from quartapp.models import User
from quartapp.models.accounts import password_reset
from quartapp.models.accounts.one_time_token import TokenSpent
from quartapp.models.base.references import linked_id
from quartapp.routes.accounts.new_password import check_new_password
from quartapp.routes.redirects import see_other
from quartapp.runtime import hasher, settings

blueprint = Blueprint("recovery", __name__)


@blueprint.route("/forgot", methods=["GET", "POST"])
async def forgot() -> Any:
    """Ask for a link for setting a new password. GET shows the form.

    The POST queues an email, logs `password_reset_asked` and redirects (303) to `/forgot/sent`.
    Answer and work are the same whether an account has the address or not (ASVS 6.3.8, 6.4.3). The
    form is shown again with 422 for an invalid address, and with 429 after too many requests from
    the network.
    """
    form = await ForgotForm.from_request()
    with form.catch_retry_later():
        if form.posted:
            here = rate_limits.network_of(auth.remote_address())
            await rate_limits.count("recovery", (here, settings().limit_recovery))
            await password_reset.request(form.email.data or "", by=current_user.actor)
            log.info("password_reset_asked", ip=auth.remote_address())
            return see_other("/forgot/sent")
    return await render_template("accounts/forgot.html", form=form), form.status, form.headers


@blueprint.get("/forgot/sent")
async def sent() -> str:
    """Show a page which says that an email was sent if an account has the address."""
    return await render_template("accounts/forgot_sent.html")


@blueprint.route("/reset/<token>", methods=["GET", "POST"])
async def reset(token: str) -> Any:
    """Set a new password by a link. GET shows the form, and a page with 410 if the link is void.

    The POST is counted for the network and checked by the password policy; errors are shown on the
    form (422, 429 or 503). Success answers as `_reset` does.
    """
    user = await password_reset.user_of_token(token)
    if user is None:
        return await render_template("accounts/reset_gone.html"), 410
    form = await ResetForm.from_request()
    with form.catch_retry_later():
        if await form.passes(partial(_check_password, user)):
            return await _reset(token, form.password.data or "")
    page = await render_template("accounts/reset.html", form=form, username=user.username)
    return page, form.status, form.headers


async def _check_password(user: User, form: ResetForm) -> None:
    """Count the attempt for the network, and add an error to the form if the policy refuses the
    password. Raises RateLimitExceeded and Busy."""
    here = rate_limits.network_of(auth.remote_address())
    await rate_limits.count("new password", (here, settings().limit_recovery))
    await check_new_password(form, user.username, user.address)


async def _reset(token: str, password: str) -> Any:
    """Use up the link and store the hash of the password, which ends all sessions of the user.

    Waits until no worker accepts them, logs `authn_password_reset`, removes the cookie if this
    browser was signed in as the user, and redirects (303) to `/login` with a message. Does not sign
    in. Returns a page with 410 if the link was used meanwhile. Raises Busy.
    """
    try:
        event = await password_reset.reset(
            token, await hasher().hash(password), by=current_user.actor
        )
    except TokenSpent:
        return await render_template("accounts/reset_gone.html"), 410
    reach = await wait_until_enforced(event)
    owner = linked_id(event.subject)
    log.info("authn_password_reset", user=str(owner))
    if current_user.user_id == owner:
        logout_user()
    await flash(_("Your password was changed. Sign in with the new one.") + reach, "success")
    return see_other("/login")
