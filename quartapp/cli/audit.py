"""`quartapp audit`: verify the audit log."""

from __future__ import annotations

import re

import click

from quartapp import clock
from quartapp.cli.base import CommandError, echo
from quartapp.cli.decorators import data_option, with_database
from quartapp.cli.groups import audit
from quartapp.models.audit.verification import Verification


@audit.command()
@click.option(
    "--expect",
    "expected",
    multiple=True,
    metavar="HASH",
    help="Hash of a seal that must be in the chain. Can be repeated.",
)
@data_option
@with_database
async def verify(expected: tuple[str, ...]) -> None:
    """Compare the audit log with its hash chain.

    Prints one line for each entry or seal that was changed, removed or inserted, and then how many
    there are and the hash of the newest seal. Keep that hash outside of the database, and pass it
    as --expect next time: that finds a chain whose end was removed or rewritten. Exits with 1 if
    there is a fault.
    """
    for each in expected:
        if not re.fullmatch("[0-9a-fA-F]{64}", each):
            raise CommandError("--expect: a hash has 64 hexadecimal digits")
    verification = Verification({each.lower() for each in expected})
    faults = 0
    async for fault in verification.faults():
        faults += 1
        echo(f"Fault: {fault}")
    _report(verification)
    if faults:
        raise CommandError(f"the audit log has {faults:,} {'fault' if faults == 1 else 'faults'}")
    echo("No faults.")


def _report(found: Verification) -> None:
    """Print what was found."""
    echo(
        f"Entries: {found.entries:,} sealed, of which {found.erased:,} lost personal data with "
        f"deleted accounts. {found.waiting:,} wait for a seal. {found.expired:,} were deleted by "
        "age."
    )
    if found.newest is None:
        echo("Seals: none. A running server adds the first one within some seconds.")
        return
    newest = found.newest
    echo(f"Seals: {found.seals:,}, since {clock.format_short(newest['since'])}.")
    echo(f"Newest seal: {newest['_id']}, {clock.format_short(newest['at'])}")
    echo(f"  {newest['hash'].hex()}")
