"""The email address of an account: verifying it, and changing it.

Either way a mail with a link and a code goes to the address in question. The account keeps its old
address until the new one is verified. The link and the code prove the mailbox only: both functions
that take one also want the account whose password, or whose browser, the visitor has shown.
"""

import hmac
import secrets
from dataclasses import dataclass, field
from datetime import timedelta

import humanize
from beanie import PydanticObjectId
from limits import RateLimitItem
from pymongo.errors import DuplicateKeyError

from quartapp import clock
from quartapp.activities import (
    EMAIL_CHANGED,
    EMAIL_RESTORED,
    EMAIL_VERIFICATION_REQUESTED,
    EMAIL_VERIFIED,
)
from quartapp.db.mongo import Tx, transaction
from quartapp.models.accounts.account import Taken, address_fields
from quartapp.models.accounts.one_time_token import Purpose, Token, TokenSpent, code_digest
from quartapp.models.accounts.registration import drop_claim
from quartapp.models.accounts.user import User
from quartapp.models.audit.event import Event
from quartapp.models.audit.recording import record
from quartapp.models.authorization.transaction import authorized_transaction
from quartapp.models.base.actor import Actor
from quartapp.models.base.references import DomainError, user_ref
from quartapp.models.base.tokens import new_token
from quartapp.models.email.outbox import Mail
from quartapp.models.factors import enrolment
from quartapp.models.sessions.reason import Reason
from quartapp.models.sessions.session import mark_ended

# ASVS 6.5.5: a code sent by mail lives for ten minutes at most.
LASTS = timedelta(minutes=10)
# For so long a change of address can be undone from the old one.
UNDO_LASTS = timedelta(hours=72)


class EnoughLetters(DomainError):
    """Too many mails were asked for. The next can be sent in `retry_after` seconds."""

    def __init__(self, limit: RateLimitItem, wait: timedelta) -> None:
        self.retry_after = max(1, int(wait.total_seconds()))
        minutes = timedelta(minutes=-(-self.retry_after // 60))
        within = humanize.naturaldelta(limit.get_expiry())
        super().__init__(
            f"At most {limit.amount} emails are sent within {within}. The next can be sent in "
            f"{humanize.precisedelta(minutes, minimum_unit='minutes')}."
        )


class WrongCode(DomainError):
    """The code is wrong; there are `left` more tries."""

    def __init__(self, left: int) -> None:
        tries = f"{left} more {'try' if left == 1 else 'tries'}" if left else "no more tries"
        ask = "" if left else " Send another email."
        super().__init__(f"Incorrect code. You have {tries}.{ask}")


class NoCode(DomainError):
    """There is no code that could be tried."""

    def __init__(self) -> None:
        super().__init__("The code has expired or was tried too often. Send another email.")


def unconfirmed(user: User) -> str | None:
    """The address that waits to be confirmed: the one to come, before the one there is."""
    return user.pending_email or (None if user.verified else user.address)


async def require_verification(required: bool) -> int:
    """Apply the setting REQUIRE_VERIFIED_EMAIL to the accounts there are, at the start of a server.

    If it is required, accounts with an unverified address cannot be used until they verify it, and
    their sessions are over. If not, they can be used again, except those that only claim their
    address. Returns the number of accounts that this changed.
    """
    unverified = {"email_verified_at": None, "claimed_email": None}
    match = {**unverified, "must_verify": {"$ne": True} if required else True}
    return await User.change_all(match, {"$set": {"must_verify": required}})


@dataclass(frozen=True, slots=True)
class Issued:
    """What a verification mail says, and to whom. `taken` if another account holds the address:
    then the mail says so to its owner, who gets no link and no code."""

    user: User
    to: str
    taken: bool
    token: str = field(repr=False)
    code: str = field(repr=False)


async def ask_for(user: User, email: str, *, limit: RateLimitItem, by: Actor) -> None:
    """Begins to put this address in the place of the user's. Raises EnoughLetters.

    Does not look whether somebody has it: only who reads its mail may learn that.
    """
    pending = email if email != user.email else None
    await _ask(user, email, {"pending_email": pending}, limit=limit, by=by)


async def ask_again(user: User, *, limit: RateLimitItem, by: Actor) -> None:
    """Sends another letter, which voids those before it. Raises EnoughLetters."""
    if email := unconfirmed(user):
        await _ask(user, email, {}, limit=limit, by=by)


async def forget(user: User) -> None:
    """The account keeps the address that it has."""
    await User.change({"_id": user.id}, {"$set": {"pending_email": None}})


async def issue(mail: Mail, key: str) -> Issued | None:
    """Make the link and the code of a verification mail, and void those before it.

    Returns None if the mail is not needed any more: after the password was changed, the address was
    verified, a newer mail was asked for, or the account was deleted. If another account holds the
    address, a token is stored all the same, which no code fits: so a visitor who tries codes gets
    the same answers.
    """
    user = await User.get(mail.user_id) if mail.user_id else None
    if user is None or not user.is_active or mail.to != unconfirmed(user):
        return None
    if max(user.password_changed_at, *user.letters_asked) > mail.created_at:
        return None
    holder = await User.by_email(mail.to)
    taken = holder is not None and holder.id != user.id
    code = f"{secrets.randbelow(10**6):06}"
    token = await Token.issue(
        mail.id,
        Purpose.CONFIRM,
        user,
        mail.to,
        lasts=LASTS,
        code=None if taken else code_digest(key, mail.id, code),
    )
    others = {"user.$id": user.id, "purpose": Purpose.CONFIRM, "_id": {"$ne": mail.id}}
    await Token.change_all({**others, "used_at": None}, {"$set": {"used_at": clock.now()}})
    return Issued(user, holder.email if holder and taken else mail.to, taken, token, code)


async def asked_by(token: str) -> tuple[str, User] | None:
    """Return the address that the link verifies and its account, or None if the link is void.

    Does not use the link up.
    """
    found = await Token.usable(Purpose.CONFIRM, token)
    if found is None or found[0].email not in (found[1].address, found[1].pending_email):
        return None
    return found[0].email or "", found[1]


async def confirm_by_link(user: User, token: str, *, by: Actor) -> User:
    """Verify the address with the link that was mailed for this account, and return the account.

    The caller has made sure that the visitor knows the password of `user` or is signed in to it.
    Raises TokenSpent, also for the link of another account, and Taken when another account holds
    the address.
    """
    found = await Token.usable(Purpose.CONFIRM, token)
    if found is None or found[1].id != user.id:
        raise TokenSpent
    return await _confirm(found[0], by=by)


async def confirm_by_code(user: User, code: str, *, key: str, tries: int, by: Actor) -> User:
    """Verify the address with the code that was mailed for this account, and return the account.

    The caller has made sure that the visitor knows the password of `user` or is signed in to it.
    Raises WrongCode, NoCode after too many of them, and Taken.
    """
    # Counted before it is looked at, so that guesses at once are no more than guesses in a row.
    found = await Token.get_motor_collection().find_one_and_update(
        {
            "purpose": Purpose.CONFIRM,
            "user.$id": user.id,
            "used_at": None,
            "expires_at": {"$gt": clock.now()},
            "guesses": {"$lt": tries},
        },
        {"$inc": {"guesses": 1}},
        sort=[("created_at", -1)],
    )
    if found is None:
        raise NoCode
    token = Token.model_validate(found)
    if not hmac.compare_digest(token.code or "", code_digest(key, token.id, code)):
        raise WrongCode(tries - token.guesses - 1)
    try:
        return await _confirm(token, by=by)
    except TokenSpent:
        raise NoCode from None


async def _ask(
    user: User,
    email: str,
    change: dict[str, str | None],
    *,
    limit: RateLimitItem,
    by: Actor,
) -> None:
    now, within = clock.now(), timedelta(seconds=limit.get_expiry())

    async def work(tx: Tx) -> None:
        # The list has the newest first, so its last place tells how long ago that many were asked.
        oldest = f"letters_asked.{limit.amount - 1}"
        asked = {"$each": [now], "$position": 0, "$slice": limit.amount}
        update: dict[str, object] = {"$push": {"letters_asked": asked}}
        if change:
            update["$set"] = change
        allowed = {"_id": user.id, oldest: {"$not": {"$gt": now - within}}}
        if not await User.change(allowed, update, tx=tx):
            full = await User.get(user.id, session=tx)
            asked_at = full.letters_asked[limit.amount - 1] if full else now
            raise EnoughLetters(limit, asked_at + within - now)
        await Mail.queue(EMAIL_VERIFICATION_REQUESTED, email, user=user.id, tx=tx)

    await authorized_transaction(by, work)


async def _confirm(token: Token, *, by: Actor) -> User:
    async def work(tx: Tx) -> PydanticObjectId:
        user = await token.use(tx=tx)
        actor = by.known_as(user.id, user.username)
        if token.email == user.pending_email:
            await _replace(user, token.email or "", by=actor, tx=tx)
        elif token.email and token.email == user.address:
            if await user.verify(token.email, tx=tx):
                await Event.record(EMAIL_VERIFIED, by=actor, subject=user.id, tx=tx)
            elif user.claimed_email is not None:
                raise TokenSpent
        else:
            raise TokenSpent
        return user.id

    user = await User.get(await transaction(work))
    if user is None:
        raise TokenSpent
    return user


async def vouch_for(user: User, *, by: Actor) -> Event | None:
    """Count the address as verified without a mail, because an operator says that it is the user's.

    None if it was verified. Raises Taken if another account holds an address that this one claims.
    """

    async def work(tx: Tx) -> Event | None:
        if not await user.verify(user.address, tx=tx):
            return None
        return await Event.record(EMAIL_VERIFIED, by=by, subject=user.id, tx=tx)

    return await authorized_transaction(by, work)


async def _replace(user: User, email: str, *, by: Actor, tx: Tx) -> None:
    """Put the new address in the place of the old one, which is told by mail.

    Deletes an account that only claims the new address.
    """
    await drop_claim(email, tx=tx)
    update = {
        **address_fields(email),
        "email_verified_at": clock.now(),
        "pending_email": None,
        "must_verify": False,
    }
    match = {"_id": user.id, "email": user.email, "pending_email": email}
    try:
        if not await User.change(match, {"$set": update}, tx=tx):
            raise TokenSpent
    except DuplicateKeyError:
        raise Taken("email") from None
    await user.notify(EMAIL_CHANGED, tx)
    verified = user.email_verified_at is not None
    if verified:
        undo = await _prepare_undo(user, tx)
        await user.queue_email(EMAIL_CHANGED, tx, ip=by.ip, undo=str(undo))
    details = {"was": user.email, "verified": verified}
    await Event.record(EMAIL_CHANGED, by=by, subject=user.id, tx=tx, **details)


# ---- undoing a change of address


async def _prepare_undo(user: User, tx: Tx) -> PydanticObjectId:
    """Store what the link in the email to the old address is worth. Its token is created when the
    email is sent; nobody knows the one that is here until then."""
    now = clock.now()
    link = Token(
        purpose=Purpose.UNDO,
        digest=new_token()[1],
        created_at=now,
        expires_at=now + UNDO_LASTS,
        user=user_ref(user.id),
        email=user.email,
    )
    await link.insert(session=tx)
    return link.id


async def issue_undo(mail: Mail) -> tuple[User, str] | None:
    """For sending the email about a change: whom it is for, with a fresh token.

    None when the link is void, as after an earlier change was undone.
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


async def undo_asked_by(token: str) -> tuple[str, User] | None:
    """Return the address that the link restores, and the user; None when it is void."""
    found = await Token.usable(Purpose.UNDO, token)
    return (found[0].email or "", found[1]) if found else None


async def undo(token: str, *, by: Actor) -> Event:
    """Restore the address that the account had before, for whoever reads the mail there.

    Ends all sessions, forgets all browsers, and voids the password and every link of the account,
    those of later changes of address among them. A link of an earlier change goes on: it belongs to
    an older address. Removes the second factors that were added since the change, and all recovery
    codes: a passkey of the intruder would sign in without the password. Raises TokenSpent, and
    Taken when another account has the address by now.
    """
    found = await Token.usable(Purpose.UNDO, token)
    if found is None:
        raise TokenSpent
    link, email = found[0], found[0].email or ""

    async def work(tx: Tx) -> Event:
        user, now = await link.use(tx=tx), clock.now()
        # An account that only claims the address is in nobody's way.
        await drop_claim(email, tx=tx)
        restored = {
            **address_fields(email),
            "email_verified_at": now,
            "must_verify": False,
            "pending_email": None,
            # No password has this hash. The owner sets one next.
            "password_hash": f"!{secrets.token_urlsafe(24)}",
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

    # The link counts, and not who is signed in here.
    return await authorized_transaction(Actor(ip=by.ip, worker=by.worker), work, ends_sessions=True)
