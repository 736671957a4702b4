"""Sending emails by SMTP, or storing them in a folder if SMTP_HOST is not set."""

from __future__ import annotations

import asyncio
import os
import re
from dataclasses import dataclass
from email import message_from_bytes
from email.message import EmailMessage
from email.policy import default
from pathlib import Path
from typing import Protocol

import aiosmtplib
from aiosmtplib import (
    SMTPDataError,
    SMTPException,
    SMTPNotSupported,
    SMTPRecipientsRefused,
)

from quartapp.settings import Settings

SECONDS = 20.0
FILES = 500
# Characters of the reason why an email was not sent.
LONGEST = 300


class Undelivered(Exception):
    """The email was not sent. `permanent` is true if another attempt would fail as well.

    The text is for the log.
    """

    def __init__(self, reason: str, *, permanent: bool = False) -> None:
        super().__init__(reason)
        self.permanent = permanent


class Transport(Protocol):
    async def send(self, name: str, to: str, message: EmailMessage) -> None:
        """Send the message. Raises Undelivered.

        SMTP delivers it to the address `to`, whatever its To header says. A folder stores it as
        `<name>.eml`, and does not use `to`. Neither changes the To header.
        """
        ...


def transport_for(settings: Settings) -> Transport:
    """Return the SMTP transport if SMTP_HOST is set, else a folder for files in the data folder."""
    return SmtpTransport(settings) if settings.sends_mail else MailFolder(settings.data / "mail")


class SmtpTransport:
    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    async def send(self, name: str, to: str, message: EmailMessage) -> None:
        """Send the message to `to` in a connection of its own, with TLS and login as the settings
        say. Asks for SMTPUTF8 if the address is not ASCII. Returns when the server has accepted it.

        Raises Undelivered for all errors of the server and the network, as permanent for those of
        `_is_permanent`, and after SECONDS. Its text does not contain the address.
        """
        given, login = self._settings, bool(self._settings.smtp_user)
        options = [] if to.isascii() else ["SMTPUTF8", "BODY=8BITMIME"]
        try:
            async with asyncio.timeout(SECONDS):
                await aiosmtplib.send(
                    # As bytes, because the library would fold the headers of a message object
                    # again and encode an address that is longer than a line.
                    message.as_bytes(),
                    sender=given.mail_sender,
                    recipients=[to],
                    mail_options=options,
                    hostname=given.smtp_host,
                    port=given.smtp_port_or_usual,
                    use_tls=given.smtp_tls == "tls",
                    start_tls=given.smtp_tls == "starttls",
                    username=given.smtp_user if login else None,
                    password=given.smtp_password.get_secret_value() if login else None,
                    timeout=SECONDS,
                )
        except (SMTPException, OSError, TimeoutError, ValueError) as error:
            reason = re.sub(re.escape(to), "RECIPIENT", _brief(error), flags=re.IGNORECASE)
            raise Undelivered(reason[:LONGEST], permanent=_is_permanent(error)) from None


def _is_permanent(error: Exception) -> bool:
    """Return whether a retry is useless: the server rejected all recipients or the message with a
    5xx status (RFC 5321), or lacks an extension that the message needs. False for a refused login
    and for errors of the connection."""
    if isinstance(error, SMTPRecipientsRefused):
        return all(each.code >= 500 for each in error.recipients)
    if isinstance(error, SMTPDataError):
        return error.code >= 500
    # Not SMTPAuthenticationError: a wrong SMTP_PASSWORD can be corrected, and the emails should
    # still be in the outbox then.
    return isinstance(error, SMTPNotSupported)


def _brief(error: Exception) -> str:
    """Return the type and the text of the error."""
    return f"{type(error).__name__}: {error}"


@dataclass(frozen=True)
class StoredEmail:
    """An email in the folder."""

    name: str
    sender: str
    to: str
    subject: str
    date: str
    text: str


class MailFolder:
    """Stores emails as `.eml` files with mode 0600 and keeps the newest 500."""

    def __init__(self, path: Path) -> None:
        self.path = path

    async def send(self, name: str, to: str, message: EmailMessage) -> None:
        """Write the message as it is, with its own To header, to `<name>.eml`, in a thread; then
        delete emails as `_write` does. `to` is not used.

        Raises Undelivered, not as permanent, for any OSError in the folder.
        """
        try:
            # With line feeds, as in other text files.
            content = message.as_bytes(policy=message.policy.clone(linesep="\n"))
            await asyncio.to_thread(self._write, name, content)
        except OSError as error:
            raise Undelivered(_brief(error)[:LONGEST]) from None

    def _write(self, name: str, content: bytes) -> None:
        """Create the folder (mode 0700) if it is missing, create or replace `<name>.eml` (mode
        0600) in one step, and delete all but the last FILES emails in the order of their names.

        The outbox worker names emails by the time at which they were queued, so these are the
        newest. Blocks on the disk. Raises OSError, perhaps after the file was written.
        """
        self.path.mkdir(parents=True, exist_ok=True, mode=0o700)
        draft = self.path / f".{name}.{os.getpid()}"
        draft.unlink(missing_ok=True)
        with open(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(content)
        # Readers see either the whole file or none, and a retry replaces the first attempt.
        draft.replace(self.path / f"{name}.eml")
        for old in sorted(self.path.glob("*.eml"))[:-FILES]:
            old.unlink(missing_ok=True)

    def newest(self, limit: int) -> list[StoredEmail]:
        """Return the last `limit` emails in the order of their names, last name first: the names
        begin with the time at which an email was queued.

        Those for which `read` returns None are left out, not replaced by older ones. Blocks on the
        disk, so call it in a thread.
        """
        names = [file.stem for file in sorted(self.path.glob("*.eml"), reverse=True)]
        return [stored for name in names[:limit] if (stored := self.read(name))]

    def read(self, name: str) -> StoredEmail | None:
        """Return the email of this name, with empty texts for headers that it lacks.

        None if there is no such file, or it cannot be read; if the email has several parts, is not
        a text, or has an unknown charset; and if the name has other characters than letters, digits
        and dashes. Blocks on the disk, so call it in a thread.
        """
        if not name.replace("-", "").isalnum():
            return None
        try:
            content = (self.path / f"{name}.eml").read_bytes()
        except OSError:
            return None
        message = message_from_bytes(content, policy=default)
        try:
            text = message.get_content()
        except LookupError:  # KeyError for several parts, LookupError for an unknown charset.
            return None
        if not isinstance(text, str):
            return None
        sender, to, subject, date = (
            str(message.get(header, "")) for header in ("From", "To", "Subject", "Date")
        )
        return StoredEmail(name, sender, to, subject, date, text)
