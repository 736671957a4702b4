"""docs/settings.md is written from the settings classes, and the README names existing settings."""

from __future__ import annotations

import re
from pathlib import Path

from quartapp.settings import Settings, reference
from quartapp.settings.fields import GROUPS
from quartapp.settings.sources import name_of

ROOT = Path(__file__).parents[2]
COMMAND = "python -m quartapp.settings.reference docs/settings.md"


def test_the_settings_page_is_up_to_date() -> None:
    page = (ROOT / "docs/settings.md").read_text("utf-8")
    assert page == reference.render(), f"run {COMMAND}"


def test_each_setting_belongs_to_one_group_and_is_described() -> None:
    grouped = [name for group in GROUPS for name in group.model_fields]
    assert sorted(grouped) == sorted(Settings.model_fields)
    described = {name for group in GROUPS for name in reference.descriptions(group)}
    assert described == set(Settings.model_fields)


def test_the_readme_names_only_existing_settings() -> None:
    table = (ROOT / "README.md").read_text("utf-8").partition("## Settings\n")[2]
    rows = [line for line in table.partition("\n## ")[0].splitlines() if line.startswith("| `")]
    named = {name for row in rows for name in re.findall(r"`([A-Z_]+)`", row.split("|")[1])}
    assert named
    assert named - {name_of(name, field) for name, field in Settings.model_fields.items()} == set()
