"""Creating accounts: registration, and claims of addresses that are not verified yet."""

from collections.abc import Collection
from datetime import timedelta

from pymongo.errors import DuplicateKeyError

from quartapp import policy, validation
from quartapp.activities import ACCOUNT_CREATED, ACCOUNT_DELETED, EMAIL_VERIFICATION_REQUESTED
from quartapp.db.mongo import Tx, transaction
from quartapp.models.accounts.account import Taken, Unverified
from quartapp.models.accounts.user import User
from quartapp.models.audit.event import Event
from quartapp.models.audit.recording import record
from quartapp.models.authorization.privileges import require_to_give
from quartapp.models.base.actor import NOBODY, Actor
from quartapp.models.email.outbox import Mail
from quartapp.models.notifications.notice import Notice
from quartapp.models.roles.role import Role

# How long an account may claim an address that nobody has verified.
CLAIM_LASTS = timedelta(days=1)


async def register(
    username: str,
    email: str,
    password_hash: str,
    *,
    roles: Collection[Role],
    by: Actor,
    verified: bool = False,
    must_verify: bool = False,
) -> User:
    """Create an account that holds the address, and return it.

    `verified` says that the address counts as verified; `must_verify` that the account cannot
    be used before it is. An unverified address gets a verification mail if a visitor registers.
    Raises Taken, also for the slower of two registrations of one name at once, and Unverified
    for roles that an account with `must_verify` cannot hold.
    """

    async def work(tx: Tx) -> User:
        return await add_user(
            *(username, email, password_hash),
            roles=roles,
            by=by,
            tx=tx,
            verified=verified,
            must_verify=must_verify,
        )

    return await transaction(work)


async def claim(
    username: str, email: str, password_hash: str, *, roles: Collection[Role], by: Actor
) -> User:
    """Create an account that cannot be used before the address is verified, and return it.

    The account holds the username, and only claims the address: it does not look whether
    another account holds it, so the same is written in both cases. The mail that is queued
    tells the owner of the address which case it is. The account is deleted after CLAIM_LASTS,
    and at once when another account claims or gets the address. Raises Taken for the username,
    and Unverified for roles beyond the default.
    """

    async def work(tx: Tx) -> User:
        return await add_user(
            *(username, email, password_hash), roles=roles, by=by, tx=tx, claim=True
        )

    return await transaction(work)


async def add_user(
    username: str,
    email: str,
    password_hash: str,
    *,
    roles: Collection[Role],
    by: Actor,
    tx: Tx,
    verified: bool = False,
    must_verify: bool = False,
    claim: bool = False,
) -> User:
    """The writes of `register` and `claim`, for a transaction that does more.

    Deletes an account that only claims the address. Raises Taken, Unverified, and
    MissingPermission if a user creates the account with a role that allows more than they hold.
    """
    await require_to_give(by, [role.id for role in roles], tx)
    user = User(
        username=username,
        email=email,
        password_hash=password_hash,
        roles=list(roles),  # type: ignore[arg-type]
        must_verify=must_verify or claim,
    )
    if claim:
        user.claimed_email, user.canonical_claim = email, validation.canonical_email(email)
        user.email = f"{user.id}@unverified.invalid"
        user.canonical_email = validation.canonical_email(user.email)
        user.deletes_at = user.created_at + CLAIM_LASTS
    # Visitors register themselves; the command line does it for others.
    visitor = by.user_id is None and by.ip is not None
    sends_mail = claim or (visitor and not verified)
    if verified:
        user.email_verified_at = user.created_at
    elif sends_mail:
        user.letters_asked = [user.created_at]
    if user.awaits_verification and any(role.name != policy.MEMBER for role in roles):
        raise Unverified(username)
    await drop_claim(email, tx=tx)
    try:
        await user.insert(session=tx)
    except DuplicateKeyError as error:
        index = next(iter((error.details or {}).get("keyPattern", {"username": 1})))
        raise Taken(index.removeprefix("canonical_")) from None
    who = by.known_as(user.id, username) if visitor else by
    given = sorted(role.name for role in roles)
    await record(ACCOUNT_CREATED, user, by=who, tx=tx, words={"by": username}, roles=given)
    if sends_mail:
        await Mail.queue(EMAIL_VERIFICATION_REQUESTED, email, user=user.id, tx=tx)
    return user


async def drop_claim(email: str, *, tx: Tx) -> None:
    """Delete the account that only claims this address, if there is one.

    Nobody could sign in to it, so a user, its notifications and the address in its audit
    events are all that there is to delete.
    """
    claiming = await User.claiming(email, tx=tx)
    if claiming is None:
        return
    await User.erase(claiming.id, tx=tx)
    notices = Notice.get_motor_collection()
    await notices.delete_many({"user.$id": claiming.id}, session=tx)
    await Event.change_all({"actor.$id": claiming.id}, {"$set": {"ip": None}}, tx=tx)
    await Event.record(ACCOUNT_DELETED, by=NOBODY, subject=claiming.id, tx=tx, reason="replaced")
