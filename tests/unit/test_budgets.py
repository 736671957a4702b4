"""The size of what a browser loads."""

from __future__ import annotations

from pathlib import Path

import pytest

import quartapp

STATIC = Path(quartapp.__file__).parent / "static"


@pytest.mark.parametrize("kind", ["css", "js"])
def test_all_style_sheets_and_scripts_stay_below_40_000_bytes(kind: str) -> None:
    sizes = {path.name: path.stat().st_size for path in STATIC.glob(f"**/*.{kind}")}
    assert sum(sizes.values()) < 40_000, sizes
