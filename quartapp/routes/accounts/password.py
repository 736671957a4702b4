"""Changing the password."""

from functools import partial
from typing import Any

from quart import Blueprint, flash, render_template, request
from quart_auth import login_required, login_user, logout_user

from quartapp import auth
from quartapp.auth import (
    CurrentUser,
    current_user,
    rate_limits,
    remote_address,
    signed_in_user,
    wait_until_enforced,
)
from quartapp.forms.accounts import PasswordForm
from quartapp.i18n import gettext as _
from quartapp.log import log
from quartapp.models import Session, User
from quartapp.routes.accounts.new_password import check_new_password
from quartapp.routes.redirects import AFTER_STRANGER, see_other, with_next
from quartapp.runtime import hasher, password_policy, settings
from quartapp.security.password_policy import MIN_SCORE
from quartapp.security.passwords import Busy

blueprint = Blueprint("passwords", __name__)


@blueprint.route("/account/password", methods=["GET", "POST"])
@login_required
async def change() -> Any:
    """Change the password. GET shows the form.

    The POST checks the current password, counting and logging a wrong one, and then the policy for
    the new one; all errors are shown on the form (422, 429 or 503). Success answers as `_change`
    does. A user with a second factor whose session is not fresh is redirected (303) to `/confirm`
    first, on GET and POST (see docs/adr/0078).
    """
    if not current_user.fresh and (await signed_in_user()).factors:
        return see_other(with_next("/confirm", request.full_path.rstrip("?")))
    form = await PasswordForm.from_request()
    with form.catch_retry_later():
        if form.sent:
            user = await signed_in_user()
            if await form.passes(partial(_check_passwords, user)):
                return await _change(user, form.password.data or "")
    page = await render_template(
        "accounts/password.html",
        form=form,
        action=request.full_path.rstrip("?"),
        after_stranger=_comes_from_not_me(),
    )
    return page, form.status, form.headers


@blueprint.post("/password/strength")
async def strength() -> Any:
    """Rate a password that is being typed, as the forms do that set one: a piece of HTML with the
    score, from 0 to 4, and a sentence for the user; nothing for an empty password.

    The fields `username` and `email`, and those of the signed-in user, are words that the password
    should not contain. Counts the request for the network. Stores and logs nothing. Raises
    RateLimitExceeded, and Busy while many passwords wait to be scored: those that are sent with a
    form come first.
    """
    await _count_rating()
    if not password_policy().has_room:
        raise Busy
    sent = await request.form
    password = sent.get("password", "")
    if not password:
        return await render_template("accounts/strength.html")
    context = [sent.get("username", ""), sent.get("email", "")]
    if current_user.signed_in and (user := await User.get(current_user.user_id)):
        context += [user.username, user.email]
    rating = await password_policy().rate(password, context=context)
    praise = _("Very good password.") if rating.score > MIN_SCORE else _("Good password.")
    return await render_template(
        "accounts/strength.html", score=rating.score, text=rating.weakness or praise
    )


async def _check_passwords(user: User, form: PasswordForm) -> None:
    """Add an error to the form if the current password is wrong, and another if the policy refuses
    the new one.

    A wrong password is counted (see `password_attempt`) and logged. Without a current password,
    counts the new one as one that is rated while it is typed. Raises RateLimitExceeded and Busy.
    """
    # The attempt is counted before the new password is scored, which is costly.
    if form.current_password.errors:
        await _count_rating()
    elif not await _is_current_password(form.current_password.data or "", user):
        auth.report_failed_attempt(login=user.username)
        form.refuse(_("Incorrect password."), "current_password")
    await check_new_password(form, user.username, user.email)


async def _is_current_password(password: str, user: User) -> bool:
    """Return whether the password is the user's. A failure is counted (see `password_attempt`), but
    not logged. Raises RateLimitExceeded and Busy."""
    async with auth.password_attempt(user) as attempt:
        attempt.succeeded = await hasher().verify(password, user.password_hash)
    return attempt.succeeded


async def _count_rating() -> None:
    """Count a password that is rated, for the network. Raises RateLimitExceeded."""
    here = rate_limits.network_of(remote_address())
    await rate_limits.count("password feedback", (here, settings().limit_password_feedback))


async def _change(user: User, password: str) -> Any:
    """Store the hash of the new password, which ends all other sessions of the user, and wait until
    no worker accepts them.

    The current session gets a new token and cookie; if it was ended meanwhile, its cookie is
    removed. Logs `authn_password_change`, and redirects (303) with a message to `/account`, or to
    the steps after "This wasn't me" from where the user came. Raises Busy, and PasswordMoved if the
    password was changed since it was checked.
    """
    token = await user.change_password(
        await hasher().hash(password), by=current_user.actor, keep=current_user.session_id
    )
    await wait_until_enforced()
    log.info("authn_password_change", user=user.username)
    kept = await Session.get(current_user.session_id)
    if token and kept:
        login_user(CurrentUser(token), remember=kept.remembered)
    else:
        # The session was ended in the meantime. The password was changed anyway.
        logout_user()
    await flash(_("Your password was changed. All your other sessions have ended."), "success")
    return see_other(AFTER_STRANGER if _comes_from_not_me() else "/account")


def _comes_from_not_me() -> bool:
    """Whether the user came from the steps after "This wasn't me"."""
    return request.args.get("after") == "not-me"
