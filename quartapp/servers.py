"""A registry of this user's running servers, by which commands find their data folders.

Each server keeps a locked file with the path of its data folder, in a folder in the temporary
directory that only this user can write to. The lock ends with the process.
"""

from __future__ import annotations

import fcntl
import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

# A launcher creates this file in the folder that it shares with its workers, to have `/readyz`
# answer 503.
DRAINING = "draining"


@contextmanager
def registered(data: Path) -> Iterator[None]:
    """Register a server that runs from the data folder, for the length of the block.

    If the registry cannot be written to, or is not private, the server is not registered.
    """
    with ExitStack() as stack:
        with suppress(OSError):
            place = _registry_folder()
            place.mkdir(mode=0o700, exist_ok=True)
            if _is_private(place):
                file = stack.enter_context(tempfile.NamedTemporaryFile(dir=place))
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                file.write(os.fsencode(data.resolve()))
                file.flush()
        yield


def running() -> list[Path]:
    """Return the absolute data folders of this user's registered servers in no particular order; an
    empty list if there is no registry, or it is not private."""
    found = []
    with suppress(OSError):
        place = _registry_folder()
        for path in sorted(place.iterdir()) if _is_private(place) else ():
            with suppress(FileNotFoundError), path.open("rb") as file:
                try:
                    fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
                except BlockingIOError:
                    found.append(Path(os.fsdecode(file.read())))
    return found


def _registry_folder() -> Path:
    """Return the folder of the registry, which may not exist."""
    return Path(tempfile.gettempdir()) / f"quartapp-{os.getuid()}"


def _is_private(place: Path) -> bool:
    """Return whether it is a folder of this user that only they can write to.

    Another user could have created it in the temporary directory. Raises OSError.
    """
    found = place.lstat()
    return (
        stat.S_ISDIR(found.st_mode)
        and found.st_uid == os.getuid()
        and not found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    )
