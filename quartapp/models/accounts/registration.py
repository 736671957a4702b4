"""Creating accounts: registration, and claims of addresses that are not verified yet."""

from collections.abc import Collection
from datetime import timedelta

from pymongo.errors import DuplicateKeyError

from quartapp import policy, validation
from quartapp.activities import (
    ACCOUNT_CREATED,
    ACCOUNT_DELETED,
    EMAIL_VERIFICATION_REQUESTED,
    FIRST_PASSWORD_REQUESTED,
)
from quartapp.db.mongo import Tx, transaction
from quartapp.models.accounts.account import Taken, Unverified
from quartapp.models.accounts.user import User
from quartapp.models.audit.erasing import erase_address_at_once
from quartapp.models.audit.event import Event
from quartapp.models.audit.recording import record
from quartapp.models.authorization.privileges import Lacks, refusals_to_give, require_to_give
from quartapp.models.authorization.transaction import authorized_transaction
from quartapp.models.base.actor import SYSTEM, Actor
from quartapp.models.base.references import DomainError
from quartapp.models.email.outbox import Mail
from quartapp.models.notifications.notice import Notice
from quartapp.models.roles.refusals import RoleGone
from quartapp.models.roles.role import Role
from quartapp.models.statistics import hourly_count
from quartapp.models.statistics.hourly_count import Counted

# How long an account may claim an address without verifying it.
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
    """Create an account that holds the address, in one transaction, and return its user.

    Has the effects of `add_user`, and counts the account for the dashboard after the commit.
    `verified`: the address counts as verified. `must_verify`: the account cannot be used before it
    is verified. Raises Taken, also in a race of two registrations, Unverified for other roles than
    `member` with `must_verify`, MissingPermission and RoleGone.
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

    user = await transaction(work)
    hourly_count.add(Counted.ACCOUNTS)
    return user


async def create_for(
    username: str, email: str, password_hash: str, *, roles: Collection[Role], by: Actor
) -> User:
    """Create an account for somebody else, in an authorized transaction, and return its user.

    Has the effects of `add_user`, and queues the email with a link to set a password, within the
    mail budget. Counts the account for the dashboard after the commit. The caller passes the hash
    of a password that nobody knows: until the person has used the link, which also verifies the
    address, nobody can sign in. Raises Taken, MissingPermission, RoleGone, SessionOver and
    RightsChanged.
    """

    async def work(tx: Tx) -> User:
        user = await add_user(username, email, password_hash, roles=roles, by=by, tx=tx)
        await Mail.queue(FIRST_PASSWORD_REQUESTED, email, user=user.id, tx=tx)
        return user

    user = await authorized_transaction(by, work)
    hourly_count.add(Counted.ACCOUNTS)
    return user


async def refusals_to_create(
    username: str | None, email: str | None, roles: Collection[Role], *, lacks: Lacks
) -> list[DomainError]:
    """Return the errors with which `create_for` would refuse this now. A username or address that
    is not valid is None, and is not checked. `lacks` tells what the actor lacks."""
    return [
        *await taken(username, email),
        *(
            refusal
            for role in roles
            for refusal in refusals_to_give(role.name, role.permissions, lacks)
        ),
    ]


async def taken(username: str | None, email: str | None) -> list[Taken]:
    """Return the error of each of the two that another account has. None is not looked up.

    The unique indexes decide when the account is created.
    """
    found = []
    if username is not None and await User.by_username(username):
        found.append(Taken("username"))
    if email is not None and await User.by_email(email):
        found.append(Taken("email"))
    return found


async def claim(
    username: str, email: str, password_hash: str, *, roles: Collection[Role], by: Actor
) -> User:
    """Create an account that only claims the address, in one transaction, and return its user.

    Has the effects of `add_user`, and counts the account for the dashboard after the commit. The
    account cannot be used before the address is verified, and holds a placeholder address until
    then. Does not check whether another account holds the address, so that the writes are the same:
    the queued email tells its reader which is the case. Sets `deletes_at`: a job deletes the
    account after CLAIM_LASTS. It is deleted at once if another account claims or gets the address.
    Raises Taken for the username, Unverified for other roles than `member`, and MissingPermission.
    """

    async def work(tx: Tx) -> User:
        return await add_user(
            *(username, email, password_hash), roles=roles, by=by, tx=tx, claim=True
        )

    user = await transaction(work)
    hourly_count.add(Counted.ACCOUNTS)
    return user


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
    """Insert a user, in the caller's transaction, and return it.

    Deletes another account that only claims the address. Records the event ACCOUNT_CREATED (a
    visitor who registers is its actor) and stores the welcome notification. Queues a verification
    email, without an event, for a `claim`, or if a visitor registers with an unverified address;
    none if an administrator or the command line creates the account, or past the mail budget.
    Counts the grants of the roles, except that of `member`, which cannot be deleted: registrations
    would conflict. After the commit, the caller counts the account (`Counted`).

    Raises Taken (`field` says which) if the insert finds a duplicate, MissingPermission if a
    signed-in actor lacks a permission of the roles, RoleGone if a role was deleted, and Unverified
    for other roles than `member` on an account that must verify its address first.
    """
    await require_to_give(by, [role.id for role in roles], tx)
    others = [role for role in roles if role.name != policy.MEMBER]
    for role in others:
        # Writing the role's document makes this conflict with deleting the role.
        if not await role.count_grant(tx):
            raise RoleGone(role.name)
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
    if user.awaits_verification and others:
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
    """Delete the account that only claims this address, if there is one, in the caller's
    transaction.

    Also deletes its notifications, removes the IP address from its audit events, and records the
    event ACCOUNT_DELETED. Nobody could sign in to it, so there is nothing else.
    """
    claiming = await User.claiming(email, tx=tx)
    if claiming is None:
        return
    await User.erase(claiming.id, tx=tx)
    notices = Notice.get_motor_collection()
    await notices.delete_many({"user.$id": claiming.id}, session=tx)
    await erase_address_at_once(claiming.id, tx)
    details = {"reason": "replaced", "erased": []}
    await Event.record(ACCOUNT_DELETED, by=SYSTEM, subject=claiming.id, tx=tx, **details)
