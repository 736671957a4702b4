"""When a worker sends its heartbeats."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from quartapp import clock
from quartapp.authority import lease
from quartapp.authority.lease import HEARTBEAT_SECONDS


@pytest.mark.parametrize("share", [0, 0.01, 0.4, 0.74, 0.76, 0.99])
def test_all_workers_send_their_heartbeats_at_the_same_times(
    share: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = datetime(2030, 1, 1, tzinfo=UTC) + timedelta(seconds=share * HEARTBEAT_SECONDS)
    monkeypatch.setattr(clock, "now", lambda: now)
    seconds = lease._seconds_to_next_beat()
    beats = (now.timestamp() + seconds) / HEARTBEAT_SECONDS
    assert abs(beats - round(beats)) < 1e-5
    assert HEARTBEAT_SECONDS / 4 < seconds <= 1.25 * HEARTBEAT_SECONDS
