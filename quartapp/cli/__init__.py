"""The `quartapp` command: running the server, and administration from a terminal.

Each command works with and without a running server. The workers of a running server learn of
changes from the change stream of the database, as for changes made on pages. A command that fails
prints one line on standard error and exits with 1: see `CommandGroup`.

A command imports what it needs when it runs: the models alone take half a second.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from quartapp.cli import groups
from quartapp.cli.base import CommandGroup, echo
from quartapp.cli.decorators import data_option, with_database

if TYPE_CHECKING:
    from quartapp.settings import Settings


@click.group(cls=CommandGroup, context_settings={"show_default": True})
@click.version_option(package_name="quartapp")
def main() -> None:
    """Manage users, roles and sessions. Changes take effect immediately on all open pages."""


@main.command()
@click.option("--host", default="127.0.0.1", help="Address to listen on.")
@click.option(
    "--port",
    default=5000,
    type=click.IntRange(0, 65535),
    help="Port to listen on; 0 selects a free port.",
)
@click.option(
    "--workers", default=2, type=click.IntRange(1, 64), help="Number of worker processes."
)
@data_option
def serve(host: str, port: int, workers: int, data: Path | None) -> None:
    """Run the server until it is interrupted."""
    from quartapp.cli.settings import load_settings
    from quartapp.serving import launcher

    sys.exit(launcher.serve(load_settings(data), host=host, port=port, workers=workers))


@main.command()
@click.option(
    "--drop-indexes",
    is_flag=True,
    help="Also drop indexes that only earlier versions use. Stop their workers first.",
)
@data_option
@with_database
async def migrate(drop_indexes: bool) -> None:
    """Prepare the database for this version. Run it before starting a new version.

    Creates missing indexes and built-in roles. Corrects the canonical forms of usernames and email
    addresses, and lists accounts that share a username or an address.
    """
    from quartapp.models import obsolete_indexes
    from quartapp.models.accounts import canonical

    for conflict in await canonical.correct_all():
        echo(f"Conflict: {conflict}")
    for index in await obsolete_indexes.drop_obsolete() if drop_indexes else ():
        echo(f"Dropped the index {index}.")
    echo("The database is ready.")


@main.command("demo")
@click.option(
    "--people",
    type=click.IntRange(0, 1_000_000),
    default=0,
    metavar="N",
    help="Create this many further users with made-up names.",
)
@data_option
@with_database
async def create_sample_data(settings: Settings, people: int) -> None:
    """Fill an empty database with sample data.

    Creates users, roles, posts and comments, and prints how to sign in: all users have one new
    password. Fails if the database has a user.
    """
    from quartapp.cli import demo

    await demo.fill(settings, people=people)


main.add_command(groups.user)
main.add_command(groups.role)
main.add_command(groups.audit)
