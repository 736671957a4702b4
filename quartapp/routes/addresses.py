"""One's e-mail address: confirming it, and changing it."""

from typing import Any

from quart import Blueprint, flash, redirect, render_template
from quart_auth import login_required

from quartapp.auth import current_user, fresh_login_required, me, settings
from quartapp.forms.accounts import CodeForm, EmailForm, LinkForm
from quartapp.log import log
from quartapp.models import User, address
from quartapp.models.address import EnoughLetters, NoCode, WrongCode
from quartapp.models.token import TokenSpent
from quartapp.models.user import Taken
from quartapp.routes.places import see_other

blueprint = Blueprint("addresses", __name__)


@blueprint.route("/account/email", methods=["GET", "POST"])
@login_required
@fresh_login_required
async def change() -> Any:
    user = await me()
    form = await EmailForm.from_request()
    if form.posted:
        email = form.email.data or ""
        if email == user.email and user.email_verified_at:
            form.refuse("This is your address already.", "email")
        else:
            try:
                await address.ask_for(user, email, by=current_user.actor)
            except EnoughLetters as enough:
                form.refuse(str(enough))
                page = await render_template("account/email.html", form=form, user=user)
                return page, 429, {"Retry-After": str(enough.retry_after)}
            return see_other("/verify")
    return await render_template("account/email.html", form=form, user=user), form.status


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
    if form.posted:
        key = settings().secret_key.get_secret_value()
        try:
            user = await address.confirm_by_code(
                user, form.code.data or "", key=key, by=current_user.actor
            )
        except (WrongCode, NoCode, Taken) as refused:
            log.warning("address_code_refused", user=user.username)
            form.refuse(str(refused), "code")
        else:
            return await _confirmed(user)
    form.code.data = None
    page = await render_template(
        "account/verify.html", form=form, user=user, email=address.unconfirmed(user)
    )
    return page, form.status


@blueprint.post("/account/email/again")
@login_required
async def send_again() -> Any:
    user = await me()
    try:
        await address.ask_again(user, by=current_user.actor)
    except EnoughLetters as enough:
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
