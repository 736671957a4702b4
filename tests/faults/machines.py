"""Servers on a machine whose clock is wrong, or which lose their patience sooner."""

from __future__ import annotations

import os
from pathlib import Path

FOLDER = Path(__file__).with_name("startup")


def clock(*, minutes: float) -> dict[str, str]:
    """The environment of a server whose wall clock is ahead by so much, or behind."""
    return _first(CLOCK_AHEAD_SECONDS=str(60 * minutes))


def distrust(seconds: float) -> dict[str, str]:
    """The environment of a server that does without a database for so long, not for half a
    minute."""
    return _first(DISTRUST_SECONDS=str(seconds))


def _first(**env: str) -> dict[str, str]:
    path = os.pathsep.join(filter(None, [str(FOLDER), os.environ.get("PYTHONPATH")]))
    return {"PYTHONPATH": path, **env}
