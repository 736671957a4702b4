"""Registration, sign-in, sign-out, re-authentication and the first administrator."""

from contextlib import suppress
from typing import Any

from quart import Blueprint, flash, redirect, render_template, request, session
from quart_auth import login_required, logout_user

from quartapp import auth, policy, validation
from quartapp.auth import (
    IncorrectCode,
    IncorrectPassword,
    current_user,
    rate_limits,
    wait_until_enforced,
)
from quartapp.forms.accounts import RegisterForm
from quartapp.forms.sessions import ConfirmForm, ConfirmWithFactorForm, LoginForm
from quartapp.i18n import gettext as _
from quartapp.log import log
from quartapp.models import Role, User
from quartapp.models.accounts import email_address
from quartapp.models.accounts.account import Taken
from quartapp.models.accounts.one_time_token import (
    TokenSpent,
    make_first_administrator,
    setup_is_open,
)
from quartapp.models.accounts.registration import claim as claim_account
from quartapp.models.accounts.registration import register as register_account
from quartapp.models.accounts.registration import taken
from quartapp.models.base.actor import Actor
from quartapp.models.factors.wrong_codes import FactorsBlocked
from quartapp.models.limits import hash_cost
from quartapp.models.sessions.opening import is_known_browser
from quartapp.models.sessions.reason import Reason
from quartapp.models.sessions.session import Session
from quartapp.routes import carried_forms
from quartapp.routes.accounts.new_password import check_new_password, count_registration
from quartapp.routes.factors.passkeys import NOT_ACCEPTED, confirmed_by_passkey
from quartapp.routes.redirects import next_page, see_other
from quartapp.routes.refusals import refuse
from quartapp.routes.sessions.sign_in import (
    AccountDisabled,
    sign_in,
    sign_in_or_second_step,
    sign_in_page,
)
from quartapp.runtime import hasher, settings
from quartapp.security.passwords import Busy

blueprint = Blueprint("accounts", __name__)


@blueprint.route("/register", methods=["GET", "POST"])
async def register() -> Any:
    """Create an account. GET shows the form; a signed-in user is redirected to `/`.

    The POST creates the account as `_register` does, logs `user_created`, signs in and redirects
    (303) to `/` with a message. Where verification is required, it opens no session and shows no
    message: `sign_in` raises MustVerify, which redirects to `/verify`. The form is shown again with
    its errors (422), with 429 after too many attempts, or with 503 while the hasher is busy.
    """
    if current_user.signed_in:
        return redirect("/")
    form = await RegisterForm.from_request()
    with form.catch_retry_later():
        if user := await _register(form):
            log.info("user_created", user=user.username, ip=auth.remote_address())
            await sign_in(user, remember=False)
            await flash(
                _(
                    "Welcome. Your account is ready. To verify your email address, open the email "
                    "that we sent to %(email)s.",
                    email=user.email,
                ),
                "success",
            )
            return see_other("/")
    return await render_template("accounts/register.html", form=form), form.status, form.headers


async def _register(form: RegisterForm) -> User | None:
    """Create the account and return its user. None, with all errors in the form, if a field is not
    valid, or the password, the username or the address is not accepted.

    Counts the attempt for the network before the password is scored and before the form says that a
    name is taken. The account has the role member. Where verification is required, it only claims
    the address (`registration.claim`): it is created, with the same work, whether the address is
    taken or free (ASVS 6.3.8), and replaces an earlier claim. Else the address must be free. An
    email is queued to it. Raises RateLimitExceeded and Busy.
    """
    required = settings().verification_required
    is_free = _has_free_username if required else _has_free_names
    if not await form.passes(count_registration, _has_accepted_password, is_free):
        return None
    member = await Role.named(policy.MEMBER)
    create = claim_account if required else register_account
    try:
        return await create(
            form.username.data or "",
            form.email.data or "",
            await hasher().hash(form.password.data or ""),
            roles=[member] if member else [],
            by=current_user.actor,
        )
    except Taken as error:
        refuse(form, error)
        return None


@blueprint.route("/login", methods=["GET", "POST"])
async def login() -> Any:
    """Sign in. GET shows the form; a signed-in user is redirected to `next`.

    The POST answers as `sign_in_or_second_step` does: it opens a session and redirects (303) to
    `next`, or leads to the second step if the account has a factor. A form that was carried through
    the sign-in is shown filled instead of the redirect. An incorrect login or password is logged
    (`authn_login_fail`), counted for the dashboard, and gives one error (422); 429 after too many
    attempts, 503 while the hasher is busy. After the right password, raises AccountDisabled for an
    account that its owner can neither sign in to nor restore, and, of an account without a factor,
    MustVerify and AccountDeactivated as `sign_in` does.
    """
    if current_user.signed_in:
        return await carried_forms.filled_form() or redirect(next_page())
    form = await LoginForm.from_request()
    with form.catch_retry_later():
        if form.posted:
            if user := await _authenticate(form.login.data or "", form.password.data or ""):
                return await sign_in_or_second_step(
                    user, remember=bool(form.remember.data), then=next_page()
                )
            auth.report_failed_attempt(login=form.login.data)
            form.refuse(_("Incorrect username or password."))
    return await sign_in_page(form)


async def knows_password(user: User, password: str) -> bool:
    """Return whether this is the password of the user. Counts as an attempt to sign in to the
    account; a failure is logged as `authn_login_fail` and counted for the dashboard. Does not check
    that the account is active. Raises RateLimitExceeded and Busy."""
    hasher().check_capacity()
    async with rate_limits.attempt(*await _counted_for(user.username, user)) as attempt:
        attempt.succeeded = await hasher().verify(password, user.password_hash)
    if not attempt.succeeded:
        auth.report_failed_attempt(login=user.username)
    return attempt.succeeded


async def _authenticate(login: str, password: str) -> User | None:
    """Return the user with this login and password, or None. Counts a failed attempt for the
    account and the network.

    Unknown logins and wrong passwords take the same time: one hash of the highest cost in use (ASVS
    6.3.8). Replaces an outdated hash in the database, unless the hasher is busy. Raises
    AccountDisabled for the right password of an account that its owner can neither sign in to nor
    restore, such as a disabled one; RateLimitExceeded; and Busy.
    """
    hasher().check_capacity()
    user = await User.by_login(login)
    async with rate_limits.attempt(*await _counted_for(login, user)) as attempt:
        work = await hash_cost.highest(settings().bcrypt_cost)
        fits = await hasher().verify(password, user and user.password_hash, cost=work)
        attempt.succeeded = fits and user is not None
    if user is None or not attempt.succeeded:
        return None
    if not user.can_sign_in_or_restore:
        raise AccountDisabled(user)
    if hasher().needs_rehash(user.password_hash):
        # Ignore Busy: the next sign-in can replace the hash.
        with suppress(Busy):
            await user.upgrade_hash(await hasher().hash(password))
    return user


async def _counted_for(login: str, user: User | None) -> list[rate_limits.Key]:
    """Return the keys under which a failed sign-in is counted (see docs/adr/0031).

    For a browser that has signed in to the account before, only a key of its own for this account.
    For others, three keys: this login from this network, all logins from this network, and this
    login from anywhere; the last one not at an IP address from which the account was used before.
    So an attacker cannot lock the owner out. A success resets only the first key. Counts nothing.
    """
    # All spellings of a login have one canonical form, also if there is no such account. A username
    # and an address have separate counts, so that the limits do not reveal which belong together.
    name, address = validation.canonical_login(login), auth.remote_address()
    browser = auth.known_browser()
    if browser and await is_known_browser(user, browser=browser):
        known = f"sign-in {name} with {browser}"
        return [rate_limits.Key(known, settings().limit_sign_in, own=True)]
    here = rate_limits.network_of(address)
    keys = [
        rate_limits.Key(f"sign-in {name} from {here}", settings().limit_sign_in, own=True),
        rate_limits.Key(f"sign-in from {here}", settings().limit_sign_in_address),
    ]
    if not await is_known_browser(user, ip=address):
        keys.append(rate_limits.Key(f"sign-in {name}", settings().limit_sign_in_account))
    return keys


@blueprint.post("/logout")
@login_required
async def logout() -> Any:
    """End the session in the database, wait until no worker accepts it, and redirect (303) to `/`.

    Records the event SESSION_ENDED, and flashes a message. Removes the session cookie, clears
    Quart's session, and has the browser clear its storage (Clear-Site-Data). Raises SessionOver if
    the session was ended meanwhile.
    """
    found = await Session.get(current_user.session_id)
    if found:
        await found.end(Reason.SIGNED_OUT, by=current_user.actor)
        await wait_until_enforced()
    logout_user()
    session.clear()
    await flash(_("You are signed out."), "success")
    response = see_other("/")
    response.headers["Clear-Site-Data"] = '"storage"'
    return response


@blueprint.route("/confirm", methods=["GET", "POST"])
@login_required
async def confirm() -> Any:
    """Re-authenticate the user: by password and, with a second factor, a code; or by a passkey.

    A passkey counts as two factors, so it needs no password. GET shows the form. Success renews the
    session and its cookie, as `renew_session` does, and redirects (303) to `next`. A failure is
    counted and logged (`authn_login_fail`). Then the form is shown again with the error (422, also
    when wrong codes have blocked the second factor), with 429 after too many attempts, or with 503
    while the hasher is busy. Raises AccountDisabled for a passkey of an account that was disabled
    meanwhile, and what `renew_session` raises.
    """
    user = await auth.signed_in_user()
    form = await (ConfirmWithFactorForm if user.factors else ConfirmForm).from_request()
    with form.catch_retry_later():
        if answer := request.method == "POST" and (await request.form).get("credential"):
            if await confirmed_by_passkey(user, answer):
                return see_other(next_page())
            form.refuse(NOT_ACCEPTED)
        elif form.posted:
            try:
                code = form.factor_code.data if isinstance(form, ConfirmWithFactorForm) else ""
                await auth.reauthenticate(form.password.data or "", code or "")
            except IncorrectPassword as error:
                form.refuse(str(error), "password")
            except IncorrectCode as error:
                form.refuse(str(error), "factor_code")
            except FactorsBlocked as error:
                form.refuse(str(error))
            else:
                return see_other(next_page())
    page = await render_template(
        "sessions/reauthenticate.html",
        form=form,
        user=user,
        action=request.full_path.rstrip("?"),
        fields=[],
    )
    return page, form.status, form.headers


@blueprint.get("/account")
@login_required
async def account() -> str:
    """Show the overview of the account, with the address that still has to be verified, if any."""
    user = await User.get(current_user.user_id)
    unconfirmed = email_address.unconfirmed(user) if user else None
    return await render_template("accounts/overview.html", user=user, unconfirmed=unconfirmed)


@blueprint.route("/setup/<token>", methods=["GET", "POST"])
async def setup(token: str) -> Any:
    """Create the first administrator. A server without one prints the link at its start.

    GET shows the form. The POST creates the account with the roles admin and member, logs
    `user_created`, signs in, which ends the session that the browser had, and redirects (303) to
    `/admin/users` with a message. No email is sent: the address counts as verified. Errors are
    shown on the form (422; 429 after too many attempts; 503 while the hasher is busy). A link that
    is void, because there is an administrator or it was used or has expired, gets a page with 410.
    """
    if not await setup_is_open(token):
        return await render_template("accounts/setup_gone.html"), 410
    form = await RegisterForm.from_request()
    with form.catch_retry_later():
        # Counted before the password is scored.
        if await form.passes(count_registration, _has_accepted_password, _has_free_names):
            try:
                user = await make_first_administrator(
                    token,
                    form.username.data or "",
                    form.email.data or "",
                    await hasher().hash(form.password.data or ""),
                    # The link authorizes this, also in a browser that is signed in.
                    by=Actor(ip=auth.remote_address()),
                )
            except Taken as error:
                refuse(form, error)
            except TokenSpent:
                return await render_template("accounts/setup_gone.html"), 410
            else:
                log.info("user_created", user=user.username, ip=auth.remote_address())
                await sign_in(user, remember=False)
                await flash(_("Welcome. Your account is the first administrator."), "success")
                return see_other("/admin/users")
    return await render_template("accounts/setup.html", form=form), form.status, form.headers


async def _has_accepted_password(form: RegisterForm) -> None:
    await check_new_password(form, form.username.data or "", form.email.data or "")


async def _has_free_username(form: RegisterForm) -> None:
    """Add an error to the form if another account has the username.

    An unverified registration of the same address does not count, because this one replaces it. It
    counts if the form has no valid address. The unique index decides in a race.
    """
    if form.username.errors:
        return
    email = form.valid_data("email")
    earlier = await User.claiming(email) if email else None
    holder = await User.by_username(form.username.data or "")
    if holder and (earlier is None or earlier.id != holder.id):
        refuse(form, Taken("username"))


async def _has_free_names(form: RegisterForm) -> None:
    """Add an error to the form for each of username and address that another account has."""
    refuse(form, *await taken(form.valid_data("username"), form.valid_data("email")))
