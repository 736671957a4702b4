"""The messages of the live protocol, in both directions."""

from __future__ import annotations

import json

import pytest

from quartapp.ws import protocol


@pytest.mark.parametrize(
    ("frame", "acknowledged"),
    [
        ('{"type":"pong"}', None),
        ('{"type":"pong","at":"2026-01-01T00:00:00.000+00:00"}', None),
        ('{"type":"pong","id":"m1"}', None),
        ('{"type":"ack","id":"m1"}', "m1"),
        ('{"type":"ack","id":"m1","more":[1]}', "m1"),
        ('{"type":"pong","at":"' + "x" * (4096 - 23) + '"}', None),
    ],
)
def test_valid_client_messages_are_accepted(frame: str, acknowledged: str | None) -> None:
    assert protocol.parse_client_message(frame) == acknowledged


@pytest.mark.parametrize(
    "frame",
    [
        None,
        b"",
        b'{"type":"pong"}',
        "",
        "pong",
        "[]",
        "{}",
        "NaN",
        "1" * 4096,
        "[" * 4096,
        '{"type":null}',
        '{"type":"ack"}',
        '{"type":"ack","id":1}',
        '{"type":"ack","id":null}',
        '{"type":"ping"}',
        '{"type":"session.ended"}',
        '{"type":"pong","at":"' + "x" * (4096 - 22) + '"}',
        '{"type":"pong","at":"' + "ü" * 2048 + '"}',
        '{"type":"pong","at":"\ud800"}' + " " * 4096,
    ],
    ids=lambda frame: repr(frame)[:30],
)
def test_other_client_messages_are_refused(frame: str | bytes | None) -> None:
    with pytest.raises(protocol.InvalidMessage):
        protocol.parse_client_message(frame)


def test_a_message_is_one_json_object_that_begins_with_its_type() -> None:
    message = protocol.PermissionsChanged(
        id="m1", version=2, roles=["member"], permissions=["é"], added=[], removed=["x"], by=None
    )
    frame = protocol.encode(message)
    assert frame.startswith('{"type":"permissions.changed",')
    assert json.loads(frame) == {
        "type": "permissions.changed",
        "id": "m1",
        "version": 2,
        "roles": ["member"],
        "permissions": ["é"],
        "added": [],
        "removed": ["x"],
        "by": None,
    }


def test_user_text_in_a_message_is_escaped() -> None:
    text = '"}\n{"type":"session.ended"\u2028\x00'
    frame = protocol.encode(protocol.NoticeSent(id="1", kind="welcome", text=text, at="now"))
    assert "\n" not in frame
    assert json.loads(frame)["text"] == text
