"""What the commands share: the data folder, the database, and one line for what goes wrong."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Coroutine, Iterable, Sequence
from functools import wraps
from io import TextIOWrapper
from pathlib import Path
from typing import Any

import click
from pymongo.errors import PyMongoError

from quartapp import log, open_database, servers, validation
from quartapp.authority.barrier import passed_from_outside
from quartapp.db.mongo import Unavailable, brief
from quartapp.models import Event, Role
from quartapp.models.base.references import DomainError
from quartapp.settings import Settings, StartError
from quartapp.validation import Invalid

LONGEST_QUOTE = 80


class Refused(DomainError):
    """What was typed cannot be used."""


def say(text: str, *, err: bool = False) -> None:
    """Print one line. Data and arguments in it cannot command the terminal, or look like lines."""
    click.echo(validation.terminal_safe(text), err=err)


def checked(check: Callable[[str], str], text: str) -> str:
    """Apply a rule of `quartapp.validation` to what was typed. Raises Refused."""
    try:
        return check(text)
    except Invalid as invalid:
        raise Refused(f"{text[:LONGEST_QUOTE]}: {invalid}") from None


class Commands(click.Group):
    """A command that cannot do its work says so in one line, and the exit status is 1."""

    def main(self, args: Sequence[str] | None = None, *rest: Any, **options: Any) -> Any:
        """The way in from the shell. Refuses arguments that are not text: bytes that are not UTF-8
        arrive as halves of characters, which cannot be stored and not be printed."""
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, TextIOWrapper):
                # What the terminal cannot show is escaped, too.
                stream.reconfigure(errors="backslashreplace")
        for number, word in enumerate(sys.argv[1:] if args is None else args, 1):
            try:
                word.encode()
            except UnicodeEncodeError:
                said = f"argument {number} is not valid UTF-8: {word[:LONGEST_QUOTE]}"
                say(f"quartapp: {said}", err=True)
                sys.exit(1)
        return super().main(args, *rest, **options)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except (StartError, DomainError) as error:
            _complain(ctx, str(error))
        except Unavailable as error:
            _complain(ctx, f"the database is away ({type(error).__name__})")
        except PyMongoError as error:
            _complain(ctx, f"the database refuses: {brief(error)}")
        except click.exceptions.NoArgsIsHelpError:
            raise
        except click.UsageError as error:
            _complain(ctx, error.format_message())
        return ctx.exit(1)


def _complain(ctx: click.Context, reason: str) -> None:
    """Print one line on standard error; a log line for a server that cannot start in production."""
    if ctx.invoked_subcommand == "serve" and Settings.wants_production():
        log.configure(production=True)
        log.log.error("start_failed", reason=reason)
    else:
        say(f"quartapp: {reason}", err=True)


def with_data(command: Callable[..., Any]) -> Callable[..., Any]:
    """The option that every command has: where the data is. Given to the command as `data`."""
    return click.option(
        "--data",
        type=click.Path(file_okay=False, path_type=Path),
        metavar="DIR",
        help="The data folder.  [default: QUARTAPP_DATA, else data]",
    )(command)


def find_data(data: Path | None) -> Path | None:
    """Return the data folder that a command was given, or else that of the server that runs.

    None means the one of the settings: they name one, or no other server runs, or the default one
    has a database. Raises Refused where several servers could be meant.
    """
    if data is not None or Settings.raw("QUARTAPP_DATA") or Settings.raw("MONGODB_URI"):
        return data
    default = Path("data").resolve()
    others = [each for each in servers.running() if each != default]
    if not others or default in servers.running():
        return None
    if (default / "mongodb").exists():
        say(f"quartapp: using {default}; a server runs from {others[0]}", err=True)
        return None
    if len(others) > 1:
        raise Refused(f"servers run from {', '.join(map(str, others))}: name one by --data")
    say(f"quartapp: using {others[0]}, from where a server runs", err=True)
    return others[0]


def load(data: Path | None) -> Settings:
    """Return the settings, and warn of those in the environment whose names look misspelt."""
    settings = Settings.load() if data is None else Settings.load(data=data)
    if not settings.production:  # There it has stopped the start.
        for sentence in Settings.unknown_names():
            say(f"quartapp: warning: {sentence}", err=True)
    return settings


def in_database(command: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Runs an async command with the documents bound; one that wants `settings` is given them."""
    wants_settings = "settings" in command.__annotations__

    @wraps(command)
    def run(data: Path | None, **words: Any) -> None:
        settings = load(find_data(data))
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
    lines = [list(head), *([validation.terminal_safe(str(cell)) for cell in row] for row in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    for line in lines:
        cells = (cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        say("  ".join(cells).rstrip())
