"""What the commands share: the data folder, the database, and one line for what goes wrong."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterable, Sequence
from functools import wraps
from pathlib import Path
from typing import Any

import click
from pymongo.errors import PyMongoError

from quartapp import log, open_database
from quartapp.authority.barrier import passed_from_outside
from quartapp.database import Unavailable, brief
from quartapp.models import Event, Role
from quartapp.models.references import DomainError
from quartapp.settings import Settings, StartError


class Refused(DomainError):
    """What was typed cannot be used."""


class Commands(click.Group):
    """A command that cannot do its work says so in one line, and the exit status is 1."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except (StartError, DomainError) as error:
            click.echo(f"quartapp: {error}", err=True)
        except Unavailable as error:
            click.echo(f"quartapp: the database is away ({type(error).__name__})", err=True)
        except PyMongoError as error:
            click.echo(f"quartapp: the database refuses: {brief(error)}", err=True)
        except click.exceptions.NoArgsIsHelpError:
            raise
        except click.UsageError as error:
            click.echo(f"quartapp: {error.format_message()}", err=True)
        return ctx.exit(1)


def with_data(command: Callable[..., Any]) -> Callable[..., Any]:
    """The option that every command has: where the data is. Given to the command as `data`."""
    return click.option(
        "--data",
        type=click.Path(file_okay=False, path_type=Path),
        metavar="DIR",
        help="The data folder.  [default: QUARTAPP_DATA, else data]",
    )(command)


def load(data: Path | None) -> Settings:
    """Return the settings, and warn of those in the environment whose names look misspelt."""
    settings = Settings.load() if data is None else Settings.load(data=data)
    if not settings.production:  # There it has stopped the start.
        for sentence in Settings.unknown_names():
            click.echo(f"quartapp: warning: {sentence}", err=True)
    return settings


def in_database(command: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Runs an async command with the documents bound; one that wants `settings` is given them."""
    wants_settings = "settings" in command.__annotations__

    @wraps(command)
    def run(data: Path | None, **words: Any) -> None:
        settings = load(data)
        log.configure(production=settings.production)

        async def main() -> None:
            async with open_database(settings):
                await command(**words, **({"settings": settings} if wants_settings else {}))

        asyncio.run(main())

    return run


async def settle(event: Event | None) -> str:
    """Returns when no worker of a running server goes by the old authority: see `auth.settle`."""
    passed = await passed_from_outside(event)
    return (await passed.reach(event)).sentence


async def role_named(name: str) -> Role:
    """Raises Refused."""
    found = await Role.named(name)
    if found is None:
        raise Refused(f"there is no role {name}")
    return found


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Prints columns as wide as what is in them."""
    lines = [list(head), *([str(cell) for cell in row] for row in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    for line in lines:
        cells = (cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        click.echo("  ".join(cells).rstrip())
