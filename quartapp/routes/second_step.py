"""The second step of a sign-in: after the password, something that only its owner has."""

from datetime import timedelta
from typing import Any

from quart import Blueprint, flash, redirect

from quartapp import auth, throttle
from quartapp.auth import current_user, settings
from quartapp.forms.accounts import LoginForm
from quartapp.forms.base import digits
from quartapp.forms.factors import FactorForm
from quartapp.log import log
from quartapp.models import Session, User, recovery_codes, totp
from quartapp.models.session import Factor
from quartapp.routes import carried
from quartapp.routes.entry import SECOND_STEP, factor_page, go_on, half_way, sign_in, sign_in_page
from quartapp.routes.places import next_page, see_other, with_next

blueprint = Blueprint("second_step", __name__)

TOLD_EVERY = timedelta(days=1)


@blueprint.route(SECOND_STEP, methods=["GET", "POST"])
async def show() -> Any:
    if current_user.signed_in:
        return await carried.filled_form() or redirect(next_page())
    step = await half_way()
    if step is None:
        if await carried.field():
            return await sign_in_page(LoginForm())
        await flash("Sign in from the start: the second step waits for ten minutes.", "info")
        return see_other(with_next("/login"))
    form = await FactorForm.from_request()
    with form.patience():
        if form.posted:
            if factor := await _shown(step.user, form.code.data or ""):
                await sign_in(step.user, remember=step.remember, factor=factor)
                return await _welcome(factor)
            form.refuse("This code is not the right one, or it was used already.", "code")
    return await factor_page(step.user, form)


async def _shown(user: User, code: str) -> Factor | None:
    """Which factor the code is, if it is one. Raises TooMany."""
    async with throttle.guessing(*await _counted_for(user)) as guess:
        factor = await _factor(user, code)
        guess.right = factor is not None
    if factor is None:
        log.warning("authn_login_fail", login=user.username, ip=auth.remote_address(), step=2)
        failed = await throttle.tally("wrong codes", str(user.id), within=TOLD_EVERY)
        # Once, and not for a slip of the owner: whoever fails here has the password.
        if failed == settings().limit_factor.amount:
            await user.warn_of_wrong_codes(ip=auth.remote_address())
    return factor


async def _factor(user: User, code: str) -> Factor | None:
    plain = digits(code) or ""
    if len(plain) == totp.DIGITS and plain.isascii() and plain.isdigit():
        return Factor.TOTP if await totp.accept(user, plain, seal=auth.seal()) else None
    by = auth.Actor(user.id, user.username, auth.remote_address())
    left = await recovery_codes.use(user, code, by=by)
    return None if left is None else Factor.RECOVERY_CODE


async def _counted_for(user: User) -> list[throttle.Key]:
    """As for passwords, with the difference that whoever gets here knows the password: what they
    use up, they use up of its owner's, but not in a browser where the owner has signed in."""
    browser = auth.known_browser()
    known = browser and await Session.is_known(user.id, browser=browser)
    account = f"second step {user.id} with {browser}" if known else f"second step {user.id}"
    here = throttle.neighbourhood(auth.remote_address())
    return [
        throttle.Key(account, settings().limit_factor, own=True),
        throttle.Key(f"second step from {here}", settings().limit_sign_in_address),
    ]


async def _welcome(factor: Factor) -> Any:
    if factor is not Factor.RECOVERY_CODE:
        return await go_on(next_page())
    await flash(
        "You signed in with a recovery code, which is used up now. If you have lost your "
        "authenticator app, remove it here and set it up anew.",
        "warning",
    )
    return await go_on(with_next("/account/factors"))
