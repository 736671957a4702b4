"""Pages for deactivating and deleting one's own account, and for restoring it after signing in."""

from functools import partial
from typing import Any

from quart import Blueprint, flash, redirect, render_template, session
from quart_auth import Unauthorized, login_required, logout_user

from quartapp import auth, clock
from quartapp.auth import current_user, fresh_login_required, signed_in_user, wait_until_enforced
from quartapp.forms.accounts import LinkForm
from quartapp.forms.privacy import DeleteForm
from quartapp.i18n import gettext as _
from quartapp.i18n.times import format_time
from quartapp.log import log
from quartapp.models import User
from quartapp.models.accounts.administrators import LastAdministrator, refusals_to_lose
from quartapp.models.accounts.one_time_token import TokenSpent
from quartapp.models.factors.factor import Factor
from quartapp.models.privacy import account_deletion
from quartapp.routes.accounts.pages import account
from quartapp.routes.redirects import see_other
from quartapp.routes.refusals import refuse, returns_to
from quartapp.routes.sessions.sign_in import RETURN, sign_in
from quartapp.runtime import settings

blueprint = Blueprint("leaving", __name__)


@blueprint.route("/account/delete", methods=["GET", "POST"])
@login_required
@fresh_login_required
async def delete() -> Any:
    """Show the form for deleting one's account; on POST schedule the deletion and answer as
    `_leave` does.

    The account is deactivated at once, all its sessions end, and it is erased after DELETION_GRACE.
    The form asks for the username, and whether posts are deleted too. A wrong username, and the
    account of the last administrator, are errors of the form (422).
    """
    user = await signed_in_user()
    form = await DeleteForm.from_request()
    form.expect(user.username)
    until = clock.now() + settings().deletion_grace
    if await form.passes(partial(check_administrators, user)):
        try:
            await user.deactivate(
                by=current_user.actor, deletes_at=until, with_posts=form.with_posts
            )
        except LastAdministrator as last:
            refuse(form, last)
        else:
            return await _leave(
                _(
                    "Your account will be permanently deleted on %(time)s. To keep it, sign in "
                    "before then.",
                    time=format_time(until),
                )
            )
    page = await render_template("privacy/delete.html", form=form, user=user, until=until)
    return page, form.status


async def check_administrators(person: User, form: DeleteForm) -> None:
    """Add an error to the form if the user is the last administrator."""
    refuse(form, *await refusals_to_lose(person.id))


@blueprint.post("/account/deactivate")
@returns_to(account, "/account")
@login_required
@fresh_login_required
async def deactivate() -> Any:
    """Deactivate the user's account, which ends all its sessions, and answer as `_leave` does.

    Raises LastAdministrator, which is shown on the account page (422).
    """
    await (await signed_in_user()).deactivate(by=current_user.actor)
    return await _leave(_("Your account is deactivated. To reactivate it, sign in."))


@blueprint.route("/account/closed", methods=["GET", "POST"])
async def closed() -> Any:
    """Offer to restore the account to a user who has just signed in to a deactivated one.

    On POST restores it, logs `user_restored`, signs the user in and redirects (303) to `/account`
    with a message. Redirects users who are signed in to `/account` (302). Raises Unauthorized if
    the session cookie has no valid token for that.
    """
    if current_user.signed_in:
        return redirect("/account")
    noted = session.get(RETURN, {})
    token = str(noted.get("token"))
    user = await account_deletion.user_to_restore(token)
    if user is None:
        raise Unauthorized
    form = await LinkForm.from_request()
    if form.posted:
        try:
            user = await account_deletion.restore_with_token(token, by=current_user.actor)
        except TokenSpent:
            raise Unauthorized from None
        log.info("user_restored", user=user.username, by=user.username)
        factor = noted.get("factor")
        await sign_in(user, remember=bool(noted.get("remember")), factor=factor and Factor(factor))
        await flash(_("Welcome back. Your account is active again."), "success")
        return see_other("/account")
    return await render_template("privacy/closed.html", form=form, user=user)


async def _leave(words: str) -> Any:
    """Answer after the user's account was deactivated: redirect (303) to `/` with `words` as a
    message.

    Logs `user_closed`, and waits until no worker accepts its sessions. Removes the session cookie,
    clears Quart's session, and tells the browser to delete the stored data of this site
    (Clear-Site-Data).
    """
    log.info("user_closed", user=current_user.username, ip=auth.remote_address())
    await wait_until_enforced()
    logout_user()
    session.clear()
    await flash(words, "success")
    response = see_other("/")
    response.headers["Clear-Site-Data"] = '"storage"'
    return response
