"""The second step of a sign-in: a code or passkey after the password."""

from typing import Any

from quart import Blueprint, flash, redirect

from quartapp import auth
from quartapp.auth import IncorrectCode, current_user
from quartapp.forms.sessions import FactorForm, LoginForm
from quartapp.i18n import gettext as _
from quartapp.models.factors.factor import Factor
from quartapp.models.factors.wrong_codes import FactorsBlocked
from quartapp.routes import carried_forms
from quartapp.routes.redirects import next_page, see_other, with_next
from quartapp.routes.sessions.sign_in import (
    SECOND_STEP,
    factor_page,
    finish_second_step,
    go_on,
    pending_sign_in,
    sign_in_page,
)

blueprint = Blueprint("second_step", __name__)


@blueprint.route(SECOND_STEP, methods=["GET", "POST"])
async def show() -> Any:
    """Complete a sign-in by a code of the authenticator app or a recovery code.

    GET shows the form; a signed-in user is redirected to `next`, or gets the form that was carried.
    The POST opens the session and answers as `_signed_in` does. A wrong code is counted and logged
    (`authn_login_fail`), and is an error of the form (422, also when wrong codes have blocked the
    second factor; 429 or 503 after too many). If the first step has expired or was used, answers as
    `start_over` does.
    """
    if current_user.signed_in:
        return await carried_forms.filled_form() or redirect(next_page())
    step = await pending_sign_in()
    if step is None:
        return await start_over()
    form = await FactorForm.from_request()
    with form.catch_retry_later():
        if form.posted:
            try:
                factor = await auth.use_factor_code(step.user, form.code.data or "")
            except FactorsBlocked as blocked:
                form.refuse(str(blocked))
            else:
                if factor is None:
                    form.refuse(str(IncorrectCode()), "code")
                elif await finish_second_step(step, factor):
                    return await _signed_in(factor)
                else:
                    return await start_over()
    return await factor_page(step.user, form)


async def start_over() -> Any:
    """Lead back to the sign-in page, because the first step has expired or was used already.

    Redirects (303) to `/login` with a message, or shows that page if the request carries a form.
    """
    if await carried_forms.field():
        return await sign_in_page(LoginForm())
    await flash(
        _("The sign-in has expired. Sign in again and enter the code within 10 minutes."), "info"
    )
    return see_other(with_next("/login"))


async def _signed_in(factor: Factor) -> Any:
    """Answer a completed sign-in: lead to `next` or show the carried form. After a recovery code,
    lead to the page of the factors with a message instead."""
    if factor is not Factor.RECOVERY_CODE:
        return await go_on(next_page())
    await flash(
        _(
            "You signed in with a recovery code, which cannot be used again. If you have lost your "
            "authenticator app, remove it under “Two-factor authentication”, and set it up again."
        ),
        "warning",
    )
    return await go_on(with_next("/account/factors"))
