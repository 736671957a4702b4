"""What commands do with the database: open it, find users and roles, wait for the workers."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping
from pathlib import Path
from typing import Any

from quartapp import log
from quartapp.authority.barrier import PollingBarrier
from quartapp.cli.base import CommandError
from quartapp.cli.settings import find_data_folder, load_settings
from quartapp.models import Event, Role, User
from quartapp.models.statistics import hourly_count
from quartapp.startup import open_database


def run_command(
    command: Callable[..., Coroutine[Any, Any, None]], data: Path | None, words: Mapping[str, Any]
) -> None:
    """Configure the log, open the database of the data folder, prepare it, and run the command in
    an event loop of its own. Starts the embedded database for that time if none is running.

    `data` is the folder that was given, if any (see `find_data_folder`). `words` are the arguments,
    to which the settings are added if the command has the parameter `settings`. Stores what the
    command has counted, such as new accounts, at its end. Raises StartError, the driver's errors,
    CommandError if the data folder is not clear, and what the command raises.
    """
    settings = load_settings(find_data_folder(data))
    log.configure(production=settings.production)
    if "settings" in command.__annotations__:
        words = {**words, "settings": settings}

    async def main() -> None:
        async with open_database(settings):
            try:
                await command(**words)
            finally:
                await hourly_count.write()

    asyncio.run(main())


async def wait_until_enforced(event: Event | None) -> str:
    """Wait until no worker of a running server accepts the sessions that a change has ended.

    Writes a barrier mark unless one was written with the `event`, and waits until all workers have
    acknowledged it; if one does not, logs `barrier_incomplete` and waits for the length of a lease,
    after which no worker trusts its cache. Then waits up to a second for the open tabs whose
    sessions the event has ended. Returns a sentence about these tabs, which begins with a space; an
    empty string if there were none and all workers have answered. Raises the driver's errors if the
    receipts of the event cannot be read or stored.
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
