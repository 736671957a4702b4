"""The `quartapp` command: serving, and what an operator does from a terminal.

Each command works alone and beside a running server. What it changes is noticed there through
the database, as every other change is.
"""

from __future__ import annotations

import sys
from pathlib import Path

import click

from quartapp.cli import demo, roles, users
from quartapp.cli.base import Commands, in_database, load, say, with_data
from quartapp.models.accounts import canonical


@click.group(cls=Commands, context_settings={"show_default": True})
@click.version_option(package_name="quartapp")
def main() -> None:
    """User management in which authority is live."""


@main.command()
@click.option("--host", default="127.0.0.1", help="The address to listen on.")
@click.option("--port", default=5000, type=click.IntRange(0, 65535), help="0 takes a free one.")
@click.option("--workers", default=2, type=click.IntRange(1, 64), help="Processes that serve.")
@with_data
def serve(host: str, port: int, workers: int, data: Path | None) -> None:
    """Serve until interrupted."""
    # hypercorn is slow to import, and no other command needs it.
    from quartapp.serving import launcher

    sys.exit(launcher.serve(load(data), host=host, port=port, workers=workers))


@main.command()
@with_data
@in_database
async def migrate() -> None:
    """Build the indexes and built-in roles that are missing: before a new version serves.

    Also checks the canonical forms of all usernames and addresses, and names those accounts that
    have one address between them.
    """
    for conflict in await canonical.set_right():
        say(f"Conflict: {conflict}")
    say("The database is ready.")


main.add_command(users.user)
main.add_command(roles.role)
main.add_command(demo.demo)
