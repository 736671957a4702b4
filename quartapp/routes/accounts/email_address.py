"""Verifying and changing the email address of an account.

Verification needs two things: the link or code from an email, and a browser that is signed in to
the account or knows its password. So the owner of a mailbox cannot activate an account that a
stranger registered with their address, and the stranger cannot activate it without the email.
"""

from typing import Any

from quart import Blueprint, flash, redirect, render_template
from quart_auth import Unauthorized, login_required, logout_user

from quartapp.auth import (
    current_user,
    fresh_login_required,
    rate_limits,
    remote_address,
    signed_in_user,
    wait_until_enforced,
)
from quartapp.auth.rate_limits import RateLimitExceeded
from quartapp.forms.accounts import CodeForm, EmailForm, LinkForm
from quartapp.forms.base import Form
from quartapp.forms.sessions import ConfirmForm
from quartapp.i18n import gettext as _
from quartapp.log import log
from quartapp.models import User
from quartapp.models.accounts import address_undo, email_address, password_reset
from quartapp.models.accounts.account import Taken
from quartapp.models.accounts.email_address import NoCode, TooManyEmails, WrongCode
from quartapp.models.accounts.one_time_token import TokenSpent
from quartapp.routes.accounts.pages import knows_password
from quartapp.routes.redirects import next_page, see_other, with_next
from quartapp.routes.refusals import returns_to
from quartapp.routes.sessions.sign_in import (
    Unverified,
    is_verifying,
    sign_in,
    sign_in_or_second_step,
    stop_verifying,
    verifying,
)
from quartapp.runtime import settings
from quartapp.validation import mailbox_of

blueprint = Blueprint("addresses", __name__)


@blueprint.route("/account/email", methods=["GET", "POST"])
@login_required
@fresh_login_required
async def change() -> Any:
    """Ask for a change of the email address. GET shows the form.

    The POST stores the new address as pending, queues an email with a link and a code to it, and
    redirects (303) to `/verify`. The account keeps its address until then. The form is shown again
    with 422 for invalid input or the present address, and with 429 and Retry-After if too many
    emails were requested by the user or for the mailbox.
    """
    user = await signed_in_user()
    form = await EmailForm.from_request()
    with form.catch_retry_later():
        if form.posted:
            email = form.email.data or ""
            if email == user.email and user.verified:
                form.refuse(_("This is already your email address."), "email")
            else:
                await _count(email, user)
                try:
                    limit = settings().limit_letter
                    await email_address.request_change(
                        user, email, limit=limit, by=current_user.actor
                    )
                except TooManyEmails as enough:
                    form.refuse(str(enough))
                    page = await render_template("accounts/email.html", form=form, user=user)
                    return page, 429, {"Retry-After": str(enough.retry_after)}
                return see_other("/verify")
    page = await render_template("accounts/email.html", form=form, user=user)
    return page, form.status, form.headers


async def _count(email: str, user: User) -> None:
    """Count an email to the mailbox, for all users together, unless it is the mailbox of the
    account.

    Otherwise a person with many accounts could flood a mailbox. Raises RateLimitExceeded.
    """
    mailbox = mailbox_of(email)
    if mailbox != mailbox_of(user.email):
        await rate_limits.count("letter", (mailbox, settings().limit_letter_address))


async def show_change() -> Any:
    """Return the page with the form that changes the address."""
    return await render_template(
        "accounts/email.html", form=EmailForm(), user=await signed_in_user()
    )


@blueprint.post("/account/email/keep")
@returns_to(show_change, "/account/email")
@login_required
async def keep() -> Any:
    """Cancel a change of the address that is not verified yet, so that its link and code no longer
    work, and redirect (303) to `/account` with a message. Says the same if there was none."""
    await email_address.cancel_change(await signed_in_user())
    await flash(_("The change was cancelled. Your email address stays the same."), "info")
    return see_other("/account")


@blueprint.route("/verify", methods=["GET", "POST"])
async def by_code() -> Any:
    """Verify the address by a code. GET shows the form; the POST answers as `_verified` does.

    For signed-in users, and for browsers that have registered or signed in to an account that
    cannot be used until its address is verified; others are answered as `_nothing_to_verify` does.
    A wrong or void code, and an address that another account has by now, is logged
    (`address_code_refused`) and is an error of the form (422). Too many attempts from the network
    show the form with 429, or with 503 while too many wait. If there is no address to verify,
    redirects as `_verified_already` does.
    """
    if current_user.signed_in:
        user, waiting = await signed_in_user(), None
    else:
        waiting = await verifying()
        if waiting is None:
            return await _nothing_to_verify()
        user = waiting.user
    email = email_address.unconfirmed(user)
    if email is None:
        return await _verified_already()
    form = await CodeForm.from_request()
    with form.catch_retry_later():
        if form.posted:
            try:
                user = await _confirm_by_code(user, form.code.data or "")
            except (WrongCode, NoCode, Taken) as refused:
                log.warning("address_code_refused", user=user.username)
                form.refuse(str(refused), "code")
            else:
                return await _verified(user, waiting)
    form.code.data = None
    return await _code_page(form, email, waiting), form.status, form.headers


async def _nothing_to_verify() -> Any:
    """Answer a browser that is not signed in and has no valid registration to verify.

    If its session cookie names one that is no longer valid, removes that from the cookie and
    redirects (303) to `/login` with a message. Otherwise raises Unauthorized.
    """
    if not is_verifying():
        raise Unauthorized
    stop_verifying()
    await flash(
        _(
            "Your registration has expired or was replaced by a later one. If you cannot sign in, "
            "register again."
        ),
        "info",
    )
    return see_other("/login")


async def _verified_already() -> Any:
    """Redirect a signed-in user to `/account` (302), and other browsers to `/login` with a message
    (303), keeping `next`. For the others, also removes the account to verify from the session
    cookie."""
    if current_user.signed_in:
        return redirect("/account")
    stop_verifying()
    await flash(_("Your email address is verified. Sign in."), "success")
    return see_other(with_next("/login"))


async def _code_page(form: CodeForm, email: str, waiting: Unverified | None) -> str:
    return await render_template(
        "accounts/verify.html", form=form, email=email, waiting=waiting is not None
    )


async def _confirm_by_code(user: User, code: str) -> User:
    """Verify the address of the user by a code, and return the user as stored then.

    Wrong codes are also counted for the network, for all accounts together; other errors are not.
    Raises RateLimitExceeded, Busy and what `email_address.confirm_by_code` raises: WrongCode,
    NoCode and Taken.
    """
    here = f"code from {rate_limits.network_of(remote_address())}"
    wrong = None
    async with rate_limits.attempt(
        rate_limits.Key(here, settings().limit_sign_in_address)
    ) as attempt:
        try:
            user = await email_address.confirm_by_code(
                user,
                code,
                key=settings().secret_key.get_secret_value(),
                tries=settings().tries_per_code,
                by=current_user.actor,
            )
            attempt.succeeded = True
        except WrongCode as error:
            wrong = error
    if wrong:
        raise wrong
    return user


async def show_code() -> Any:
    """Return the page with the form for the code."""
    waiting = None if current_user.signed_in else await verifying()
    user = waiting.user if waiting else await signed_in_user()
    return await _code_page(CodeForm(), email_address.unconfirmed(user) or user.email, waiting)


@blueprint.post("/account/email/again")
@returns_to(show_code, "/verify")
async def send_again() -> Any:
    """Queue the verification email again, and redirect (303) to `/verify` with a message.

    When it is sent, links and codes of earlier emails become void. Shows the form with 429 and
    Retry-After if too many emails were requested. A browser without an address to verify is
    answered as `_verified_already` or `_nothing_to_verify` does.
    """
    waiting = None if current_user.signed_in else await verifying()
    if waiting is None and not current_user.signed_in:
        return await _nothing_to_verify()
    user = waiting.user if waiting else await signed_in_user()
    email = email_address.unconfirmed(user)
    if email is None:
        return await _verified_already()
    try:
        if user.pending_email:
            await _count(user.pending_email, user)
        await email_address.request_again(
            user, limit=settings().limit_letter, by=current_user.actor
        )
    except (TooManyEmails, RateLimitExceeded) as enough:
        form = CodeForm()
        form.refuse(str(enough))
        page = await _code_page(form, email, waiting)
        return page, 429, {"Retry-After": str(enough.retry_after)}
    await flash(_("We sent another email. The older links and codes no longer work."), "success")
    return see_other(with_next("/verify"))


@blueprint.route("/verify/<token>", methods=["GET", "POST"])
async def by_link(token: str) -> Any:
    """Verify the address by a link. GET shows a page with a button and changes nothing, because
    mail scanners open links.

    The POST of the button verifies the address and answers as `_verified` does. A browser that is
    neither signed in to the account nor has registered it must also send the password of the
    account, which counts as an attempt to sign in (429 or 503 after too many). A void link gets a
    page with 410; a wrong password, or an address that another account has by now, is an error of
    the form (422).
    """
    asked = await email_address.address_to_verify(token)
    if asked is None:
        return await _gone()
    email, user = asked
    waiting = None if current_user.signed_in else await verifying()
    if waiting and waiting.user.id != user.id:
        waiting = None
    proven = current_user.user_id == user.id or waiting is not None
    form: Form = await (LinkForm if proven else ConfirmForm).from_request()
    with form.catch_retry_later():
        if form.posted:
            if not proven and not await knows_password(user, form["password"].data or ""):
                form.refuse(_("Incorrect password."), "password")
            else:
                try:
                    user = await email_address.confirm_by_link(user, token, by=current_user.actor)
                except TokenSpent:
                    return await _gone()
                except Taken as taken:
                    form.refuse(str(taken))
                else:
                    return await _verified(user, waiting)
    page = await render_template(
        "accounts/verify_link.html", form=form, email=email, user=user, proven=proven
    )
    return page, form.status, form.headers


@blueprint.route("/undo/<token>", methods=["GET", "POST"])
async def undo(token: str) -> Any:
    """Restore the address that an account had before a change. GET shows a page with a button.

    The POST restores it, voids the password, removes recovery codes and the factors added since the
    change, and ends all sessions of the account (see `address_undo.undo`). Waits until no worker
    accepts them, logs the warning `address_restored`, removes the cookie if this browser was signed
    in to the account, and redirects (303) to a new link for setting the password, with a message.
    Needs no sign-in: the link was sent to the old address. A void link gets a page with 410; if
    another account has the address, the form says so (422).
    """
    asked = await address_undo.address_to_restore(token)
    if asked is None:
        return await render_template("accounts/undo_gone.html"), 410
    email, user = asked
    form = await LinkForm.from_request()
    if form.posted:
        try:
            event = await address_undo.undo(token, by=current_user.actor)
        except TokenSpent:
            return await render_template("accounts/undo_gone.html"), 410
        except Taken:
            form.refuse(
                _("Another account now uses %(email)s. Contact an administrator.", email=email)
            )
        else:
            reach = await wait_until_enforced(event)
            log.warning("address_restored", user=user.username)
            if current_user.user_id == user.id:
                logout_user()
            restored = await User.get(user.id)
            assert restored is not None, "nothing but its deletion date removes an account"
            await flash(
                _("Your email address was restored. Now set a new password.") + reach, "success"
            )
            return see_other(f"/reset/{await password_reset.issue_now(restored)}")
    page = await render_template("accounts/undo.html", form=form, email=email, user=user)
    return page, form.status


async def _gone() -> Any:
    """Answer a void link with a page and 410."""
    return await render_template("accounts/verify_gone.html"), 410


async def _verified(user: User, waiting: Unverified | None) -> Any:
    """Log a verification (`address_confirmed`), and answer it with a message.

    A browser that is signed in, to this or another account, is redirected to `/account`. Otherwise
    signs in to the account. A browser that had registered or signed in before (`waiting`) gets a
    session as it had asked for, and is redirected to `next`. One that has just shown the password
    is answered as `sign_in_or_second_step` does.
    """
    log.info("address_confirmed", user=user.username)
    if current_user.signed_in:
        mine = current_user.user_id == user.id
        words = _("Your email address is verified.")
        if not mine:
            words = _(
                "The email address of %(name)s is verified. You are still signed in as %(other)s.",
                name=user.username,
                other=current_user.username,
            )
        await flash(words, "success")
        return see_other("/account")
    if waiting:
        await sign_in(user, remember=waiting.remember, factor=waiting.factor)
        answer: Any = see_other(next_page())
    else:
        answer = await sign_in_or_second_step(user, remember=False, then="/")
    await flash(_("Your email address is verified."), "success")
    return answer
