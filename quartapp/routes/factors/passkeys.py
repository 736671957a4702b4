"""Pages for managing passkeys and for signing in with them. passkeys.js calls the browser's API."""

from typing import Any

from quart import Blueprint, abort, flash, jsonify, render_template
from quart_auth import login_required

from quartapp import auth
from quartapp.auth import (
    current_user,
    fresh_login_required,
    rate_limits,
    signed_in_user,
    wait_until_enforced,
)
from quartapp.forms.factors import AddForm, RenameForm, ShowForm
from quartapp.forms.sessions import FactorForm, LoginForm
from quartapp.i18n import gettext as _
from quartapp.i18n import lazy_gettext
from quartapp.log import log
from quartapp.models import Passkey, User
from quartapp.models.base.actor import Actor
from quartapp.models.base.references import linked_id
from quartapp.models.factors.enrolment import Enrolled
from quartapp.models.factors.factor import Factor
from quartapp.models.factors.passkey import PasskeyTaken, TooManyPasskeys
from quartapp.models.factors.wrong_codes import FactorsBlocked
from quartapp.routes.factors import pages
from quartapp.routes.factors.relying_party import asker, site
from quartapp.routes.pagination import id_or_404
from quartapp.routes.redirects import next_page, see_other
from quartapp.routes.refusals import refuse, returns_to
from quartapp.routes.sessions import second_step
from quartapp.routes.sessions.sign_in import (
    AccountDisabled,
    PendingSignIn,
    factor_page,
    finish_second_step,
    go_on,
    pending_sign_in,
    sign_in,
    sign_in_page,
)
from quartapp.runtime import settings
from quartapp.security import webauthn
from quartapp.security.webauthn import VerificationFailed

blueprint = Blueprint("passkeys", __name__)

HOME = "/account/factors/passkeys"
NOT_ACCEPTED = lazy_gettext("This passkey was not accepted. Try again, or sign in another way.")


# ---- managing passkeys


@blueprint.get(f"{HOME}/options")
@login_required
async def options_to_add() -> Any:
    """Return the options for creating a passkey as JSON, with a new challenge for this user.

    They exclude the passkeys that the user has. 404 if passkeys do not work at this address.
    """
    user = await signed_in_user()
    options = webauthn.registration_options(
        site() or abort(404),
        asker("make"),
        site_name=settings().site_name,
        user_handle=user.id.binary,
        username=user.username,
        existing=[(each.credential_id, each.transports) for each in await Passkey.of_user(user.id)],
    )
    return jsonify(options)


@blueprint.route(HOME, methods=["GET", "POST"])
@login_required
@fresh_login_required
async def mine() -> Any:
    """Show the user's passkeys; on POST add the one that the browser has created.

    Success answers as `pages.added` does. If there are too many, or it is known already, or the
    browser's answer is not valid (logged as `passkey_not_added`), shows the page again with an
    error and 422. Each POST counts towards the limit of changes; past it, the page with 429.
    """
    form = await AddForm.from_request(data={"name": auth.device_name()[:60]})
    with form.catch_retry_later():
        if await form.passes(_check_room):
            await pages.count_change()
            try:
                enrolled = await _add(form)
            except (TooManyPasskeys, PasskeyTaken) as refused:
                refuse(form, refused)
            except VerificationFailed as refused:
                log.warning("passkey_not_added", user=current_user.username, why=str(refused))
                form.refuse(
                    _("The passkey was not added. The request expired or was not valid. Try again.")
                )
            else:
                words = _("The passkey “%(name)s” was added.", name=form.name.data)
                return await pages.added(enrolled, words, home=HOME)
    return await _page(form)


async def _check_room(form: AddForm) -> None:
    """Add an error to the form if the user has the maximum number of passkeys."""
    at_most = settings().passkeys_per_user
    refuse(form, *Passkey.refusals_to_add(await signed_in_user(), at_most=at_most))


async def _add(form: AddForm) -> Enrolled:
    """Verify the answer of the browser, store the passkey and return what `Passkey.add` returns.

    Raises VerificationFailed if the answer is not valid, and what `Passkey.add` raises. 404 if
    passkeys do not work at this address.
    """
    made = webauthn.verify_registration(
        site() or abort(404), asker("make"), form.credential.data or ""
    )
    user = await signed_in_user()
    return await Passkey.add(
        user,
        made,
        name=form.name.data or "",
        by=current_user.actor,
        at_most=settings().passkeys_per_user,
    )


async def show_list(**_: object) -> Any:
    """Return the list of passkeys with its forms."""
    return await _page(AddForm(data={"name": auth.device_name()[:60]}))


@blueprint.post(f"{HOME}/<passkey_id>/rename")
@returns_to(show_list, HOME)
@login_required
@fresh_login_required
async def rename(passkey_id: str) -> Any:
    """Rename a passkey of the user and redirect (303) to the list with a message; if the name is
    invalid, show the list with the name and the error (422).

    Counts towards the limit of changes; past it, shows the same with 429. 404 for a passkey that is
    not the user's.
    """
    passkey = await _own_passkey_or_404(passkey_id)
    form = await RenameForm.from_request()
    with form.catch_retry_later():
        if form.posted:
            await pages.count_change()
            await passkey.rename(form.name.data or "", by=current_user.actor)
            await flash(_("The passkey was renamed to “%(name)s”.", name=form.name.data), "success")
            return see_other(HOME)
    return await _page(AddForm(data={"name": auth.device_name()[:60]}), renaming=(passkey, form))


@blueprint.post(f"{HOME}/<passkey_id>/remove")
@returns_to(show_list, HOME)
@login_required
@fresh_login_required
async def remove(passkey_id: str) -> Any:
    """Delete a passkey of the user and redirect (303) to the list with a message.

    Counts towards the limit of changes; past it, raises RateLimitExceeded, which is shown on the
    list (429). Waits until all workers know the user's new permissions. Ends no sessions. Logs
    `user_updated`; says the same, but logs nothing, if another request has just removed it. 404 for
    a passkey that is not the user's.
    """
    passkey, user = await _own_passkey_or_404(passkey_id), await signed_in_user()
    await pages.count_change()
    event = await passkey.remove(user, by=current_user.actor)
    await wait_until_enforced()
    if event:
        log.info("user_updated", user=user.username, removed="passkey")
    await flash(
        _(
            "The passkey “%(name)s” was removed. It can no longer be used to sign in. You can also "
            "delete it from your device.",
            name=passkey.name,
        ),
        "success",
    )
    return see_other(HOME)


async def _page(form: AddForm, *, renaming: tuple[Passkey, RenameForm] | None = None) -> Any:
    """Return the page of the user's passkeys, with the form for a new one, its status and headers.

    `renaming` is a passkey that could not be renamed, with its form: then the status and headers
    are those of that form.
    """
    page = await render_template(
        "factors/passkeys.html",
        form=form,
        user=await signed_in_user(),
        passkeys=await Passkey.of_user(current_user.user_id),
        renaming=renaming,
    )
    answered = renaming[1] if renaming else form
    return page, answered.status, answered.headers


# ---- signing in


@blueprint.get("/login/passkey/options")
async def options_to_sign_in() -> Any:
    """Return the options for signing in with any passkey as JSON, with a new challenge.

    404 if passkeys do not work at this address.
    """
    return jsonify(webauthn.authentication_options(site() or abort(404), asker("show")))


@blueprint.get("/login/factor/options")
async def options_for_second_step() -> Any:
    """Return the options for the second step of a sign-in as JSON, with a new challenge: only the
    passkeys of its user are listed.

    404 if this browser has no sign-in that waits for its second step, or if passkeys do not work at
    this address.
    """
    step = await pending_sign_in() or abort(404)
    known = [(each.credential_id, each.transports) for each in await Passkey.of_user(step.user.id)]
    return jsonify(
        webauthn.authentication_options(site() or abort(404), asker("show"), known=known)
    )


@blueprint.get("/confirm/options")
@login_required
async def options_to_confirm() -> Any:
    """Return the options for re-authenticating as JSON, with a new challenge: only the passkeys of
    the signed-in user are listed. 404 if passkeys do not work at this address."""
    known = [
        (each.credential_id, each.transports)
        for each in await Passkey.of_user(current_user.user_id)
    ]
    return jsonify(
        webauthn.authentication_options(site() or abort(404), asker("confirm"), known=known)
    )


async def confirmed_by_passkey(user: User, answer: str) -> bool:
    """Re-authenticate the user with one of their passkeys; return whether `answer` was accepted.

    If it was, renews the session and its cookie and waits until no worker accepts the old token
    (`renew_session`, whose errors it raises). A refusal is logged (`authn_login_fail`) and counted.
    Raises AccountDisabled, RateLimitExceeded and Busy.
    """
    if await _authenticated_user(answer, asked_to="confirm", of=user) is None:
        return False
    await auth.renew_session()
    return True


@blueprint.post("/login/passkey")
async def use() -> Any:
    """Sign in with a passkey, alone or as the second step after a password.

    A passkey counts as two factors: the device, and what the device asks of its owner. Opens a
    session, sets its cookie and answers as `go_on` does; a user who is signed in already is only
    sent on. A passkey that is not accepted shows the page of the sign-in or of the second step with
    an error (422; 429 or 503 after too many attempts). Answers as `second_step.start_over` does if
    the first step was used already. Raises AccountDisabled, AccountDeactivated and MustVerify.
    """
    if current_user.signed_in:
        return await go_on(next_page())
    sent = await ShowForm.from_request()
    step = await pending_sign_in() if sent.step.data else None
    remember = step.remember if step else bool(sent.remember.data)
    form = FactorForm() if step else LoginForm(data={"remember": remember})
    with form.catch_retry_later():
        try:
            user = await _user_in_step(step, sent.credential.data or "")
        except FactorsBlocked as blocked:
            form.refuse(str(blocked))
        else:
            if user and step:
                if not await finish_second_step(step, Factor.PASSKEY):
                    return await second_step.start_over()
                return await go_on(next_page())
            if user:
                await sign_in(user, remember=remember, factor=Factor.PASSKEY)
                return await go_on(next_page())
            form.refuse(NOT_ACCEPTED)
    return await (factor_page(step.user, form) if step else sign_in_page(form))


async def _user_in_step(step: PendingSignIn | None, answer: str) -> User | None:
    """Return the user whose passkey was used, or None if it is not accepted. In a second step, only
    that user's passkeys count.

    There, failures count like wrong codes. Without a password they count only for the network: keys
    cannot be guessed, and strangers could block the account. Raises FactorsBlocked and what
    `_authenticated_user` raises.
    """
    if step is None:
        return await _authenticated_user(answer)
    async with auth.factor_attempt(step.user) as attempt:
        user = await _authenticated_user(answer, of=step.user)
        attempt.succeeded = user is not None
    return user


async def _authenticated_user(
    answer: str, *, asked_to: str = "show", of: User | None = None
) -> User | None:
    """Verify the answer, record the use of the passkey and return its user; None if it is not
    accepted.

    Failures are logged (`authn_login_fail`) and counted for the network of the client. `of` accepts
    only the passkeys of this user; `asked_to` is the purpose of the challenge. Raises
    AccountDisabled if the owner can neither sign in nor restore the account, RateLimitExceeded and
    Busy.
    """
    here = rate_limits.network_of(auth.remote_address())
    key = rate_limits.Key(f"passkey from {here}", settings().limit_sign_in_address)
    async with rate_limits.attempt(key) as attempt:
        try:
            user = await _verify(answer, asked_to, of)
        except VerificationFailed as refused:
            auth.report_failed_attempt(factor="passkey", why=str(refused))
            return None
        attempt.succeeded = True
    if not user.can_sign_in_or_restore:
        raise AccountDisabled(user)
    return user


async def _verify(answer: str, asked_to: str, of: User | None) -> User:
    """Verify the answer, record the use of the passkey (`Passkey.use`) and return its user.

    Raises VerificationFailed if anything is wrong: challenge, signature, counter, a passkey that is
    unknown or removed, or another user's.
    """
    here = site()
    if here is None:
        raise VerificationFailed("there are no passkeys at this address")
    shown = webauthn.parse_assertion(here, asker(asked_to), answer)
    passkey = await Passkey.known_as(shown.credential_id)
    user = await User.get(passkey.user_id) if passkey else None
    if passkey is None or user is None:
        raise VerificationFailed("no user has this passkey")
    if passkey.id not in map(linked_id, user.passkeys):
        raise VerificationFailed("the passkey was removed from its user")
    if of and of.id != user.id:
        raise VerificationFailed("another user has this passkey")
    if shown.user_handle != user.id.binary:
        raise VerificationFailed("the passkey names another user")
    await passkey.use(user, shown, by=Actor(user.id, user.username, auth.remote_address()))
    return user


# ---- helpers


async def _own_passkey_or_404(passkey_id: str) -> Passkey:
    """Return the passkey of this id if it belongs to the signed-in user, else answer 404."""
    passkey = await Passkey.get(id_or_404(passkey_id))
    if passkey is None or passkey.user_id != current_user.user_id:
        abort(404)
    return passkey
