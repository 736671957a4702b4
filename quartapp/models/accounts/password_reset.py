"""Resetting a forgotten password: requesting a link by email, and setting a new password with it.

The link proves that the visitor reads the mailbox. If the address was not verified before, somebody
else may have created the account, so everything else they could sign in with is removed.
"""

from datetime import timedelta
from typing import Any

from beanie import PydanticObjectId
from pymongo.errors import DuplicateKeyError

from quartapp import clock
from quartapp.activities import PASSWORD_RESET, PASSWORD_RESET_REQUESTED
from quartapp.db.mongo import Tx, transaction
from quartapp.models.accounts.one_time_token import Purpose, Token, TokenSpent
from quartapp.models.accounts.user import User
from quartapp.models.audit.event import Event
from quartapp.models.authorization.transaction import authorized_transaction
from quartapp.models.base.actor import Actor
from quartapp.models.email.outbox import Mail
from quartapp.models.factors import enrolment
from quartapp.models.sessions.reason import Reason
from quartapp.models.sessions.session import mark_ended
from quartapp.validation import mailbox_of

LASTS = timedelta(minutes=30)


async def request(email: str, *, by: Actor) -> None:
    """Queue the email with a reset link for this address, in a transaction. Returns nothing, also
    for an address without an account.

    The writes are the same for every address: the account is looked up when the email is sent
    (`issue`). Past the mail budget of the mailbox, nothing is queued.
    """

    async def work(tx: Tx) -> None:
        await Mail.queue(PASSWORD_RESET_REQUESTED, email, tx=tx, ip=by.ip)

    await transaction(work)


async def issue(mail: Mail, *, at_most: int) -> tuple[User, str] | None:
    """Store the token for a reset email that is about to be sent, valid for 30 minutes; return its
    user and the token.

    The account is the one that holds or claims the address. A second call for the same email
    replaces its token. Returns None, so that nothing is sent, if there is no account, if its owner
    can neither sign in nor restore it, if its password was changed since the request, if its own
    address is a different mailbox from the one that was entered, or if `at_most` other links still
    work.
    """
    user = await User.by_email(mail.to) or await User.claiming(mail.to)
    if (
        user is None
        or not user.can_sign_in_or_restore
        or user.password_changed_at > mail.created_at
    ):
        return None
    if mailbox_of(user.address) != mailbox_of(mail.to):
        # The mail budget was counted for the mailbox that was entered.
        return None
    if await Token.count_usable(Purpose.RESET, user, but=mail.id) >= at_most:
        return None
    return user, await Token.issue(mail.id, Purpose.RESET, user, user.address, lasts=LASTS)


async def issue_now(user: User) -> str:
    """Store a reset token for a user who has just proved that the address is theirs, valid for 30
    minutes, and return it. Sends no email; earlier tokens stay valid."""
    return await Token.issue(PydanticObjectId(), Purpose.RESET, user, user.email, lasts=LASTS)


async def user_of_token(token: str) -> User | None:
    """Return the user whose password the link can set; None if the token is not valid or the
    address has changed since. Does not use it up."""
    found = await Token.usable(Purpose.RESET, token)
    return found[1] if found and found[0].email == found[1].address else None


async def reset(token: str, password_hash: str, *, by: Actor) -> Event:
    """Set the password with the token, end all sessions of the user (reason PASSWORD_CHANGED), and
    return the event PASSWORD_RESET.

    In a transaction with a barrier mark, for which the caller waits. It uses up the token, cancels
    a pending change of address, and notifies and emails the user; older reset tokens become void
    with the new password. The address counts as verified from then on, without another event; if it
    did not before, all second factors and recovery codes are removed as well. Opens no session, and
    does not restore a deactivated account. Raises TokenSpent if the token is not valid, if the
    address or password has changed since, or if another account holds the address.
    """
    found = await Token.usable(Purpose.RESET, token)
    if found is None:
        raise TokenSpent
    link = found[0]

    async def work(tx: Tx) -> Event:
        user = await link.use(tx=tx)
        email = link.email or ""
        match: dict[str, Any] = {"_id": user.id, "email": email}
        verified: dict[str, Any] = {}
        if not user.verified:
            match, verified = user.proof(email)
        changes = {
            "password_hash": password_hash,
            "password_changed_at": clock.now(),
            "pending_email": None,
        }
        match["password_hash"] = user.password_hash
        try:
            if not await User.change(match, {"$set": {**changes, **verified}}, tx=tx):
                raise TokenSpent
        except DuplicateKeyError:
            raise TokenSpent from None
        actor = by.known_as(user.id, user.username)
        if not user.verified:
            await enrolment.clear(user, by=actor, tx=tx)
            await user.forget_browsers(tx=tx)
        event = Event.of(PASSWORD_RESET, by=actor, subject=user.id)
        mine = {"user.$id": user.id}
        await mark_ended(mine, Reason.PASSWORD_CHANGED, by=actor, event=event, tx=tx)
        await user.notify(PASSWORD_RESET, tx)
        # The link has just verified the address, also if the account was not verified before.
        await Mail.queue(PASSWORD_RESET, email, user=user.id, tx=tx, ip=by.ip)
        return await event.insert(session=tx)

    return await authorized_transaction(Actor(ip=by.ip, worker=by.worker), work, ends_sessions=True)
