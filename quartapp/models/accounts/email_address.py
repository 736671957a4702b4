"""The email address of an account: verifying it and changing it.

An email with a link and a code goes to the address in question; the account keeps its old address
until the new one is verified. Link and code only prove that the visitor reads the mailbox, so the
functions that take one also require the account, of which the visitor has shown the password or the
session.

What happens in an authorized transaction raises SessionOver or RightsChanged if the actor's session
has ended or has lost a permission.
"""

import hmac
import secrets
from dataclasses import dataclass, field
from datetime import timedelta

from beanie import PydanticObjectId
from limits import RateLimitItem
from pymongo.errors import DuplicateKeyError

from quartapp import clock
from quartapp.activities import (
    EMAIL_CHANGED,
    EMAIL_VERIFICATION_REQUESTED,
    EMAIL_VERIFIED,
)
from quartapp.db.mongo import Tx, transaction
from quartapp.i18n import duration, lazy_ngettext
from quartapp.i18n import lazy_gettext as _
from quartapp.models.accounts import address_undo
from quartapp.models.accounts.account import Taken, address_fields
from quartapp.models.accounts.one_time_token import Purpose, Token, TokenSpent, code_digest
from quartapp.models.accounts.registration import drop_claim
from quartapp.models.accounts.user import User
from quartapp.models.audit.event import Event
from quartapp.models.authorization.transaction import authorized_transaction
from quartapp.models.base.actor import Actor
from quartapp.models.base.references import DomainError
from quartapp.models.email.outbox import Mail

# ASVS 6.5.5: a code sent by email is valid for at most ten minutes.
LASTS = timedelta(minutes=10)


class TooManyEmails(DomainError):
    """The user has requested too many verification emails. The next one is possible in
    `retry_after` seconds, at least 1. The text has the limit and that time, in minutes."""

    def __init__(self, limit: RateLimitItem, wait: timedelta) -> None:
        self.retry_after = max(1, int(wait.total_seconds()))
        minutes = timedelta(minutes=-(-self.retry_after // 60))
        super().__init__(
            lazy_ngettext(
                "At most %(num)s email is sent within %(period)s. The next can be sent in "
                "%(wait)s.",
                "At most %(num)s emails are sent within %(period)s. The next can be sent in "
                "%(wait)s.",
                limit.amount,
                period=duration(timedelta(seconds=limit.get_expiry())),
                wait=duration(minutes),
            )
        )


class WrongCode(DomainError):
    """The code is wrong. `left` more tries are possible; the text has that number and, for 0,
    the advice to send another email."""

    def __init__(self, left: int) -> None:
        none = _("Incorrect code. You have no more tries. Send another email.")
        some = lazy_ngettext(
            "Incorrect code. You have %(num)s more try.",
            "Incorrect code. You have %(num)s more tries.",
            left,
        )
        super().__init__(some if left else none)


class NoCode(DomainError):
    """There is no valid code, or it was tried too often."""

    def __init__(self) -> None:
        super().__init__(_("The code has expired or was tried too often. Send another email."))


def unconfirmed(user: User) -> str | None:
    """Return the address that the user has to verify: the pending one, or else the present one if
    it is unverified. None if there is neither."""
    return user.pending_email or (None if user.verified else user.address)


async def require_verification(required: bool) -> int:
    """Apply the setting REQUIRE_VERIFIED_EMAIL to the accounts there are, at the start of a server.

    If it is required, accounts with an unverified address cannot be used until they verify it, and
    their sessions are over. If not, they can be used again, except those that only claim their
    address. Changes the accounts in batches; records no events and sends nothing. Returns the
    number of accounts that this changed.
    """
    unverified = {"email_verified_at": None, "claimed_email": None}
    match = {**unverified, "must_verify": {"$ne": True} if required else True}
    changed = 0
    async for ids in User.batches(match):
        these = {**match, "_id": {"$in": ids}}
        changed += await User.change_all(these, {"$set": {"must_verify": required}})
    return changed


@dataclass(frozen=True, slots=True)
class Issued:
    """What a verification mail says, and to whom. `taken` if another account holds the address:
    then the mail says so to its owner, who gets no link and no code."""

    user: User
    to: str
    taken: bool
    token: str = field(repr=False)
    code: str = field(repr=False)


async def request_change(user: User, email: str, *, limit: RateLimitItem, by: Actor) -> None:
    """Start changing the user's address to this one: store it as pending and queue a verification
    email to it.

    In an authorized transaction. Replaces another pending address. Entering the present address
    removes a pending one, and queues an email all the same. Whether another account holds the
    address is not checked: only its owner learns that, by email. No event and no notification. Past
    the mail budget of the mailbox, the change is stored, but no email is queued (`Mail.queue`).
    Raises TooManyEmails, without a write, if the account has requested as many emails as the limit
    allows.
    """
    pending = email if email != user.email else None
    await _request(user, email, {"pending_email": pending}, limit=limit, by=by)


async def request_again(user: User, *, limit: RateLimitItem, by: Actor) -> None:
    """Queue another verification email to the address that the user has to verify, in an authorized
    transaction.

    When it is sent, older links and codes become void. Does nothing if there is no address to
    verify. Raises TooManyEmails if the limit is used up.
    """
    if email := unconfirmed(user):
        await _request(user, email, {}, limit=limit, by=by)


async def cancel_change(user: User) -> None:
    """Remove a pending address from the user, which voids its link and code. Writes no audit
    event, and sends nothing. Does nothing if there is none."""
    await User.change({"_id": user.id}, {"$set": {"pending_email": None}})


async def issue(mail: Mail, key: str) -> Issued | None:
    """Create the link and the code of a verification email that is about to be sent, and return
    them with the receiver.

    Stores them as one token, valid for ten minutes, and marks older verification tokens of the user
    as used; a second call for the same email replaces its token. Returns None, so that nothing is
    sent, if the account was deleted or is not active, if the address is not waiting for
    verification any more, or if since then the password was changed or a newer email was requested.
    If another account holds the address, `taken` is set and the email goes to that account's owner:
    then a token is stored which no code fits, so that a visitor who tries codes gets the same
    answers.
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


async def address_to_verify(token: str) -> tuple[str, User] | None:
    """Return the address that the link verifies and its account, or None if the link is void.

    Does not use the link up.
    """
    found = await Token.usable(Purpose.CONFIRM, token)
    if found is None or found[0].email not in (found[1].address, found[1].pending_email):
        return None
    return found[0].email or "", found[1]


async def confirm_by_link(user: User, token: str, *, by: Actor) -> User:
    """Verify the address with the link that was emailed for this account; return the account as
    stored then.

    The caller has made sure that the visitor knows the password of `user` or is signed in to it.
    Uses the token up, and verifies or replaces the address with the effects of `_confirm`. Raises
    TokenSpent if the token is not valid or is that of another account, and Taken if another account
    holds the address.
    """
    found = await Token.usable(Purpose.CONFIRM, token)
    if found is None or found[1].id != user.id:
        raise TokenSpent
    return await _confirm(found[0], by=by)


async def confirm_by_code(user: User, code: str, *, key: str, tries: int, by: Actor) -> User:
    """Verify the address with the code that was emailed for this account; return the account as
    stored then.

    The caller has made sure that the visitor knows the password of `user` or is signed in to it.
    Adds one to the tries of the newest valid token before the code is compared, so that parallel
    tries count too. A right code uses the token up, with the effects of `_confirm`. Raises
    WrongCode with the number of tries left; NoCode if there is no valid token or it was tried
    `tries` times; and Taken if another account holds the address.
    """
    # The try is counted before the code is compared, so that parallel tries do not exceed `tries`.
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


async def _request(
    user: User,
    email: str,
    change: dict[str, str | None],
    *,
    limit: RateLimitItem,
    by: Actor,
) -> None:
    """Count a verification email against the limit, apply the change to the user, and queue the
    email to the address.

    In an authorized transaction. The times of the last requests are stored in `letters_asked`.
    Raises TooManyEmails, without a write, if the limit is used up.
    """
    now, within = clock.now(), timedelta(seconds=limit.get_expiry())

    async def work(tx: Tx) -> None:
        # The newest is first, so the last place of the list is the time of the oldest that counts.
        oldest = f"letters_asked.{limit.amount - 1}"
        asked = {"$each": [now], "$position": 0, "$slice": limit.amount}
        update: dict[str, object] = {"$push": {"letters_asked": asked}}
        if change:
            update["$set"] = change
        allowed = {"_id": user.id, oldest: {"$not": {"$gt": now - within}}}
        if not await User.change(allowed, update, tx=tx):
            full = await User.get(user.id, session=tx)
            asked_at = full.letters_asked[limit.amount - 1] if full else now
            raise TooManyEmails(limit, asked_at + within - now)
        await Mail.queue(EMAIL_VERIFICATION_REQUESTED, email, user=user.id, tx=tx)

    await authorized_transaction(by, work)


async def _confirm(token: Token, *, by: Actor) -> User:
    """Use up the token and verify its address, in one transaction; return the user as stored then.

    A pending address replaces the old one (`_replace`). The present address is marked as verified,
    with the event EMAIL_VERIFIED; if it was verified already, only the token is used up. Raises
    TokenSpent, which undoes everything, if the token is void, the address is neither of the two, or
    the account only claims it and is due for deletion; and Taken if another account holds the
    address.
    """

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


async def mark_verified(user: User, *, by: Actor) -> Event | None:
    """Mark the user's address as verified, because an operator says so; return the event
    EMAIL_VERIFIED.

    In an authorized transaction; sends neither an email nor a notification. A pending address is
    not verified. Returns None if it was verified already, or if the account only claims it and is
    due for deletion. Raises Taken if another account holds an address that this one only claims.
    """

    async def work(tx: Tx) -> Event | None:
        if not await user.verify(user.address, tx=tx):
            return None
        return await Event.record(EMAIL_VERIFIED, by=by, subject=user.id, tx=tx)

    return await authorized_transaction(by, work)


async def _replace(user: User, email: str, *, by: Actor, tx: Tx) -> None:
    """Replace the user's address by the pending one, as verified, in the caller's transaction.

    Deletes another account that only claims it. Notifies the user, records the event EMAIL_CHANGED
    and, if the old address was verified, queues an email to it with a link that undoes the change.
    Ends no sessions. Raises TokenSpent if the address has changed meanwhile, and Taken.
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
        undo = await address_undo.prepare(user, tx)
        await user.queue_email(EMAIL_CHANGED, tx, ip=by.ip, undo=str(undo))
    details = {"was": user.email, "verified": verified}
    await Event.record(EMAIL_CHANGED, by=by, subject=user.id, tx=tx, **details)
