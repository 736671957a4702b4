"""What a worker owns, and what importing the package costs."""

import subprocess
import sys
from dataclasses import fields
from typing import get_type_hints

from quartapp.runtime import CHANGE_LISTENERS, START_ORDER, Runtime


def test_importing_quartapp_imports_no_framework() -> None:
    program = "import sys, quartapp; quartapp.create_app; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)
    imported = {name.split(".")[0] for name in done.stdout.decode().split()}
    assert "quartapp" in imported
    assert imported.isdisjoint({"quart", "beanie", "motor", "pymongo", "pydantic", "wtforms"})


def test_change_listeners_are_all_parts_that_listen_each_once() -> None:
    types = get_type_hints(Runtime)
    listening = {field.name for field in fields(Runtime) if hasattr(types[field.name], "on_change")}
    assert sorted(name for name, _ in CHANGE_LISTENERS) == sorted(listening)


def test_barrier_hears_a_change_after_what_it_acknowledges() -> None:
    order = [name for name, _ in CHANGE_LISTENERS]
    assert {"principal_cache", "lease", "membership", "dispatcher", "receipts"} == set(
        order[: order.index("barrier")]
    )


def test_start_order_has_each_part_that_starts_and_stops() -> None:
    types = get_type_hints(Runtime)
    parts = {
        field.name
        for field in fields(Runtime)
        if hasattr(types[field.name], "start") and hasattr(types[field.name], "stop")
    }
    # The dispatcher starts after all of them, with the stream.
    assert sorted([*(name for name, _ in START_ORDER), "dispatcher"]) == sorted(parts)
