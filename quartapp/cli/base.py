"""What all commands share: the data folder, the database connection, and error messages."""

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

from quartapp import log, servers, validation
from quartapp.authority.barrier import PollingBarrier
from quartapp.db.mongo import Unavailable, error_summary
from quartapp.models import Event, Role, User
from quartapp.models.base.references import DomainError
from quartapp.settings import Settings, StartError
from quartapp.startup import open_database
from quartapp.validation import Invalid

LONGEST_QUOTE = 80


class CommandError(DomainError):
    """A command cannot do its work. The text is the line that is printed on standard error."""


def echo(text: str, *, err: bool = False) -> None:
    """Print one line, with control characters and line breaks escaped."""
    click.echo(validation.terminal_safe(text), err=err)


def validated(check: Callable[[str], str], text: str) -> str:
    """Return `check(text)`, where `check` is a function of `quartapp.validation`.

    Raises CommandError with the text and the reason if it is invalid.
    """
    try:
        return check(text)
    except Invalid as invalid:
        raise CommandError(f"{text[:LONGEST_QUOTE]}: {invalid}") from None


class CommandGroup(click.Group):
    """A group whose commands report an error in one line on standard error and exit with 1."""

    def main(self, args: Sequence[str] | None = None, *rest: Any, **options: Any) -> Any:
        """Run the command line. Exits with 1 if an argument is not valid UTF-8.

        Python represents such bytes as surrogates, which can be neither stored nor printed.
        """
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, TextIOWrapper):
                # Escape characters that the terminal's encoding lacks.
                stream.reconfigure(errors="backslashreplace")
        for number, word in enumerate(sys.argv[1:] if args is None else args, 1):
            try:
                word.encode()
            except UnicodeEncodeError:
                message = f"argument {number} is not valid UTF-8: {word[:LONGEST_QUOTE]}"
                echo(f"quartapp: {message}", err=True)
                sys.exit(1)
        return super().main(args, *rest, **options)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command. Errors that are expected (StartError, DomainError, errors of the
        database and of usage) are printed in one line, without a traceback, and exit with 1."""
        try:
            return super().invoke(ctx)
        except (StartError, DomainError) as error:
            _report(ctx, str(error))
        except Unavailable as error:
            _report(ctx, f"the database is unavailable ({type(error).__name__})")
        except PyMongoError as error:
            _report(ctx, f"the database rejected the operation: {error_summary(error)}")
        except click.exceptions.NoArgsIsHelpError:
            raise
        except click.UsageError as error:
            _report(ctx, error.format_message())
        return ctx.exit(1)


def _report(ctx: click.Context, reason: str) -> None:
    """Print the reason on standard error. In production, `serve` logs it as JSON instead."""
    if ctx.invoked_subcommand == "serve" and Settings.wants_production():
        log.configure(production=True)
        log.log.error("start_failed", reason=reason)
    else:
        echo(f"quartapp: {reason}", err=True)


def data_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the option --data to a command, which receives it as `data`."""
    return click.option(
        "--data",
        type=click.Path(file_okay=False, path_type=Path),
        metavar="DIR",
        help="Data folder.  [default: QUARTAPP_DATA, or else data]",
    )(command)


def find_data_folder(data: Path | None) -> Path | None:
    """Return the data folder for a command: `data` if given, else that of the running server.

    Returns None if the folder of the settings should be used: they name one, no other server is
    running, the default folder's own server is running, or the default folder has a database.
    Prints a line on standard error if a server runs in another folder than the one that is used, or
    if its folder is used. Raises CommandError if several servers are running elsewhere.
    """
    if data is not None or Settings.raw("QUARTAPP_DATA") or Settings.raw("MONGODB_URI"):
        return data
    default = Path("data").resolve()
    others = [each for each in servers.running() if each != default]
    if not others or default in servers.running():
        return None
    if (default / "mongodb").exists():
        echo(f"quartapp: using {default}; a server is running with {others[0]}", err=True)
        return None
    if len(others) > 1:
        folders = ", ".join(map(str, others))
        raise CommandError(f"several servers are running: choose one with --data ({folders})")
    echo(f"quartapp: using {others[0]}, the data folder of the running server", err=True)
    return others[0]


def load_settings(data: Path | None) -> Settings:
    """Return the settings, with `data` as the data folder if given.

    In development, prints a warning for each misspelt name in the environment; in production,
    such a name raises StartError, as invalid values always do.
    """
    settings = Settings.load() if data is None else Settings.load(data=data)
    if not settings.production:
        for sentence in Settings.unknown_names():
            echo(f"quartapp: warning: {sentence}", err=True)
    return settings


def with_database(command: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Turn an async command into a synchronous one that runs with the database open and prepared,
    in the data folder that `find_data_folder` chooses.

    Starts the embedded database for the time of the command if none is running. Configures the log.
    A command with the parameter `settings` receives the settings. Raises StartError if the settings
    are invalid or the database cannot be used.
    """
    wants_settings = "settings" in command.__annotations__

    @wraps(command)
    def run(data: Path | None, **words: Any) -> None:
        settings = load_settings(find_data_folder(data))
        log.configure(production=settings.production)

        async def main() -> None:
            async with open_database(settings):
                await command(**words, **({"settings": settings} if wants_settings else {}))

        asyncio.run(main())

    return run


async def wait_until_enforced(event: Event | None) -> str:
    """Wait until no worker of a running server accepts the sessions that a change has ended.

    Writes a barrier mark unless one was written with the `event`, and waits until all workers
    have acknowledged it; if one does not, for the length of a lease, after which no worker trusts
    its cache. Returns a sentence on the open tabs that the event ended, which begins with a space;
    an empty string if there were none.
    """
    result = await PollingBarrier().wait(event)
    return (await result.reach(event)).sentence


async def find_user(username: str) -> User:
    """Return the user of this name. Raises CommandError if there is none."""
    found = await User.by_username(username)
    if found is None:
        raise CommandError(f"there is no user {username}")
    return found


async def find_role(name: str) -> Role:
    """Return the role of this name. Raises CommandError if there is none."""
    found = await Role.named(name)
    if found is None:
        raise CommandError(f"there is no role {name}")
    return found


def print_table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print the head and the rows in columns that are as wide as their longest cell. Control
    characters in cells are escaped."""
    lines = [list(head), *([validation.terminal_safe(str(cell)) for cell in row] for row in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    for line in lines:
        cells = (cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        echo("  ".join(cells).rstrip())
