"""Python runs this first in every process that has its folder on PYTHONPATH: see `machines.py`."""

import os

if seconds := os.environ.get("CLOCK_AHEAD_SECONDS"):
    from datetime import UTC, datetime, timedelta

    import time_machine

    # It ticks on from there. Durations, which are measured by another clock, are as ever.
    time_machine.travel(datetime.now(UTC) + timedelta(seconds=float(seconds)), tick=True).start()

if seconds := os.environ.get("DISTRUST_SECONDS"):
    from quartapp.ws import feed

    feed.DISTRUST_SECONDS = float(seconds)
