"""The data folders from which servers of this user run, so that commands find them."""

from __future__ import annotations

import fcntl
import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path


@contextmanager
def announced(data: Path) -> Iterator[None]:
    """Keep a locked file with the path of the data folder; the lock ends with the process.

    Without a place for such files, nothing is announced.
    """
    with ExitStack() as stack:
        with suppress(OSError):
            place = _place()
            place.mkdir(mode=0o700, exist_ok=True)
            if _is_ours(place):
                file = stack.enter_context(tempfile.NamedTemporaryFile(dir=place))
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                file.write(os.fsencode(data.resolve()))
                file.flush()
        yield


def running() -> list[Path]:
    """Return the data folders of the servers that run."""
    found = []
    with suppress(OSError):
        place = _place()
        for path in sorted(place.iterdir()) if _is_ours(place) else ():
            with suppress(FileNotFoundError), path.open("rb") as file:
                try:
                    fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
                except BlockingIOError:
                    found.append(Path(os.fsdecode(file.read())))
    return found


def _place() -> Path:
    return Path(tempfile.gettempdir()) / f"quartapp-{os.getuid()}"


def _is_ours(place: Path) -> bool:
    """Others may create folders beside it, with what they would like us to believe."""
    found = place.lstat()
    return (
        stat.S_ISDIR(found.st_mode)
        and found.st_uid == os.getuid()
        and not found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    )
