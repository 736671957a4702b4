"""The end of every kind of sign-in: what happens once the user is authenticated."""

from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from beanie import PydanticObjectId
from quart import render_template, request, session
from quart_auth import login_user

from quartapp import auth
from quartapp.auth import CurrentUser, current_user, wait_until_enforced
from quartapp.authority.session_rule import EndedSession
from quartapp.forms.base import Form
from quartapp.forms.sessions import FactorForm
from quartapp.log import log
from quartapp.models import User
from quartapp.models.base.actor import Actor
from quartapp.models.base.record import new_id
from quartapp.models.factors.factor import Factor
from quartapp.models.factors.passkey import Answered
from quartapp.models.privacy import account_deletion
from quartapp.models.sessions.opening import open_session
from quartapp.models.sessions.reason import Reason
from quartapp.models.sessions.session import Session
from quartapp.models.statistics import hourly_count
from quartapp.models.statistics.hourly_count import Counted
from quartapp.routes import carried_forms
from quartapp.routes.redirects import see_other, with_next
from quartapp.runtime import encryption, settings

SECOND_STEP = "/login/factor"
STEP_LASTS = timedelta(minutes=10)
_ABOUT = "second step"
# How long after a registration or sign-in a browser can verify the address by link or code.
VERIFICATION_LASTS = timedelta(days=1)
_VERIFICATION = "verification"
# Key in the session cookie of the token that restores a deactivated account.
RETURN = "return"


class AccountDeactivated(Exception):
    """The authenticated user has deactivated the account or scheduled its deletion, and can only
    restore it."""


class MustVerify(Exception):
    """The email address of the authenticated user must be verified before the sign-in."""


@dataclass(frozen=True, slots=True)
class Unverified:
    """An account to which this browser has authenticated, but whose address is not verified.

    `remember` and `factor` describe the session that is opened after the verification.
    """

    user: User
    remember: bool
    factor: Factor | None


class AccountDisabled(Exception):
    """The authenticated user can neither sign in nor restore the account
    (`User.can_sign_in_or_restore`): it is disabled or expired, or an administrator has scheduled
    its deletion."""

    def __init__(self, user: User) -> None:
        self.user = user


@dataclass(frozen=True, slots=True)
class PendingSignIn:
    """A sign-in that has passed the password and still needs a second factor."""

    user: User
    remember: bool
    note: str


async def sign_in_or_second_step(user: User, *, remember: bool, then: str) -> Any:
    """Answer the right password: sign in, or lead to the second step if the user has a factor.

    Without a factor, opens a session and answers as `go_on` does. With one, opens none: stores the
    encrypted first step in Quart's session cookie, and redirects (303) to the second step, or shows
    its page if the request carries a form. Raises AccountDeactivated and MustVerify as `sign_in`
    does.
    """
    if not user.factors:
        await sign_in(user, remember=remember)
        return await go_on(then)
    step = [str(user.id), user.credential, remember, f"second step {new_id()}"]
    session[_ABOUT] = encryption().encrypt_value(step, _ABOUT)
    if await carried_forms.field():
        # A redirect would lose the form that is carried.
        return await factor_page(user, FactorForm(), status=200)
    return see_other(with_next(SECOND_STEP, then))


async def go_on(then: str) -> Any:
    """Answer a completed sign-in: with the page of the form that was carried through it, filled, or
    else with a redirect (303) to `then`."""
    return await carried_forms.filled_form() or see_other(then)


async def factor_page(user: User, form: Form, *, status: int | None = None) -> Any:
    """Return the page of the second step, which passes on a carried form."""
    page = await render_template(
        "sessions/second_step.html", form=form, user=user, carried=await carried_forms.field()
    )
    return page, status or form.status, form.headers


async def pending_sign_in() -> PendingSignIn | None:
    """Return the sign-in of this browser that waits for its second step, from Quart's session
    cookie.

    None if there is none or it is older than STEP_LASTS, and if by now the account has no second
    factor or another password, or its owner can neither sign in nor restore it. Does not use it up.
    """
    step = encryption().decrypt_value(session.get(_ABOUT), _ABOUT, max_age=STEP_LASTS)
    if step is None:
        return None
    user_id, credential, remember, note = step
    user = await User.get(PydanticObjectId(user_id))
    if user is None or not user.can_sign_in_or_restore or not user.factors:
        return None
    return PendingSignIn(user, remember, note) if user.credential == credential else None


async def finish_second_step(step: PendingSignIn, factor: Factor) -> bool:
    """Complete the second step: use up the first one, sign in as `sign_in` does and return True.

    Returns False, without signing in, if this first step was already used for a sign-in, as by a
    copy of the cookie. Raises AccountDeactivated and MustVerify.
    """
    if not await Answered.use_note(step.note, lasts=STEP_LASTS):
        return False
    await sign_in(step.user, remember=step.remember, factor=factor)
    return True


def is_verifying() -> bool:
    """Whether the session cookie names an account to verify, which may not be valid any more."""
    return _VERIFICATION in session


async def verifying() -> Unverified | None:
    """Return the account whose address this browser can verify, from its session cookie, also if
    that was done already.

    None if there is none or it is older than VERIFICATION_LASTS, and if the account is not active
    or has another password by now. Reads the user from the database.
    """
    note = encryption().decrypt_value(
        session.get(_VERIFICATION), _VERIFICATION, max_age=VERIFICATION_LASTS
    )
    if note is None:
        return None
    user_id, credential, remember, factor = note
    user = await User.get(PydanticObjectId(user_id))
    if user is None or not user.is_active or user.credential != credential:
        return None
    return Unverified(user, remember, factor and Factor(factor))


def stop_verifying() -> None:
    """Remove the account to verify from the session cookie."""
    session.pop(_VERIFICATION, None)


async def sign_in(user: User, *, remember: bool, factor: Factor | None = None) -> None:
    """Open a session in the database and set its cookie.

    Ends the session that this browser had (reason SIGNED_OUT), and the user's oldest ones beyond
    `sessions_per_user`; if it has ended any, waits until that is enforced on all workers. Logs
    `session_created`, counts the sign-in for the dashboard, renews the cookie that marks a known
    browser, and clears Quart's session. A user with second factors must pass the `factor` that was
    used: without it the session is not valid.

    Opens no session for an account that awaits verification or, checked second, is not active. For
    the first, puts an encrypted note into Quart's session, which `verifying` reads, and raises
    MustVerify. For the second, issues a token to restore the account, which the database stores,
    puts it into Quart's session and raises AccountDeactivated. That happens for a disabled account
    too: the caller refuses one that its owner cannot restore before (`can_sign_in_or_restore`).
    """
    if user.awaits_verification:
        note = [str(user.id), user.credential, remember, factor]
        session[_VERIFICATION] = encryption().encrypt_value(note, _VERIFICATION)
        raise MustVerify
    if not user.is_active:
        session[RETURN] = {
            "token": await account_deletion.issue(user),
            "remember": remember,
            "factor": factor,
        }
        raise AccountDeactivated
    old = await Session.get(current_user.session_id) if current_user.signed_in else None
    if old:
        await old.end(Reason.SIGNED_OUT, by=current_user.actor)
    opened, token, oldest_ended = await open_session(
        user,
        device=auth.device_name(),
        browser=auth.remember_browser(),
        by=Actor(user.id, user.username, auth.remote_address()),
        idle=settings().session_idle(remembered=remember),
        lifetime=settings().session_lifetime(remembered=remember),
        remembered=remember,
        factor=factor,
        at_most=settings().sessions_per_user,
    )
    if old or oldest_ended:
        await wait_until_enforced()
    log.info("session_created", user=user.username, session=str(opened.id))
    hourly_count.add(Counted.SIGN_INS)
    session.clear()
    login_user(CurrentUser(token), remember=remember)


async def sign_in_page(form: Form) -> Any:
    """Return the sign-in page with the form, its status and headers.

    It says why the session of this browser has ended, if it has, and passes on a carried form.
    """
    page = await render_template(
        "sessions/login.html", form=form, ended=_ended_here(), carried=await carried_forms.field()
    )
    return page, form.status, form.headers


def _ended_here() -> EndedSession | None:
    """Return the ended session of this browser, so that the page can say why it ended.

    None if the URL names a different session, or if the browser lacks the session's cookie.
    """
    ended = current_user.ended
    named = request.args.get("ended")
    if ended is None or (named and named != str(ended.session_id)):
        return None
    return ended
