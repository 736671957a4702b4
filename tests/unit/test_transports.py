"""The folder in which emails are stored if SMTP_HOST is not set."""

from __future__ import annotations

from email.message import EmailMessage
from pathlib import Path

import pytest

from quartapp.email.transports import MailFolder


def message(text: str) -> EmailMessage:
    written = EmailMessage()
    written["Subject"] = "Hello"
    written.set_content(text)
    return written


def with_attachment() -> bytes:
    written = message("one of two parts")
    written.add_attachment("the other part")
    return written.as_bytes()


@pytest.mark.parametrize(
    "content",
    [
        with_attachment(),
        b"Content-Type: text/plain; charset=unknown\n\n\xff",
        b"Content-Type: image/png\nContent-Transfer-Encoding: base64\n\niVBORw0KGgo=",
    ],
    ids=["several parts", "unknown charset", "image"],
)
async def test_an_email_without_readable_text_is_left_out(tmp_path: Path, content: bytes) -> None:
    folder = MailFolder(tmp_path)
    await folder.send("1", "ada@example.org", message("first"))
    await folder.send("3", "ada@example.org", message("last"))
    (tmp_path / "2.eml").write_bytes(content)
    assert folder.read("2") is None
    assert [stored.text for stored in folder.newest(3)] == ["last\n", "first\n"]
