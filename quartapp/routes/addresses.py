"""One's e-mail address: confirming it, and changing it."""

from typing import Any

from quart import Blueprint, flash, redirect, render_template
from quart_auth import login_required

from quartapp import throttle
from quartapp.auth import current_user, fresh_login_required, me, remote_address, settings
from quartapp.forms.accounts import CodeForm, EmailForm, LinkForm
from quartapp.log import log
from quartapp.models import User, address
from quartapp.models.address import EnoughLetters, NoCode, WrongCode
from quartapp.models.token import TokenSpent
from quartapp.models.user import Taken
from quartapp.routes.places import see_other
from quartapp.throttle import TooMany

blueprint = Blueprint("addresses", __name__)


@blueprint.route("/account/email", methods=["GET", "POST"])
@login_required
@fresh_login_required
async def change() -> Any:
    user = await me()
    form = await EmailForm.from_request()
    with form.patience():
        if form.posted:
            email = form.email.data or ""
            if email == user.email and user.email_verified_at:
                form.refuse("This is your address already.", "email")
            else:
                await _count(email, user)
                try:
                    limit = settings().limit_letter
                    await address.ask_for(user, email, limit=limit, by=current_user.actor)
                except EnoughLetters as enough:
                    form.refuse(str(enough))
                    page = await render_template("account/email.html", form=form, user=user)
                    return page, 429, {"Retry-After": str(enough.retry_after)}
                return see_other("/verify")
    page = await render_template("account/email.html", form=form, user=user)
    return page, form.status, form.headers


async def _count(email: str, user: User) -> None:
    """For the address that the letter goes to, unless the account has it: with enough accounts
    somebody's mailbox could be filled. Raises TooMany."""
    if email.casefold() != user.email.casefold():
        await throttle.count("letter", (email.casefold(), settings().limit_letter_address))


@blueprint.post("/account/email/keep")
@login_required
async def keep() -> Any:
    """Takes back the wish for another address."""
    await address.forget(await me())
    await flash("Your address stays as it is.", "info")
    return see_other("/account")


@blueprint.route("/verify", methods=["GET", "POST"])
@login_required
async def by_code() -> Any:
    user = await me()
    if address.unconfirmed(user) is None:
        return redirect("/account")
    form = await CodeForm.from_request()
    with form.patience():
        if form.posted:
            try:
                user = await _confirm_by_code(user, form.code.data or "")
            except (WrongCode, NoCode, Taken) as refused:
                log.warning("address_code_refused", user=user.username)
                form.refuse(str(refused), "code")
            else:
                return await _confirmed(user)
    form.code.data = None
    page = await render_template(
        "account/verify.html", form=form, user=user, email=address.unconfirmed(user)
    )
    return page, form.status, form.headers


async def _confirm_by_code(user: User, code: str) -> User:
    """Counted for the address, which may have many accounts. Raises TooMany and what
    `address.confirm_by_code` raises."""
    here = f"code from {throttle.neighbourhood(remote_address())}"
    wrong = None
    async with throttle.guessing(throttle.Key(here, settings().limit_sign_in_address)) as guess:
        try:
            user = await address.confirm_by_code(
                user,
                code,
                key=settings().secret_key.get_secret_value(),
                tries=settings().tries_per_code,
                by=current_user.actor,
            )
            guess.right = True
        except WrongCode as error:
            wrong = error
    if wrong:
        raise wrong
    return user


@blueprint.post("/account/email/again")
@login_required
async def send_again() -> Any:
    user = await me()
    try:
        if user.pending_email:
            await _count(user.pending_email, user)
        await address.ask_again(user, limit=settings().limit_letter, by=current_user.actor)
    except (EnoughLetters, TooMany) as enough:
        form = CodeForm()
        form.refuse(str(enough))
        page = await render_template(
            "account/verify.html", form=form, user=user, email=address.unconfirmed(user)
        )
        return page, 429, {"Retry-After": str(enough.retry_after)}
    await flash("Another letter is on its way. What was in the older ones is void.", "success")
    return see_other("/verify")


@blueprint.route("/verify/<token>", methods=["GET", "POST"])
async def by_link(token: str) -> Any:
    """Opening the link does nothing: programs that look at mail open links. A button does it."""
    asked = await address.asked_by(token)
    if asked is None:
        return await render_template("account/verify_gone.html"), 410
    email, user = asked
    form = await LinkForm.from_request()
    if form.posted:
        try:
            user = await address.confirm_by_link(token, by=current_user.actor)
        except TokenSpent:
            return await render_template("account/verify_gone.html"), 410
        except Taken as taken:
            form.refuse(str(taken))
        else:
            return await _confirmed(user)
    page = await render_template("account/verify_link.html", form=form, email=email, user=user)
    return page, form.status


async def _confirmed(user: User) -> Any:
    log.info("address_confirmed", user=user.username)
    await flash("Your e-mail address is confirmed.", "success")
    return see_other("/account" if current_user.signed_in else "/login")
