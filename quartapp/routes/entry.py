"""The one way in: every kind of sign-in ends here, once it is known who somebody is."""

from quart import session
from quart_auth import login_user

from quartapp import auth
from quartapp.auth import CurrentUser, current_user, settings, settle
from quartapp.log import log
from quartapp.models import User, leaving
from quartapp.models.session import Factor, Reason, Session

# What the browser is given by which it may open a closed account again, and nothing else.
RETURN = "return"


class AccountClosed(Exception):
    """Who has just shown who they are closed the account: nothing but that is opened for them."""


async def sign_in(user: User, *, remember: bool, factor: Factor | None = None) -> None:
    """Opens a session and, after the commit, gives its token to the browser.

    Raises AccountClosed for an account that its owner has closed, and has noted the way back.
    """
    if not user.is_open:
        session[RETURN] = {
            "token": await leaving.issue(user),
            "remember": remember,
            "factor": factor,
        }
        raise AccountClosed
    if current_user.signed_in and (old := await Session.get(current_user.session_id)):
        await old.end(Reason.SIGNED_OUT, by=current_user.actor)
    opened, token = await Session.start(
        user,
        device=auth.device(),
        browser=auth.browser(),
        by=auth.Actor(user.id, user.username, auth.remote_address()),
        idle=settings().session_idle(remembered=remember),
        lifetime=settings().session_lifetime(remembered=remember),
        remembered=remember,
        factor=factor,
        at_most=settings().sessions_per_user,
    )
    # Signing in ends the session that this browser had, and the oldest of too many.
    await settle()
    log.info("session_created", user=user.username, session=str(opened.id))
    session.clear()
    login_user(CurrentUser(token), remember=remember)
