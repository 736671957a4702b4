"""`quartapp user`: create, show and change user accounts.

A command for a user or role that does not exist, or that a rule of the models refuses, prints the
reason in one line and exits with 1 (`cli.base.CommandGroup`). Commands that find nothing to change
say so and exit with 0. Changes are recorded in the audit log with no user as the actor.
"""

from __future__ import annotations

import sys
from datetime import date, datetime
from functools import partial
from typing import BinaryIO

import click
from beanie import PydanticObjectId

from quartapp import clock, policy, validation
from quartapp.activities import ROLE_END_CHANGED, ROLE_END_REMOVED
from quartapp.cli import imports
from quartapp.cli.base import CommandError, echo, print_table, validated
from quartapp.cli.database import find_role, find_user, wait_until_enforced
from quartapp.cli.decorators import data_option, with_database
from quartapp.cli.groups import user
from quartapp.models import Invitation, Role, Session, User, Worker
from quartapp.models.accounts import account_expiry, email_address
from quartapp.models.accounts.registration import claim as claim_account
from quartapp.models.accounts.registration import register as register_account
from quartapp.models.base.actor import SYSTEM
from quartapp.models.factors import enrolment
from quartapp.models.factors.factor import NAMES
from quartapp.models.limits import hash_cost
from quartapp.models.privacy import account_deletion
from quartapp.models.sessions.reason import Reason
from quartapp.security.password_policy import PasswordPolicy
from quartapp.security.passwords import SCHEMES, PasswordHasher
from quartapp.settings import Settings

# How many accounts `user list` reads and prints at a time.
LIST_AT_ONCE = 500


@user.command()
@click.argument("username")
@click.argument("email")
@click.option(
    "--role", "roles", multiple=True, metavar="ROLE", help="Role besides member; can be repeated."
)
@click.option("--unverified", is_flag=True, help="The user has to verify the email address first.")
@data_option
@with_database
async def create(
    username: str, email: str, roles: tuple[str, ...], unverified: bool, settings: Settings
) -> None:
    """Create an account. Asks for the password, or reads a line of standard input.

    The email address counts as verified because you vouch for it, unless you say --unverified.
    Where verification is required, such an account gets an email with a link, and is deleted after
    a day without verification; otherwise no email is sent. Fails if the username or address is
    taken, if a role does not exist, or if the password policy rejects the password.
    """
    username = validated(validation.check_username, username)
    email = validated(validation.check_email, email)
    held = [await find_role(name) for name in dict.fromkeys((policy.MEMBER, *roles))]
    password = _read_password()
    await _require_accepted_password(password, settings, username, email)
    hasher = PasswordHasher.of(settings)
    # A running server may have a different BCRYPT_COST.
    await hash_cost.highest(settings.bcrypt_cost)
    who = username, email, await hasher.hash(password)
    hasher.close()
    if unverified and settings.verification_required:
        created = await claim_account(*who, roles=held, by=SYSTEM)
    else:
        created = await register_account(*who, roles=held, by=SYSTEM, verified=not unverified)
    echo(f"Created {created.username} with the roles {', '.join(role.name for role in held)}.")
    if created.awaits_verification:
        echo(
            f"{created.address} must be verified within a day, by the link in an email. The "
            "account can be used once that is done, and is deleted otherwise."
        )


@user.command()
@click.argument("username")
@data_option
@with_database
async def verify(username: str) -> None:
    """Mark an email address as verified. You vouch that the address belongs to the user.

    Says so if it was verified already, and sends no email. Fails if another account has verified
    the address meanwhile.
    """
    person = await find_user(username)
    done = await email_address.mark_verified(person, by=SYSTEM)
    words = "is verified" if done else "was already verified"
    echo(f"The email address {person.address} of {person.username} {words}.")


@user.command()
@click.argument("email")
@click.option("--role", metavar="ROLE", help="Role besides member.")
@data_option
@with_database
async def invite(email: str, role: str | None) -> None:
    """Invite a person. Sends an email with a link that creates an account for the address.

    Without a running server, the email stays in the outbox until one is started. Fails if an
    account or another open invitation has the address.
    """
    email = validated(validation.check_email, email)
    await Invitation.write(email, await find_role(role) if role else None, by=SYSTEM)
    state = "is on its way" if await Worker.everyone() else "will be sent when a server is running"
    echo(f"Invited {email}. The email {state}. Its link works for 7 days.")


@user.command("import")
@click.argument("file", required=False, type=click.File("rb"))
@click.option(
    "--from-mongo",
    "uri",
    metavar="URI",
    help="Import from a MongoEngine database instead of a FILE.",
)
@click.option("--collection", default="user", help="Collection of that database.")
@click.option(
    "--scheme",
    type=click.Choice(list(SCHEMES)),
    default="flask-bcrypt",
    help="How the hashes were created: see docs/operations.md.",
)
@click.option("--dry-run", "dry", is_flag=True, help="Check everything, but create nothing.")
@data_option
@with_database
async def import_users(
    file: BinaryIO | None,
    uri: str | None,
    collection: str,
    scheme: str,
    dry: bool,
    settings: Settings,
) -> None:
    """Import accounts with their bcrypt hashes.

    FILE has a JSON object on each line, with the fields username, email, password (the bcrypt
    hash), roles (a list of names; optional), active and email_verified (both true if missing; null
    means that the address is not verified). Goes on after an account that cannot be imported:
    prints it with the reason, and exits with 1 at the end.
    """
    if scheme == "flask-security" and settings.flask_security_salt is None:
        raise CommandError(
            "set FLASK_SECURITY_SALT to the SECURITY_PASSWORD_SALT of the other application first: "
            "without it, none of these users could sign in"
        )
    if file and not uri:
        source = imports.rows_of_file(file)
    elif uri and not file:
        source = imports.rows_of_collection(uri, collection)
    else:
        raise CommandError("name a FILE or use --from-mongo URI")
    async with source as rows:
        await imports.import_rows(
            rows, dry=dry, scheme=scheme, must_verify=settings.verification_required
        )


@user.command("list")
@click.option(
    "--search", default="", metavar="TEXT", help="Only usernames and addresses with this beginning."
)
@click.option("--after", metavar="USERNAME", help="Only accounts that follow this one in the list.")
@click.option("--limit", type=click.IntRange(1), help="List at most this many accounts.")
@data_option
@with_database
async def list_users(search: str, after: str | None, limit: int | None) -> None:
    """List accounts by username. Prints their address, roles and state.

    Reads and prints 500 accounts at a time; a column becomes wider when a longer value follows.
    """
    roles = {role.id: role.name for role in await Role.everyone()}
    head, widths = ["USERNAME", "EMAIL", "ROLES", "STATE"], list[int]()
    left = sys.maxsize if limit is None else limit
    more = True
    while more:
        size = min(left, LIST_AT_ONCE)
        found = await User.search(search, after=after, limit=size)
        rows = [[u.username, u.address, _role_names(u, roles), _states(u)] for u in found]
        widths = print_table(head, rows, at_least=widths)
        left, more = left - size, len(found) == size < left
        head, after = [], found[-1].username if found else after


@user.command()
@click.argument("username")
@data_option
@with_database
async def show(username: str) -> None:
    """Show an account. Prints its address, roles, state, second factors and active sessions."""
    person = await find_user(username)
    roles = {role.id: role.name for role in await Role.everyone()}
    echo(f"username  {person.username}")
    verified = "" if person.verified else " (unverified)"
    echo(f"email     {person.address}{verified}")
    echo(f"roles     {_role_names(person, roles) or 'none'}")
    echo(f"state     {_state(person, active='active')}")
    factors = ", ".join(sorted(str(NAMES[kind]) for kind in person.factors))
    echo(f"factors   {factors or 'none'}")
    echo(f"since     {clock.format_short(person.created_at)}")
    sessions = await Session.of_user(person.id)
    echo(f"sessions  {len(sessions)}")
    for session in sessions:
        echo(
            f"          {session.device}, {session.ip or 'no IP address'}, "
            f"last active {clock.format_short(session.seen_at)}"
        )


@user.command()
@click.argument("username")
@click.argument("role")
@click.option("--for", "lasts", metavar="DURATION", help="For this long, such as 2h or 1d12h.")
@click.option("--until", "end", metavar="TIME", help="Until this time in ISO 8601, in UTC.")
@data_option
@with_database
async def grant(username: str, role: str, lasts: str | None, end: str | None) -> None:
    """Grant a role. The user is notified, and open pages are updated.

    With --for or --until the role is granted for a limited time: then the sessions of the account
    end. Granting a role again changes its end, or removes it. Returns when all workers apply the
    change. Fails for an account that must verify its address first.
    """
    if lasts is not None and end is not None:
        raise CommandError("use either --for or --until")
    given = end if lasts is None else lasts
    check = partial(validation.check_grant_end, now=clock.now())
    until = None if given is None else validated(check, given)
    person, granted = await find_user(username), await find_role(role)
    done = await person.grant(granted, by=SYSTEM, until=until)
    await wait_until_enforced(done)
    time = f" until {clock.format_short(until)}" if until else ""
    if done and done.verb == ROLE_END_REMOVED.audit:
        echo(f"{person.username} keeps the role {granted.name}, which no longer ends.")
    elif done and done.verb == ROLE_END_CHANGED.audit:
        had = done.details.get("end")
        before = f"ended at {clock.format_short(had)}" if had else "had no end"
        echo(f"{person.username} has the role {granted.name}{time}. Before, it {before}.")
    else:
        verb = "now has" if done else "already has"
        echo(f"{person.username} {verb} the role {granted.name}{time}.")


@user.command()
@click.argument("username")
@click.argument("role")
@data_option
@with_database
async def revoke(username: str, role: str) -> None:
    """Revoke a role. Ends all sessions of the account, and notifies the user.

    Returns when no worker accepts these sessions, and prints what became of open tabs. Fails for
    the role of the last active administrator.
    """
    person, revoked = await find_user(username), await find_role(role)
    done = await person.revoke(revoked, by=SYSTEM)
    reach = await wait_until_enforced(done)
    verb = "no longer has" if done else "did not have"
    echo(f"{person.username} {verb} the role {revoked.name}.{reach}")


@user.command("end-sessions")
@click.argument("username")
@data_option
@with_database
async def end_sessions(username: str) -> None:
    """End all sessions of an account. Notifies the user.

    Returns when no worker accepts them, and prints their number and what became of open tabs.
    """
    person = await find_user(username)
    event = await person.end_sessions(Reason.ENDED_BY_ADMIN, by=SYSTEM)
    reach = await wait_until_enforced(event)
    count = event.details["count"] if event else 0
    echo(f"Sessions of {person.username} ended: {count}.{reach}")


@user.command()
@click.argument("username")
@click.option("--on", "day", type=click.DateTime(["%Y-%m-%d"]), metavar="DATE", help="Expiry date.")
@data_option
@with_database
async def disable(username: str, day: datetime | None) -> None:
    """Disable an account. Ends its sessions now or, with --on, at the end of the DATE (UTC).

    Notifies the user. Returns when no worker accepts these sessions, and prints what became of open
    tabs. Fails for the last active administrator.
    """
    person = await find_user(username)
    if day is not None:
        await _set_expiry(person, day.date())
    else:
        done = await person.disable(by=SYSTEM)
        reach = await wait_until_enforced(done)
        echo(f"{person.username} {'is disabled' if done else 'was already disabled'}.{reach}")


@user.command()
@click.argument("username")
@data_option
@with_database
async def enable(username: str) -> None:
    """Enable an account, or remove its expiry date. Sessions that have ended stay ended.

    Notifies the user. Returns when all workers apply the change, and prints the state of the
    account: one that is deactivated, or will be deleted, stays so.
    """
    person = await find_user(username)
    done = await person.enable(by=SYSTEM) or await account_expiry.remove_expiry(person, by=SYSTEM)
    await wait_until_enforced(done)
    state = _state(await find_user(username), active="enabled")
    if done:
        echo(f"{person.username} is {state}.")
    elif state == "enabled":
        echo(f"{person.username} was already enabled.")
    else:
        echo(f"Nothing was changed: {person.username} is {state}.")


async def _set_expiry(person: User, day: date) -> None:
    """Set the date at whose end the account is disabled, which notifies the user, and print the
    outcome, also if nothing was changed.

    Waits until all workers apply it. Raises CommandError for a date that is past or more than ten
    years ahead, and LastAdministrator.
    """
    if not account_expiry.is_possible(day):
        raise CommandError(f"{day}: use a date from today up to ten years ahead")
    done = await account_expiry.set_expiry(person, day, by=SYSTEM)
    await wait_until_enforced(None)
    if done:
        echo(f"{person.username} will be disabled at the end of {day} (UTC).")
    else:
        state = _state(person, active="active")
        echo(f"Nothing was changed: {person.username} is {state}.")


@user.command()
@click.argument("username")
@click.option("--remove-posts", is_flag=True, help="Also delete posts and comments.")
@click.option("--now", is_flag=True, help="Delete immediately. This cannot be undone.")
@data_option
@with_database
async def delete(username: str, remove_posts: bool, now: bool, settings: Settings) -> None:
    """Delete an account. Ends its sessions; until the deletion date it can be restored.

    Notifies and emails the user. Returns when no worker accepts these sessions, and prints the
    date. If an earlier deletion is scheduled, that stays. With --now, the account is erased before
    the command returns. Fails for the last active administrator.
    """
    person = await find_user(username)
    at = clock.now() if now else clock.now() + settings.deletion_grace
    with_posts = remove_posts or person.deletes_posts
    event = await person.deactivate(by=SYSTEM, deletes_at=at, with_posts=with_posts)
    reach = await wait_until_enforced(event)
    if now:
        await account_deletion.erase_now(person.id)
        echo(f"{person.username} was deleted.{reach}")
    elif event:
        until = clock.format_short(event.details["until"])
        echo(f"{person.username} can no longer sign in and will be deleted on {until}.{reach}")
    else:
        echo(f"{person.username} will already be deleted before that date.")


@user.command()
@click.argument("username")
@data_option
@with_database
async def restore(username: str) -> None:
    """Restore an account. Reverses a deactivation, or a deletion that is not due yet.

    Notifies and emails the user. Returns when all workers apply the change, and prints the state of
    the account. If there is nothing to restore, says so.
    """
    person = await find_user(username)
    done = await person.restore(by=SYSTEM)
    await wait_until_enforced(done)
    if done:
        echo(f"{username} is {_state(await find_user(username), active='active again')}.")
    else:
        echo(f"Nothing was changed: {person.username} cannot be restored.")


@user.command("reset-factors")
@click.argument("username")
@data_option
@with_database
async def reset_factors(username: str) -> None:
    """Remove all second factors of an account.

    For a user who has lost them. Also removes recovery codes, ends all sessions of the account, and
    notifies and emails the user. Returns when no worker accepts these sessions, and prints what
    became of open tabs.
    """
    person = await find_user(username)
    done = await enrolment.reset(person, by=SYSTEM)
    reach = await wait_until_enforced(done)
    verb = "no longer has second factors" if done else "had no second factors"
    echo(f"{person.username} {verb}.{reach}")


async def _require_accepted_password(password: str, settings: Settings, *context: str) -> None:
    """Raise CommandError, with the reason, unless the password policy accepts the password. May ask
    the service for breached passwords."""
    policy = PasswordPolicy.of(settings)
    try:
        reason = await policy.weakness(password, context=context)
    finally:
        await policy.close()
    if reason:
        raise CommandError(reason)


def _role_names(person: User, roles: dict[PydanticObjectId, str]) -> str:
    """Return the names of the user's roles in alphabetical order, separated by commas, each with
    its end if it has one."""
    ends = {role: f" (until {clock.format_short(end)})" for role, end in person.ends.items()}
    ids = person.role_ids
    return ", ".join(sorted(roles[each] + ends.get(each, "") for each in ids if each in roles))


def _states(person: User) -> str:
    """Return the state for the list: empty for an account that is active and verified."""
    return ", ".join(
        filter(None, ("" if person.verified else "unverified", _state(person, active="")))
    )


def _state(person: User, *, active: str) -> str:
    """Return the state of an account in words: whether it is disabled, when it will be deleted or
    else that it is deactivated, or when it expires; `active` if none of these is the case."""
    words = ["disabled"] if person.disabled else []
    if person.deletes_at:
        words.append(f"to be deleted on {clock.format_short(person.deletes_at)}")
    elif person.closed_at:
        words.append("deactivated")
    elif person.expires_on and not person.disabled:
        words.append(f"expires on {person.expires_on}")
    return ", ".join(words) or active


def _read_password() -> str:
    """Return the password from the terminal, where it has to be entered twice, or else from a line
    of standard input.

    Raises CommandError for an empty line and for bytes that are not UTF-8.
    """
    if sys.stdin.isatty():
        return click.prompt("Password", hide_input=True, confirmation_prompt=True)
    try:
        # Some programs write a byte order mark first, which is not part of the password.
        password = sys.stdin.readline().removeprefix("\ufeff").rstrip("\r\n")
    except UnicodeDecodeError:
        raise CommandError("the password on standard input is not UTF-8") from None
    if not password:
        raise CommandError("no password on standard input")
    return password
