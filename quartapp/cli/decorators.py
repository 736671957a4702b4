"""Decorators of commands: the option for the data folder, and opening the database."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from functools import wraps
from pathlib import Path
from typing import Any

import click


def data_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the option --data to a command, which receives it as `data`."""
    return click.option(
        "--data",
        type=click.Path(file_okay=False, path_type=Path),
        metavar="DIR",
        help="Data folder.  [default: QUARTAPP_DATA, or else data]",
    )(command)


def with_database(command: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Turn an async command into a synchronous one that runs with the database open and prepared,
    in the data folder that `find_data_folder` chooses.

    Starts the embedded database for the time of the command if none is running. Configures the log.
    A command with the parameter `settings` receives the settings. Raises StartError if the settings
    are invalid or the database cannot be used, CommandError if it is not clear which data folder is
    meant, and what the command raises.
    """

    @wraps(command)
    def run(data: Path | None, **words: Any) -> None:
        # Importing the models is slow, and a command that prints its help does not need them.
        from quartapp.cli.database import run_command

        run_command(command, data, words)

    return run
