"""Pages of a user's second factors: overview, authenticator app and recovery codes."""

from datetime import timedelta
from typing import Any

import segno
from markupsafe import Markup
from quart import Blueprint, flash, render_template, request, session
from quart_auth import login_required, login_user

from quartapp.auth import (
    CurrentUser,
    current_user,
    fresh_login_required,
    rate_limits,
    signed_in_user,
    wait_until_enforced,
)
from quartapp.forms.factors import AppCodeForm
from quartapp.i18n import gettext as _
from quartapp.log import log
from quartapp.models import Session
from quartapp.models.base.record import new_id
from quartapp.models.factors import recovery_codes, totp
from quartapp.models.factors.enrolment import Enrolled
from quartapp.models.factors.passkey import Answered
from quartapp.models.factors.totp import OfferUsed, WrongAppCode
from quartapp.routes.audit.receipts import flash_receipt
from quartapp.routes.redirects import next_page, see_other, with_next
from quartapp.routes.refusals import returns_to
from quartapp.runtime import encryption, settings

blueprint = Blueprint("factors", __name__, url_prefix="/account/factors")

CODES_LAST = timedelta(minutes=10)
_OFFER, _CODES = "offer", "codes"


@blueprint.get("")
@login_required
async def index() -> str:
    """Show the user's second factors, and their roles that give no permissions until a second
    factor is set up or used."""
    return await render_template(
        "factors/overview.html",
        user=await signed_in_user(),
        waiting=sorted(current_user.withheld),
        then=next_page(),
        onward=with_next,
    )


@blueprint.route("/totp", methods=["GET", "POST"])
@login_required
@fresh_login_required
async def app() -> Any:
    """Show the secret and QR code of an authenticator app; on POST set it up if the code is right.

    Until it is set up, the secret is kept encrypted in the session cookie (`_offered_secret`).
    Redirects (303) to the overview with a message if the user already has an app. If it was set up,
    removes the secret from the cookie and answers as `added` does. A wrong code shows the form with
    422; so does a secret that was used before, which is replaced by a new one. Each POST counts
    towards the limit of changes; past it, the form with 429.
    """
    user = await signed_in_user()
    if user.totp is not None:
        await flash(_("You have already set up an authenticator app."), "info")
        return see_other(with_next("/account/factors"))
    secret = _offered_secret()
    form = await AppCodeForm.from_request()
    with form.catch_retry_later():
        if form.posted:
            await count_change()
            try:
                enrolled = await totp.set_up(
                    user,
                    secret,
                    form.code.data or "",
                    encryption=encryption(),
                    by=current_user.actor,
                )
            except WrongAppCode as error:
                form.refuse(str(error), "code")
            except OfferUsed as error:
                session.pop(_OFFER, None)
                secret = _offered_secret()
                form.refuse(str(error), "code")
            else:
                session.pop(_OFFER, None)
                return await added(enrolled, _("Your authenticator app is set up."))
    page = await render_template(
        "factors/totp.html",
        form=form,
        secret=secret,
        picture=_qr_code(totp.uri(secret, user.username, issuer=settings().site_name)),
        action=request.full_path.rstrip("?"),
        onward=with_next,
    )
    return page, form.status, form.headers


@blueprint.post("/totp/remove")
@returns_to(index, "/account/factors")
@login_required
@fresh_login_required
async def remove_app() -> Any:
    """Remove the authenticator app and redirect (303) to the overview with a message, which differs
    if there was none.

    Counts towards the limit of changes; past it, raises RateLimitExceeded, which is shown on the
    overview (429). Waits until all workers know the user's new permissions, and logs `user_updated`
    if there was one. Ends no sessions.
    """
    user = await signed_in_user()
    await count_change()
    event = await totp.remove(user, by=current_user.actor)
    await wait_until_enforced()
    if event:
        log.info("user_updated", user=user.username, removed="totp")
        await flash(_("Your authenticator app was removed."), "success")
    else:
        await flash(_("There was no authenticator app to remove."), "info")
    return see_other("/account/factors")


@blueprint.get("/recovery-codes")
@login_required
async def codes() -> str:
    """Show new recovery codes once, in the browser that created them; else how many are left.

    A GET takes the codes out of the session cookie, and stores in the database that they were
    shown, because a copy of the cookie would still contain them. They can be shown for ten minutes.
    """
    fresh = session.pop(_CODES, None) if request.method == "GET" else None
    note, fresh_codes = encryption().decrypt_value(fresh, _context(_CODES), max_age=CODES_LAST) or (
        "",
        [],
    )
    # A copy of the cookie may contain the codes, so the database records that they were shown.
    if note and not await Answered.use_note(note, lasts=CODES_LAST):
        fresh_codes = []
    return await render_template(
        "factors/recovery_codes.html",
        user=await signed_in_user(),
        codes=fresh_codes,
        then=next_page(),
    )


@blueprint.post("/recovery-codes")
@returns_to(codes, "/account/factors/recovery-codes")
@login_required
@fresh_login_required
async def make_codes() -> Any:
    """Replace the recovery codes by new ones and redirect (303) to the page that shows them once.

    Logs `user_updated`. Without a second factor, only redirects to the overview with a message.
    Counts towards the limit of changes; past it, raises RateLimitExceeded, which is shown on the
    page of the codes (429).
    """
    user = await signed_in_user()
    if not user.factors:
        await flash(_("Set up a second factor first. You then receive recovery codes."), "info")
        return see_other("/account/factors")
    await count_change()
    made = await recovery_codes.renew(user, by=current_user.actor)
    log.info("user_updated", user=user.username, made="recovery codes")
    return _show_codes(made)


async def count_change() -> None:
    """Count a change of the user's second factors. Raises RateLimitExceeded past the limit."""
    limit = settings().limit_factor_change
    await rate_limits.count("factor change", (str(current_user.user_id), limit))


async def added(enrolled: Enrolled, words: str, *, home: str = "/account/factors") -> Any:
    """Answer after a factor was set up: redirect (303) to the page of new recovery codes if there
    are any, else to `home`.

    Waits until no worker accepts the sessions that ended, and logs `user_updated`. If the session
    got a new token (with the first factor), sets the new cookie and loads the current user again.
    Flashes `words`; with new recovery codes also that the password alone no longer suffices, and
    how many tabs have acknowledged the end of their sessions.
    """
    await wait_until_enforced(enrolled.event)
    log.info("user_updated", user=current_user.username, added=enrolled.event.details.get("factor"))
    if enrolled.token and (mine := await Session.get(current_user.session_id)):
        login_user(CurrentUser(enrolled.token), remember=mine.remembered)
        await current_user.load()
    if not enrolled.codes:
        await flash(words, "success")
        return see_other(with_next(home))
    words = f"{words} {_('Your password alone no longer signs you in.')}"
    await flash_receipt(words, enrolled.event)
    return _show_codes(enrolled.codes)


def _show_codes(codes: list[str]) -> Any:
    """Store the codes encrypted in the session cookie, and redirect (303) to the page that shows
    them once."""
    note = f"recovery codes {new_id()}"
    session[_CODES] = encryption().encrypt_value([note, codes], _context(_CODES))
    return see_other(with_next("/account/factors/recovery-codes"))


def _offered_secret() -> str:
    """Return the secret that this session is setting up.

    Creates a new one, and stores it encrypted in the session cookie, if there is none or it is
    older than an hour.
    """
    secret = encryption().decrypt_value(
        session.get(_OFFER), _context(_OFFER), max_age=totp.OFFER_LASTS
    )
    if secret is None:
        secret = totp.new_secret()
        session[_OFFER] = encryption().encrypt_value(secret, _context(_OFFER))
    return str(secret)


def _context(what: str) -> str:
    """Return the context that binds an encrypted value to this session."""
    return f"{what} of session {current_user.session_id}"


def _qr_code(text: str) -> Markup:
    """Return a QR code as SVG, always dark on light, because many apps read nothing else."""
    code = segno.make(text, error="m", micro=False)
    picture = code.svg_inline(omitsize=True, border=3, light="#fff", svgclass="qr")
    # The SVG has only paths and numbers, no text from users.
    return Markup(picture)  # noqa: S704
