"""`quartapp audit`: verify and export the audit log."""

from __future__ import annotations

import re
import sys
from contextlib import nullcontext
from datetime import UTC, datetime
from pathlib import Path

import click
from beanie import PydanticObjectId

from quartapp import clock
from quartapp.cli.base import CommandError, echo
from quartapp.cli.decorators import data_option, with_database
from quartapp.cli.groups import audit
from quartapp.forms.audit import parse_moment
from quartapp.models.audit.export import Format, export, record_export
from quartapp.models.audit.search import EventFilter, find_person
from quartapp.models.audit.verification import Verification
from quartapp.models.base.actor import SYSTEM

PROGRESS_EVERY = 5.0


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
    progress = Progress()
    verification = Verification(
        {each.lower() for each in expected}, on_progress=lambda: progress.show(verification)
    )
    faults = 0
    async for fault in verification.faults():
        faults += 1
        echo(f"Fault: {fault}")
    _report(verification)
    if faults:
        raise CommandError(f"the audit log has {faults:,} {'fault' if faults == 1 else 'faults'}")
    echo("No faults.")


class Progress:
    """Prints how much is compared, to standard error if that is a terminal, at most every
    PROGRESS_EVERY seconds."""

    def __init__(self) -> None:
        self._shown_at = clock.monotonic()

    def show(self, found: Verification) -> None:
        """Print the numbers of the verification if it is time."""
        if sys.stderr.isatty() and clock.monotonic() - self._shown_at >= PROGRESS_EVERY:
            self._shown_at = clock.monotonic()
            echo(f"Compared so far: {found.entries:,} entries, {found.seals:,} seals.", err=True)


def _report(found: Verification) -> None:
    """Print how many entries and seals there are, and the number, time and hash of the newest
    seal."""
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


@audit.command("export")
@click.option(
    "--format", "name", type=click.Choice(["jsonl", "csv"]), default="jsonl", help="File format."
)
@click.option("--person", default="", help="Username, or the id of a deleted user.")
@click.option("--kind", default="", help="Name of an activity, such as role.granted.")
@click.option("--ip", default="", help="IP address.")
@click.option("--since", default="", help="Date or time in ISO 8601; UTC without an offset.")
@click.option("--until", default="", help="Date or time in ISO 8601; UTC without an offset.")
@click.option("--q", "text", default="", help="Text in the details.")
@click.option(
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    help="File to write, which must not exist.  [default: standard output]",
)
@data_option
@with_database
async def export_log(
    name: str,
    person: str,
    kind: str,
    ip: str,
    since: str,
    until: str,
    text: str,
    output: Path | None,
) -> None:
    """Write entries of the audit log as JSON lines or CSV, newest first.

    Records the export in the audit log first. Reads and writes in batches. Fails if the file of
    --output exists.
    """
    wanted = await EventFilter.about(
        await _person(person) if person else None,
        kind=kind,
        ip=ip,
        text=text,
        since=_moment("--since", since),
        until=_moment("--until", until, end=True),
    )
    try:
        # Neither follows a link nor replaces a file.
        target = output.open("x", encoding="utf-8", newline="") if output else None
    except OSError as error:
        raise CommandError(f"--output: {error.strerror}") from None
    with target or nullcontext():
        await record_export(wanted, Format(name), by=SYSTEM)
        async for piece in export(wanted, Format(name)):
            if target:
                target.write(piece)
            else:
                click.echo(piece, nl=False)


async def _person(name: str) -> PydanticObjectId:
    """Return the id of the user of this name, or the id that the text itself is, such as that of a
    deleted user. Raises CommandError if it is neither."""
    found = await find_person(name)
    if found is None:
        raise CommandError(f"there is no user {name}")
    return found


def _moment(option: str, text: str, *, end: bool = False) -> datetime | None:
    """Return the time that `parse_moment` reads, or None for an empty text. Raises CommandError
    with the name of the option."""
    try:
        return parse_moment(text, UTC, end=end) if text else None
    except ValueError:
        raise CommandError(f"{option}: write a time such as 2026-03-01T14:05Z") from None
