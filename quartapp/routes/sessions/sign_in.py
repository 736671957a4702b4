"""The one way in: every kind of sign-in ends here, once it is known who somebody is."""

from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from beanie import PydanticObjectId
from quart import render_template, request, session
from quart_auth import login_user

from quartapp import auth
from quartapp.auth import CurrentUser, current_user, wait_until_enforced
from quartapp.authority.session_rule import Ended
from quartapp.forms.base import Form
from quartapp.forms.factors import FactorForm
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
from quartapp.routes import carried_forms
from quartapp.routes.redirects import see_other, with_next
from quartapp.runtime import seal, settings

SECOND_STEP = "/login/factor"
STEP_LASTS = timedelta(minutes=10)
_ABOUT = "second step"
# For so long after a registration or a sign-in the browser can verify the address by link or code.
VERIFICATION_LASTS = timedelta(days=1)
_VERIFICATION = "verification"
# What the browser is given by which it may open a closed account again, and nothing else.
RETURN = "return"


class AccountClosed(Exception):
    """Who has just shown who they are closed the account: nothing but that is opened for them."""


class MustVerify(Exception):
    """The visitor has signed in to an account whose email address has to be verified first."""


@dataclass(frozen=True, slots=True)
class Unverified:
    """An account whose owner this browser has shown to be, by its password and factor if it has
    one, and the session that opens once the address is verified."""

    user: User
    remember: bool
    factor: Factor | None


class AccountShut(Exception):
    """Who has just shown who they are may not sign in: the account is disabled or to be deleted."""

    def __init__(self, user: User) -> None:
        self.user = user


@dataclass(frozen=True, slots=True)
class HalfWay:
    """Somebody who has shown their password and has yet to show a second factor."""

    user: User
    remember: bool
    note: str


async def let_in(user: User, *, remember: bool, then: str) -> Any:
    """For who has shown the password: signs in, or leads to the second step if they have one.

    Raises AccountClosed and MustVerify as `sign_in` does.
    """
    if not user.factors:
        await sign_in(user, remember=remember)
        return await go_on(then)
    step = [str(user.id), user.credential, remember, f"second step {new_id()}"]
    session[_ABOUT] = seal().hand_out(step, _ABOUT)
    if await carried_forms.field():
        # A redirect would lose the form that is carried.
        return await factor_page(user, FactorForm(), status=200)
    return see_other(with_next(SECOND_STEP, then))


async def go_on(then: str) -> Any:
    """Answer a sign-in: with the form that was carried through it, or a redirect."""
    return await carried_forms.filled_form() or see_other(then)


async def factor_page(user: User, form: Form, *, status: int | None = None) -> Any:
    """Return the page of the second step. It passes on the form that is carried."""
    page = await render_template(
        "accounts/factor.html", form=form, user=user, carried=await carried_forms.field()
    )
    return page, status or form.status, form.headers


async def half_way() -> HalfWay | None:
    """Who is on the second step in this browser, unless it took too long or the account changed."""
    step = seal().take_back(session.get(_ABOUT), _ABOUT, within=STEP_LASTS)
    if step is None:
        return None
    user_id, credential, remember, note = step
    user = await User.get(PydanticObjectId(user_id))
    if user is None or not user.may_enter or not user.factors:
        return None
    return HalfWay(user, remember, note) if user.credential == credential else None


async def finish(step: HalfWay, factor: Factor) -> bool:
    """Sign in a user who has shown a second factor as well. False if this password was used for a
    sign-in already: an older cookie still says that it was shown.

    Raises AccountClosed as `sign_in` does.
    """
    if not await Answered.first(step.note, lasts=STEP_LASTS):
        return False
    await sign_in(step.user, remember=step.remember, factor=factor)
    return True


def is_verifying() -> bool:
    """Whether this browser was led to the page that verifies the address of an account."""
    return _VERIFICATION in session


async def verifying() -> Unverified | None:
    """Return the account that this browser was led to verify, if it can still be verified or was.

    None after VERIFICATION_LASTS, and when the account was deleted, closed or got a new password.
    """
    note = seal().take_back(session.get(_VERIFICATION), _VERIFICATION, within=VERIFICATION_LASTS)
    if note is None:
        return None
    user_id, credential, remember, factor = note
    user = await User.get(PydanticObjectId(user_id))
    if user is None or not user.is_open or user.credential != credential:
        return None
    return Unverified(user, remember, factor and Factor(factor))


def stop_verifying() -> None:
    """Forget the account that this browser was led to verify."""
    session.pop(_VERIFICATION, None)


async def sign_in(user: User, *, remember: bool, factor: Factor | None = None) -> None:
    """Opens a session and, after the commit, gives its token to the browser.

    Without the factor, for those who have none: else the session is over from the start. Raises
    AccountClosed for an account that its owner has closed, and has noted the way back; likewise
    MustVerify for one whose email address has to be verified first.
    """
    if user.awaits_verification:
        note = [str(user.id), user.credential, remember, factor]
        session[_VERIFICATION] = seal().hand_out(note, _VERIFICATION)
        raise MustVerify
    if not user.is_open:
        session[RETURN] = {
            "token": await account_deletion.issue(user),
            "remember": remember,
            "factor": factor,
        }
        raise AccountClosed
    if current_user.signed_in and (old := await Session.get(current_user.session_id)):
        await old.end(Reason.SIGNED_OUT, by=current_user.actor)
    opened, token = await open_session(
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
    # Signing in ends the session that this browser had, and the oldest of too many.
    await wait_until_enforced()
    log.info("session_created", user=user.username, session=str(opened.id))
    session.clear()
    login_user(CurrentUser(token), remember=remember)


async def sign_in_page(form: Form) -> Any:
    """Where it begins, and where each kind comes back to that was turned down."""
    page = await render_template(
        "accounts/login.html", form=form, ended=_ended_here(), carried=await carried_forms.field()
    )
    return page, form.status, form.headers


def _ended_here() -> Ended | None:
    """Return the ended session that this browser comes from, for the page to say why.

    Live pages name the session in the address. Who comes with another one's id, or without the
    cookie of the session, learns nothing about it.
    """
    ended = current_user.ended
    named = request.args.get("ended")
    if ended is None or (named and named != str(ended.session_id)):
        return None
    return ended
