"""Emails as messages that can be sent: plain text, built from the catalogue of activities."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from email.headerregistry import Address
from email.message import EmailMessage
from email.policy import SMTP, SMTPUTF8
from email.utils import format_datetime

from quartapp import clock
from quartapp.activities import Email
from quartapp.i18n import gettext as _
from quartapp.i18n.devices import device_name
from quartapp.i18n.times import format_time_and_zone
from quartapp.models.email.outbox import Mail
from quartapp.models.factors.factor import described

# Words that are stored as ISO timestamps.
MOMENTS = {"until", "when"}


def stored_words(mail: Mail) -> dict[str, str]:
    """Return the words that are stored with the email as readers see them: times in the current
    language and time zone, with the name of the zone, and devices and factors by their names."""
    words = {name: _time(word) if name in MOMENTS else word for name, word in mail.data.items()}
    if "device" in words:
        words["device"] = device_name(words["device"])
    if "factor" in words:
        words["factor"] = described(words["factor"])
    return words


def _time(stored: str) -> str:
    """Return the time as text. Earlier versions stored some times as texts."""
    try:
        return format_time_and_zone(datetime.fromisoformat(stored))
    except ValueError:
        return stored


def compose(
    mail: Mail,
    *,
    email: Email,
    to: str,
    receiver: str,
    sender: str,
    site_name: str,
    base: str,
    words: Mapping[str, str],
) -> EmailMessage:
    """Return the queued `mail` as a message, with the subject and the text of `email`.

    The words in braces are filled from those stored with the mail, and from `words`, which are
    known only now. Timestamps, in `until`, `when` and `at`, are written out in the current language
    and time zone, with the name of the zone; `device` and `factor` are named in the language too.
    The texts are in the current language. A missing `ip` or `device` is shown as unknown, and a
    missing `by` as an operator; any other missing word raises KeyError.

    `to` is the address that the text names. `receiver` is the same address as mail servers know it
    (see `validation.mail_address`). The header must name the same receiver as the envelope, so it
    is built from the two parts of the address: the library would parse a string, and decode what
    looks encoded. `sender` and `site_name` are address and name in From, and the subject starts
    with `[site_name]`. `base` is the URL of the site. Date is now; the Message-ID is the same for
    each attempt. A text that is not ASCII is sent as quoted-printable.
    """
    # The header of the longest address fits: a folded header would have the address encoded.
    message = EmailMessage((SMTP if receiver.isascii() else SMTPUTF8).clone(max_line_length=900))
    local, _at, domain = sender.rpartition("@")
    message["From"] = Address(display_name=site_name, username=local, domain=domain)
    local, _at, domain = receiver.rpartition("@")
    message["To"] = Address(username=local, domain=domain)
    message["Subject"] = f"[{site_name}] {email.subject}"
    message["Date"] = format_datetime(clock.now())
    # The same for each try, so that mail programs can recognise a duplicate.
    message["Message-ID"] = f"<{mail.id}@{sender.rpartition('@')[2]}>"
    message["Auto-Submitted"] = "auto-generated"
    missing = {"ip": _("an unknown address"), "device": _("unknown"), "by": _("An operator")}
    known = missing | stored_words(mail) | dict(words)
    text = "\n\n".join((*map(str, email.text), ""))
    text = text.format(
        base=base, to=to, site=site_name, at=format_time_and_zone(mail.created_at), **known
    )
    # Quoted-printable would break a long link into two lines.
    message.set_content(
        text.removesuffix("\n"), cte="7bit" if text.isascii() else "quoted-printable"
    )
    return message
