"""Undoing a change of the email address of an account, with a link from the email to the old one.

An intruder may have changed the address, so undoing it also locks the account against everything
that the intruder could know or have added.
"""

from datetime import timedelta

from beanie import PydanticObjectId
from pymongo.errors import DuplicateKeyError

from quartapp import clock
from quartapp.activities import EMAIL_RESTORED
from quartapp.db.mongo import Tx
from quartapp.models.accounts.account import Taken, address_fields
from quartapp.models.accounts.one_time_token import Purpose, Token, TokenSpent
from quartapp.models.accounts.registration import drop_claim
from quartapp.models.accounts.user import User
from quartapp.models.audit.event import Event
from quartapp.models.audit.recording import record
from quartapp.models.authorization.transaction import authorized_transaction
from quartapp.models.base.actor import Actor
from quartapp.models.base.references import user_ref
from quartapp.models.base.tokens import new_token
from quartapp.models.email.outbox import Mail
from quartapp.models.factors import enrolment
from quartapp.models.sessions.reason import Reason
from quartapp.models.sessions.session import mark_ended

# How long a change of address can be undone from the old address.
LASTS = timedelta(hours=72)


async def prepare(user: User, tx: Tx) -> PydanticObjectId:
    """Insert the token of the link that undoes the change, and return its id.

    Its digest is replaced when the email is sent (`issue`), so no link has it until then.
    """
    now = clock.now()
    link = Token(
        purpose=Purpose.UNDO,
        digest=new_token()[1],
        created_at=now,
        expires_at=now + LASTS,
        user=user_ref(user.id),
        email=user.email,
    )
    await link.insert(session=tx)
    return link.id


async def issue(mail: Mail) -> tuple[User, str] | None:
    """Create the link for an email about a change of address that is about to be sent.

    Replaces the digest of the stored token, so an earlier link to it stops working. Returns the
    user and the new token; None, so that nothing is sent, if the account was deleted or the token
    was used, for example because an earlier change was undone.
    """
    user = await User.get(mail.user_id) if mail.user_id else None
    token, digest = new_token()
    match = {
        "_id": PydanticObjectId(mail.data.get("undo")),
        "purpose": Purpose.UNDO,
        "used_at": None,
    }
    if user is None or not await Token.change(match, {"$set": {"digest": digest}}):
        return None
    return user, token


async def address_to_restore(token: str) -> tuple[str, User] | None:
    """Return the address that the link restores, and the user; None if the link is void. Does not
    use the link up."""
    found = await Token.usable(Purpose.UNDO, token)
    return (found[0].email or "", found[1]) if found else None


async def undo(token: str, *, by: Actor) -> Event:
    """Restore the address that the account had before the change; return the event EMAIL_RESTORED.

    For a visitor who has the link from the email to that address. In a transaction with a barrier
    mark, which makes it the verified address and cancels a pending one, replaces the password by
    one that nobody knows, ends all sessions (PASSWORD_CHANGED), makes all browsers unknown, removes
    the second factors that were added since the change and all recovery codes, and notifies the
    user. It voids all other links of the account, except those that undo an earlier change. Deletes
    another account that only claims the address.

    No email but that of the notification, if the user has chosen it, is queued. The caller waits
    for the mark, and lets the owner set a password next. Raises TokenSpent, and Taken if another
    account has the address by now.
    """
    found = await Token.usable(Purpose.UNDO, token)
    if found is None:
        raise TokenSpent
    link, email = found[0], found[0].email or ""

    async def work(tx: Tx) -> Event:
        user, now = await link.use(tx=tx), clock.now()
        # An account that only claims the address does not hold it, so it is deleted.
        await drop_claim(email, tx=tx)
        restored = {
            **address_fields(email),
            "email_verified_at": now,
            "must_verify": False,
            "pending_email": None,
            # No password has this hash. The owner sets one next.
            "password_hash": f"!{new_token()[0]}",
            "password_changed_at": now,
        }
        try:
            if not await User.change({"_id": user.id}, {"$set": restored}, tx=tx):
                raise TokenSpent
        except DuplicateKeyError:
            raise Taken("email") from None
        later = [{"purpose": {"$ne": Purpose.UNDO}}, {"created_at": {"$gte": link.created_at}}]
        theirs = {"user.$id": user.id, "used_at": None, "$or": later}
        await Token.change_all(theirs, {"$set": {"used_at": now}}, tx=tx)
        await user.forget_browsers(tx=tx)
        actor = by.known_as(user.id, user.username)
        await enrolment.remove_added_since(user, link.created_at, by=actor, tx=tx)
        event = Event.of(EMAIL_RESTORED, by=actor, subject=user.id, was=user.email)
        mine = {"user.$id": user.id}
        await mark_ended(mine, Reason.PASSWORD_CHANGED, by=actor, event=event, tx=tx)
        return await record(EMAIL_RESTORED, user, by=actor, tx=tx, event=event)

    # The link authorizes this, so the actor is without a session.
    return await authorized_transaction(Actor(ip=by.ip, worker=by.worker), work, ends_sessions=True)
