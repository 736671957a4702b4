"""Checking the password and the second factor of users who have signed in or are about to."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta

from quart_auth import Unauthorized, login_user

from quartapp.auth import rate_limits
from quartapp.auth.current_user import CurrentUser, current_user, signed_in_user
from quartapp.auth.device import known_browser, remote_address
from quartapp.auth.enforcement import wait_until_enforced
from quartapp.auth.failures import report_failed_attempt
from quartapp.i18n import lazy_gettext as _
from quartapp.log import log
from quartapp.models import Session, User
from quartapp.models.base.actor import Actor
from quartapp.models.factors import recovery_codes, totp, wrong_codes
from quartapp.models.factors.factor import Factor
from quartapp.models.sessions.opening import is_known_browser
from quartapp.runtime import encryption, hasher, settings

# The owner of an account is warned of wrong codes at most once in this time.
WARNING_INTERVAL = timedelta(days=1)


class IncorrectPassword(Exception):
    """The password is not that of the signed-in user."""

    def __init__(self) -> None:
        super().__init__(_("Incorrect password."))


class IncorrectCode(Exception):
    """The user has a second factor, and the request has no valid code of it."""

    def __init__(self) -> None:
        super().__init__(_("Incorrect code, or a code that was already used. Try again."))


async def reauthenticate(password: str, code: str = "") -> None:
    """Check the password of the signed-in user, and the code if they have a second factor; then
    renew the session as `renew_session` does.

    The code is checked, and a correct one used up, only if the password is correct. Without a
    second factor, the code is ignored. Attempts are counted as `password_attempt` and
    `factor_attempt` say, which also warns the owner of wrong codes; a failure is logged as
    `authn_login_fail`.

    Raises IncorrectPassword, IncorrectCode, FactorsBlocked, RateLimitExceeded after too many
    attempts (429), Busy when too many wait (503), and what `renew_session` raises: SessionOver,
    RightsChanged, Unauthorized and OutcomeUnknown.
    """
    user = await signed_in_user()
    async with password_attempt(user) as attempt:
        attempt.succeeded = await hasher().verify(password, user.password_hash)
    if not attempt.succeeded:
        report_failed_attempt(login=current_user.username)
        raise IncorrectPassword
    if user.factors and await use_factor_code(user, code) is None:
        raise IncorrectCode
    await renew_session()


async def renew_session() -> None:
    """Make the session fresh, and replace its token and cookie by new ones.

    Call it after the user has entered the password or used a passkey. In one transaction, stores
    the digest of the new token and the time of the authentication, and records an audit event. Then
    waits until no worker accepts the old token, logs `session_renewed`, sets the cookie on the
    response of this request, and loads the current user again. Open pages stay connected.

    Raises SessionOver when the session has ended meanwhile, RightsChanged when the user has lost a
    permission since the request began, Unauthorized when the database has no such session, and
    OutcomeUnknown when it has not confirmed the change in time.
    """
    session = await Session.get(current_user.session_id)
    token = session and await session.confirm(by=current_user.actor)
    if not session or not token:
        raise Unauthorized
    # The caches of all workers, of this one too, drop the old token before the new one is used.
    await wait_until_enforced()
    log.info("session_renewed", user=current_user.username, session=str(session.id))
    login_user(CurrentUser(token), remember=session.remembered)
    await current_user.load()


async def use_factor_code(user: User, code: str) -> Factor | None:
    """Use up a code of the authenticator app or a recovery code of the user.

    Return which factor it belongs to, or None if it is not valid, which counts as a failed attempt
    (see `factor_attempt`); so does an empty text. The use of a recovery code is recorded as an
    audit event, and the user is told by notification and email. Raises RateLimitExceeded, Busy, and
    FactorsBlocked after too many wrong codes.
    """
    async with factor_attempt(user) as attempt:
        factor = await _use_code(user, code)
        attempt.succeeded = factor is not None
    return factor


async def _use_code(user: User, code: str) -> Factor | None:
    """Use up six digits as a code of the app, and any other text as a recovery code.

    Return the factor, or None if the code is wrong or was used before. Spaces and dashes do not
    matter. `recovery_codes.use` records the use of a recovery code and tells the user.
    """
    plain = totp.plain(code)
    if len(plain) == totp.DIGITS and plain.isascii() and plain.isdigit():
        return Factor.TOTP if await totp.accept(user, plain, encryption=encryption()) else None
    by = Actor(user.id, user.username, remote_address())
    left = await recovery_codes.use(user, code, by=by)
    return None if left is None else Factor.RECOVERY_CODE


@asynccontextmanager
async def factor_attempt(user: User) -> AsyncIterator[rate_limits.Attempt]:
    """Count an attempt at a second factor of a user whose password was correct.

    Check the factor in the body, and set `succeeded`. Failures are counted for the address and for
    the account, there separately for browsers in which the user has signed in before, so that
    somebody else who knows the password cannot lock the owner out (see `rate_limits.attempt`).
    They are also counted in a row, without a time limit: `wrong_codes.begin` counts each attempt
    as wrong, and a success sets that count to zero.

    A failure is logged as `authn_login_fail`. The owner is warned by notification and email when
    the failures of a day reach the number in LIMIT_FACTOR, and when this failure is the last one
    before the factors are blocked, which is also recorded as an audit event. The day begins with
    its first failure.

    An exception in the body is passed on. It is not logged, warns nobody and does not count against
    the rate limits, unless the attempt was cancelled; but the count in a row keeps the attempt as
    wrong.

    Before the body runs, raises RateLimitExceeded, Busy, and FactorsBlocked after too many failures
    in a row.
    """
    browser = known_browser()
    known = browser is not None and await is_known_browser(user, browser=browser)
    account = f"second step {user.id} with {browser}" if known else f"second step {user.id}"
    network = rate_limits.network_of(remote_address())
    async with rate_limits.attempt(
        rate_limits.Key(account, settings().limit_factor, own=True),
        rate_limits.Key(f"second step from {network}", settings().limit_sign_in_address),
    ) as attempt:
        last = await wrong_codes.begin(user, known=known)
        yield attempt
    if attempt.succeeded:
        await wrong_codes.forgive(user, known=known)
        return
    report_failed_attempt(login=user.username, step=2)
    failed = await rate_limits.increment("wrong codes", str(user.id), within=WARNING_INTERVAL)
    # A single typing error of the owner sends no warning.
    if last or failed == settings().limit_factor.amount:
        await user.warn_of_wrong_codes(ip=remote_address(), blocked=last)


@asynccontextmanager
async def password_attempt(user: User | None) -> AsyncIterator[rate_limits.Attempt]:
    """Count an attempt at the password of the signed-in user against LIMIT_CONFIRMATION.

    Check the password in the body, and set `succeeded`. Failures are counted for the session; and
    for the address too (LIMIT_SIGN_IN_ADDRESS) if the user has not signed in with this browser
    before, as when somebody tries the stolen cookies of many users. Without a user, the browser
    counts as unknown. A success resets the count of the session. An exception in the body is passed
    on and counts as neither, but a cancelled attempt counts as failed.

    Failures are not logged here; the caller logs them. Before the body runs, waits for the outcome
    of concurrent attempts, and raises RateLimitExceeded and Busy (see `rate_limits.attempt`).
    """
    key = f"confirmation {current_user.session_id}"
    keys = [rate_limits.Key(key, settings().limit_confirmation, own=True)]
    browser = known_browser()
    if not (browser and await is_known_browser(user, browser=browser)):
        address = f"confirmation from {rate_limits.network_of(remote_address())}"
        keys.append(rate_limits.Key(address, settings().limit_sign_in_address))
    async with rate_limits.attempt(*keys) as attempt:
        yield attempt
