"""The settings of a command: those of the environment, with the data folder that it should use."""

from __future__ import annotations

from pathlib import Path

from quartapp import servers
from quartapp.cli.base import CommandError, echo
from quartapp.settings import Settings


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
