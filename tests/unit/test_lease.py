"""When a worker sends its heartbeats, and how late its change stream is."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from quartapp import clock
from quartapp.authority import lease
from quartapp.authority.change_stream import Change
from quartapp.authority.lease import HEARTBEAT_SECONDS, Lease


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


def test_the_lag_is_how_long_the_last_heartbeat_took_or_one_is_missing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = 100.0
    monkeypatch.setattr(clock, "monotonic", lambda: now)
    own = Lease("0", "me")
    assert own.lag is None

    def send(beat: int) -> None:
        own._note_sent(beat)

    def receive(beat: int) -> None:
        at = datetime(2030, 1, 1, tzinfo=UTC)
        own.on_change(Change("update", "workers", "me", {}, {"beat": beat, "at": at}))

    monkeypatch.setattr(clock, "synchronize", lambda at: None)
    send(1)
    now = 100.25
    receive(1)
    now = 101.0
    assert own.lag == 0.25
    for beat in range(2, 30):
        send(beat)
        now += 0.5
    assert own.lag == 14.0
    receive(28)
    assert own.lag == 1.0
    receive(29)
    assert own.lag == 0.5
