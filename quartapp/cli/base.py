"""What all commands share: groups, error messages and tables.

This module is imported for every command, also for `--help`, so it imports only what that needs.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Sequence
from importlib import import_module
from io import TextIOWrapper
from typing import Any, TypeVar

import click

from quartapp import validation
from quartapp.validation import Invalid

LONGEST_QUOTE = 80
T = TypeVar("T")


class CommandError(Exception):
    """A command cannot do its work. The text is the line that is printed on standard error."""


def echo(text: str, *, err: bool = False) -> None:
    """Print one line, with control characters and line breaks escaped."""
    click.echo(validation.terminal_safe(text), err=err)


def validated(check: Callable[[str], T], text: str) -> T:
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
        """Run the command line, and exit with its status. Both output streams escape the characters
        that their encoding lacks.

        Runs nothing, but prints one line on standard error and exits with 1, if an argument is not
        valid UTF-8: Python represents such bytes as surrogates, which can be neither stored nor
        printed.
        """
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, TextIOWrapper):
                stream.reconfigure(errors="backslashreplace")
        for number, word in enumerate(sys.argv[1:] if args is None else args, 1):
            try:
                word.encode()
            except UnicodeEncodeError:
                message = f"argument {number} is not valid UTF-8: {word[:LONGEST_QUOTE]}"
                echo(f"quartapp: {message}", err=True)
                sys.exit(1)
        return super().main(args, *rest, **options)

    def make_context(self, *args: Any, **options: Any) -> click.Context:
        """Parse the options of the group. Prints an error of usage in one line and exits with 1.

        Without any argument, click prints the help of the group and exits with 2.
        """
        try:
            return super().make_context(*args, **options)
        except click.exceptions.NoArgsIsHelpError:
            raise
        except click.UsageError as error:
            echo(f"quartapp: {error.format_message()}", err=True)
            sys.exit(1)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command. Errors that are expected (CommandError, StartError, DomainError, errors
        of the database and of usage) are reported in one line, without a traceback, and exit with
        1. Other exceptions are raised.
        """
        try:
            return super().invoke(ctx)
        except CommandError as error:
            _report(ctx, str(error))
        except click.exceptions.NoArgsIsHelpError:
            raise
        except click.UsageError as error:
            _report(ctx, error.format_message())
        except (click.ClickException, click.exceptions.Exit, click.Abort):
            raise
        except Exception as error:
            reason = _expected_reason(error)
            if reason is None:
                raise
            _report(ctx, reason)
        return ctx.exit(1)


class LazyGroup(CommandGroup):
    """A group whose commands are declared in a module of their own.

    The module is imported when a command of the group is wanted or all are listed, so that it does
    not slow down other commands. It adds its commands to the group.
    """

    def __init__(self, name: str, *, module: str, **options: Any) -> None:
        super().__init__(name, **options)
        self._module = module

    def list_commands(self, ctx: click.Context) -> list[str]:
        import_module(self._module)
        return super().list_commands(ctx)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        import_module(self._module)
        return super().get_command(ctx, cmd_name)


def _expected_reason(error: Exception) -> str | None:
    """Return the line for an expected error of settings, models or database, or None.

    Their classes are imported only when there is such an error.
    """
    from quartapp.settings import StartError

    if isinstance(error, StartError):
        return str(error)
    from quartapp.startup import expected_reason

    return expected_reason(error)


def _report(ctx: click.Context, reason: str) -> None:
    """Print "quartapp: " and the reason on standard error. In production, `serve` configures the
    log and logs the error `start_failed` as JSON instead. Does not exit."""
    if ctx.invoked_subcommand == "serve":
        from quartapp import log
        from quartapp.settings import Settings

        if Settings.wants_production():
            log.configure(production=True)
            log.log.error("start_failed", reason=reason)
            return
    echo(f"quartapp: {reason}", err=True)


def print_table(
    head: Sequence[str], rows: Iterable[Sequence[object]], *, at_least: Sequence[int] = ()
) -> list[int]:
    """Print the head and the rows in columns that are as wide as their longest cell, and return the
    widths. Control characters in cells are escaped. All rows need as many cells as the head.

    To continue a table, pass an empty head, and the widths returned before as `at_least`.
    """
    cells = [[validation.terminal_safe(str(cell)) for cell in row] for row in rows]
    lines = [list(head), *cells] if head else cells
    columns = len(head) or len(at_least)
    least = at_least or [0] * columns
    widths = [max([least[i], *(len(line[i]) for line in lines)]) for i in range(columns)]
    for line in lines:
        padded = (cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        echo("  ".join(padded).rstrip())
    return widths
