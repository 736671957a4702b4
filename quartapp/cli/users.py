"""`quartapp user`: people, their roles and their sessions."""

from __future__ import annotations

import sys
from datetime import date, datetime
from typing import BinaryIO

import click
from beanie import PydanticObjectId

from quartapp import clock, policy, validation
from quartapp.cli import imports
from quartapp.cli.base import (
    Commands,
    Refused,
    checked,
    in_database,
    role_named,
    say,
    settle,
    table,
    with_data,
)
from quartapp.models import Invitation, Role, Session, User, Worker
from quartapp.models.accounts import account_expiry, email_address
from quartapp.models.accounts.registration import claim as claim_account
from quartapp.models.accounts.registration import register as register_account
from quartapp.models.base.actor import NOBODY
from quartapp.models.base.references import linked_id
from quartapp.models.factors import enrolment
from quartapp.models.factors.factor import NAMES
from quartapp.models.limits import hash_cost
from quartapp.models.privacy import account_deletion
from quartapp.models.sessions.reason import Reason
from quartapp.security.password_policy import PasswordPolicy
from quartapp.security.passwords import SCHEMES, PasswordHasher
from quartapp.settings import Settings


@click.group(cls=Commands)
def user() -> None:
    """People: make, show, grant, revoke, disable."""


@user.command()
@click.argument("username")
@click.argument("email")
@click.option("--role", "roles", multiple=True, metavar="ROLE", help="May be given again.")
@click.option("--unverified", is_flag=True, help="The user has to verify the email address.")
@with_data
@in_database
async def create(
    username: str, email: str, roles: tuple[str, ...], unverified: bool, settings: Settings
) -> None:
    """Create an account. The password is asked for, or read as a line where nobody can be asked.

    The email address counts as verified, because you vouch for it.
    """
    username = checked(validation.check_username, username)
    email = checked(validation.check_email, email)
    held = [await role_named(name) for name in dict.fromkeys((policy.MEMBER, *roles))]
    password = _password()
    await _require_good(password, settings, username, email)
    hasher = PasswordHasher.of(settings)
    # A server beside this command may have another.
    await hash_cost.highest(settings.bcrypt_cost)
    who = username, email, await hasher.hash(password)
    hasher.close()
    if unverified and settings.verification_required:
        made = await claim_account(*who, roles=held, by=NOBODY)
    else:
        made = await register_account(*who, roles=held, by=NOBODY, verified=not unverified)
    say(f"{made.username} was made, with the roles {', '.join(role.name for role in held)}.")
    if made.awaits_verification:
        say(
            f"An email to {made.address} asks to verify the address. The account can be used once "
            "that is done, and is deleted after a day if not."
        )


@user.command()
@click.argument("username")
@with_data
@in_database
async def verify(username: str) -> None:
    """Count the email address of an account as verified, because you vouch for it."""
    person = await _user(username)
    done = await email_address.vouch_for(person, by=NOBODY)
    words = "is verified" if done else "was verified already"
    say(f"The address {person.address} of {person.username} {words}.")


@user.command()
@click.argument("email")
@click.option("--role", metavar="ROLE", help="Beside member.")
@with_data
@in_database
async def invite(email: str, role: str | None) -> None:
    """Invite somebody by a letter, whose link makes an account for the address."""
    email = checked(validation.check_email, email)
    await Invitation.write(email, await role_named(role) if role else None, by=NOBODY)
    fate = "is on its way" if await Worker.everyone() else "is queued, and leaves when one serves"
    say(f"{email} is invited. The letter {fate}; its link works for 7 days.")


@user.command("import")
@click.argument("file", required=False, type=click.File("rb"))
@click.option("--from-mongo", "uri", metavar="URI", help="A MongoEngine database, instead of FILE.")
@click.option("--collection", default="user", help="Where the people are in it.")
@click.option(
    "--scheme",
    type=click.Choice(list(SCHEMES)),
    default="flask-bcrypt",
    help="How the hashes were made: see the README.",
)
@click.option("--dry-run", "dry", is_flag=True, help="Only say what would be done.")
@with_data
@in_database
async def import_users(
    file: BinaryIO | None,
    uri: str | None,
    collection: str,
    scheme: str,
    dry: bool,
    settings: Settings,
) -> None:
    """Make the accounts of a FILE with a JSON object on each line, or of a MongoEngine collection:
    username, email, password, which is the bcrypt hash, roles, a list of names, and active and
    email_verified, which are true unless they say false."""
    if scheme == "flask-security" and settings.flask_security_salt is None:
        raise Refused(
            "set FLASK_SECURITY_SALT to the SECURITY_PASSWORD_SALT of the other application first: "
            "without it none of these people could sign in"
        )
    if file and not uri:
        source = imports.from_file(file)
    elif uri and not file:
        source = imports.from_mongo(uri, collection)
    else:
        raise Refused("name a FILE, or --from-mongo URI")
    async with source as rows:
        await imports.run(rows, dry=dry, scheme=scheme, must_verify=settings.verification_required)


@user.command("list")
@with_data
@in_database
async def list_users() -> None:
    """List everybody, by username."""
    roles = {role.id: role.name for role in await Role.everyone()}
    rows: list[list[str]] = []
    after: str | None = None
    while found := await User.search("", after=after, limit=500):
        after = found[-1].username
        rows += [[u.username, u.address, _held(u, roles), _states(u)] for u in found]
    table(["USERNAME", "E-MAIL", "ROLES", "STATE"], rows)


@user.command()
@click.argument("username")
@with_data
@in_database
async def show(username: str) -> None:
    """Show one account and where it is signed in."""
    person = await _user(username)
    roles = {role.id: role.name for role in await Role.everyone()}
    say(f"username  {person.username}")
    verified = "" if person.verified else " (unverified)"
    say(f"e-mail    {person.address}{verified}")
    say(f"roles     {_held(person, roles) or 'none'}")
    say(f"state     {_state(person, active='active')}")
    factors = ", ".join(sorted(NAMES[kind] for kind in person.factors))
    say(f"factors   {factors or 'none'}")
    say(f"since     {clock.to_the_minute(person.created_at)}")
    sessions = await Session.of_user(person.id)
    say(f"sessions  {len(sessions)}")
    for session in sessions:
        say(
            f"          {session.device}, {session.ip or 'no address'}, "
            f"last seen {clock.to_the_minute(session.seen_at)}"
        )


@user.command()
@click.argument("username")
@click.argument("role")
@with_data
@in_database
async def grant(username: str, role: str) -> None:
    """Give a role. Open pages gain it in place."""
    person, given = await _user(username), await role_named(role)
    done = await person.grant(given, by=NOBODY)
    await settle(done)
    say(f"{person.username} {'now holds' if done else 'held already'} {given.name}.")


@user.command()
@click.argument("username")
@click.argument("role")
@with_data
@in_database
async def revoke(username: str, role: str) -> None:
    """Take a role. The sessions of the account are ended."""
    person, taken = await _user(username), await role_named(role)
    done = await person.revoke(taken, by=NOBODY)
    reach = await settle(done)
    verb = "no longer holds" if done else "did not hold"
    say(f"{person.username} {verb} {taken.name}.{reach}")


@user.command("end-sessions")
@click.argument("username")
@with_data
@in_database
async def end_sessions(username: str) -> None:
    """Sign an account out everywhere."""
    person = await _user(username)
    event = await person.end_sessions(Reason.ENDED_BY_ADMIN, by=NOBODY)
    reach = await settle(event)
    count = event.details["count"] if event else 0
    say(f"Sessions of {person.username} ended: {count}.{reach}")


@user.command()
@click.argument("username")
@click.option(
    "--on", "day", type=click.DateTime(["%Y-%m-%d"]), metavar="DATE", help="Its last day."
)
@with_data
@in_database
async def disable(username: str, day: datetime | None) -> None:
    """Close an account: now, which ends its sessions, or when the DATE is over, by UTC."""
    person = await _user(username)
    if day is not None:
        await _appoint(person, day.date())
    else:
        done = await person.disable(by=NOBODY)
        reach = await settle(done)
        say(f"{person.username} {'is disabled' if done else 'was disabled already'}.{reach}")


@user.command()
@click.argument("username")
@with_data
@in_database
async def enable(username: str) -> None:
    """Open an account again, without a last day."""
    person = await _user(username)
    done = await person.enable(by=NOBODY) or await account_expiry.lift(person, by=NOBODY)
    await settle(done)
    say(f"{person.username} {'is enabled' if done else 'was enabled already'}.")


async def _appoint(person: User, day: date) -> None:
    if not account_expiry.is_possible(day):
        raise Refused(f"{day}: a last day is today or within the next ten years")
    done = await account_expiry.appoint(person, day, by=NOBODY)
    await settle(None)
    if done:
        say(f"{person.username} will be disabled when {day} is over, by UTC.")
    else:
        state = _state(person, active="active")
        say(f"Nothing had to be changed: {person.username} is {state}.")


@user.command()
@click.argument("username")
@click.option("--remove-posts", is_flag=True, help="Posts and comments go too.")
@click.option("--now", is_flag=True, help="At once, so that nobody can take it back.")
@with_data
@in_database
async def delete(username: str, remove_posts: bool, now: bool, settings: Settings) -> None:
    """Close an account, and delete it when the time to take that back is over."""
    person = await _user(username)
    at = clock.now() if now else clock.now() + settings.deletion_grace
    with_posts = remove_posts or person.deletes_posts
    event = await person.close(by=NOBODY, deletes_at=at, with_posts=with_posts)
    reach = await settle(event)
    if now:
        await account_deletion.erase_now(person.id)
        say(f"{person.username} was deleted.{reach}")
    elif event:
        until = event.details["until"]
        say(f"{person.username} is closed, and will be deleted on {until}.{reach}")
    else:
        say(f"{person.username} will be deleted before that.")


@user.command()
@click.argument("username")
@with_data
@in_database
async def restore(username: str) -> None:
    """Open an account again that is closed, or is to be deleted."""
    person = await _user(username)
    done = await person.restore(by=NOBODY)
    await settle(done)
    if done:
        say(f"{username} is {_state(await _user(username), active='open again')}.")
    else:
        say(f"{person.username} was not closed, or it is too late.")


@user.command("reset-factors")
@click.argument("username")
@with_data
@in_database
async def reset_factors(username: str) -> None:
    """Take all second factors from an account whose owner has lost them. Its sessions are ended."""
    person = await _user(username)
    done = await enrolment.reset(person, by=NOBODY)
    reach = await settle(done)
    verb = "has no second factor any more" if done else "had no second factor"
    say(f"{person.username} {verb}.{reach}")


async def _require_good(password: str, settings: Settings, *context: str) -> None:
    """Raises Refused."""
    policy = PasswordPolicy.of(settings)
    try:
        reason = await policy.weakness(password, context=context)
    finally:
        await policy.close()
    if reason:
        raise Refused(reason)


async def _user(username: str) -> User:
    found = await User.by_username(username)
    if found is None:
        raise Refused(f"there is no user {username}")
    return found


def _held(person: User, roles: dict[PydanticObjectId, str]) -> str:
    ids = [linked_id(link) for link in person.roles]
    return ", ".join(sorted(roles[role_id] for role_id in ids if role_id in roles))


def _states(person: User) -> str:
    """What stands in the list: nothing for an account that is active and verified."""
    return ", ".join(
        filter(None, ("" if person.verified else "unverified", _state(person, active="")))
    )


def _state(person: User, *, active: str) -> str:
    words = ["disabled"] if person.disabled else []
    if person.deletes_at:
        words.append(f"deletes on {clock.to_the_minute(person.deletes_at)}")
    elif person.closed_at:
        words.append("closed by its owner")
    elif person.last_day and not person.disabled:
        words.append(f"until {person.last_day}")
    return ", ".join(words) or active


def _password() -> str:
    if sys.stdin.isatty():
        return click.prompt("Password", hide_input=True, confirmation_prompt=True)
    try:
        # Some programs write a byte order mark before UTF-8; it is no part of the password.
        password = sys.stdin.readline().removeprefix("\ufeff").rstrip("\r\n")
    except UnicodeDecodeError:
        raise Refused("the password on standard input is not UTF-8") from None
    if not password:
        raise Refused("no password came on standard input")
    return password
