"""The virtual environment of the other stacks, in bench/peers/.venv."""

from __future__ import annotations

import subprocess
import sys
import venv
from pathlib import Path

FOLDER = Path(__file__).parent / ".venv"
REQUIREMENTS = Path(__file__).parent / "requirements.txt"
PYTHON = FOLDER / "bin" / "python"
# A copy of the requirements that are installed.
_INSTALLED = FOLDER / "installed.txt"


def install() -> None:
    """Create the environment and install the requirements with pip, which prints what it does.

    Does nothing if these requirements are installed already. Raises CalledProcessError.
    """
    if _INSTALLED.exists() and _INSTALLED.read_text() == REQUIREMENTS.read_text():
        return
    print(f"Installing {REQUIREMENTS} into {FOLDER} (delete the folder to undo this)", flush=True)
    venv.create(FOLDER, clear=True, with_pip=True)
    subprocess.run(
        [PYTHON, "-m", "pip", "install", "--quiet", "--no-deps", "--requirement", REQUIREMENTS],
        check=True,
        stdout=sys.stderr,
    )
    _INSTALLED.write_text(REQUIREMENTS.read_text())
