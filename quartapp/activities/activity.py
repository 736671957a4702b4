"""The catalogue of activities: each thing that can happen to an account, described once.

An entry holds the name in the audit log, the notification, the email, the sentence of the activity
page, and whether it ends sessions. Its texts are lazy (see quartapp.i18n), so that each reader gets
them in their language; a plain string is the same in all languages. The entries are in the other
modules of this package; `models.audit.recording` writes them. Extensions add entries with
`register` (docs/extending.md).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import Enum
from string import Formatter
from typing import Any, Literal

from quartapp.activities.log_sentences import AUTOMATIC_SENTENCES, LOG_SENTENCES, LogSentence
from quartapp.i18n import lazy_gettext as _
from quartapp.i18n.times import format_time

# Shares of the mail budget of a mailbox: see models.email.mailbox.
Lane = Literal["reset", "verification", "invitation", "address", "notifications"]
# Words in the text of an email that are known only when it is sent: see jobs.outbox_worker.
AT_SENDING = frozenset(
    {
        *("account", "at", "base", "code", "inviter", "notification", "roles", "site", "to"),
        *("token", "username"),
    }
)

# Stored in the place of the name, the address or the post of a deleted user. Each reader gets it in
# their language.
DELETED_USER = "A deleted user"
THEIR_ADDRESS = "their address"
A_POST = "a post of a deleted user"
_PLACEHOLDERS = {
    DELETED_USER: _("A deleted user"),
    THEIR_ADDRESS: _("their address"),
    A_POST: _("a post of a deleted user"),
}


class Notified(Enum):
    """Who gets the notification of an activity."""

    USER = "the user whose account it is about"
    USER_UNLESS_ACTOR = "the user, if somebody else did it"
    INVITER = "the user who sent the invitation"
    HOLDERS = "all users who hold the role"
    ADMINISTRATORS = "some users who can grant roles"


@dataclass(frozen=True, kw_only=True)
class Notification:
    """A notification in open pages and on the notifications page.

    `kind` is the stored name. The words in braces are filled from what is stored with it: `{by}` is
    the name of the actor. `also_stores` names further words that are stored without being shown.
    `email_group` is the name of a group in EMAIL_GROUPS: users can choose to get the notifications
    of a group by email as well.
    """

    kind: str
    text: str
    also_stores: tuple[str, ...] = ()
    email_group: str | None = None

    def words(self) -> tuple[str, ...]:
        """Return the names of the words in the text that must be stored with a notification."""
        return tuple(_placeholders(self.text))

    def render(self, data: Mapping[str, Any]) -> str:
        """Return the sentence in the current language. A word that was not stored is left out; a
        missing actor is "An operator"."""
        words = {**data, "by": data.get("by") or _("An operator")}
        return self.text.format_map(_Words(readable(words)))


@dataclass(frozen=True, kw_only=True)
class Email:
    """An email: `kind` is the stored name, `text` has one string for each paragraph.

    Words in braces that are not in AT_SENDING are stored when the email is queued. `{ip}` and
    `{by}` are those of the actor. `also_stores` names further words that the job that sends it
    needs. `lane` is the share of the mail budget that it counts against.
    """

    kind: str
    subject: str
    text: tuple[str, ...]
    lane: Lane = "notifications"
    also_stores: tuple[str, ...] = ()

    def words(self) -> tuple[str, ...]:
        """Return the names of the words that must be stored with a queued email."""
        named = (name for line in self.text for name in _placeholders(line))
        return tuple(name for name in named if name not in AT_SENDING)


@dataclass(frozen=True, kw_only=True)
class Activity:
    """One thing that can happen to an account.

    `audit` is its name in the audit log; None keeps it out of the audit log. `sentence` is shown on
    the user's activity page, filled from the details of the audit event; None leaves it out there.
    If it is `reportable`, the page offers "This wasn't me" beside what the user did themselves.

    `log` has its name and sentence in the audit log. The activities of this application have them
    in `log_sentences`.

    `email` goes to the user's verified address; `email_by_others` replaces it if somebody else than
    the user did it.

    `automatic` means that no person did it: for example, an account expired. Such an activity can
    share the audit name of one that a person does.

    `ends_sessions` means that a transaction that records it must insert a barrier mark:
    `authorized_transaction` raises RuntimeError if it does not.
    """

    audit: str | None = None
    notification: Notification | None = None
    notified: Notified = Notified.USER
    email: Email | None = None
    email_by_others: Email | None = None
    sentence: str | None = None
    log: LogSentence | None = None
    reportable: bool = False
    automatic: bool = False
    ends_sessions: bool = False

    @property
    def audit_name(self) -> str:
        """The name in the audit log. Raises TypeError for an activity that is not in it."""
        if self.audit is None:
            raise TypeError("this activity has no audit name, so it cannot be recorded")
        return self.audit

    @property
    def notification_kind(self) -> str:
        """The stored name of its notification. Raises TypeError if it has none."""
        if self.notification is None:
            raise TypeError(f"the activity {self.audit} has no notification")
        return self.notification.kind

    @property
    def own_email(self) -> Email:
        """The email. Raises TypeError if it has none."""
        if self.email is None:
            raise TypeError(f"the activity {self.audit} has no email")
        return self.email

    @property
    def email_kind(self) -> str:
        """The stored name of its email. Raises TypeError if it has none."""
        return self.own_email.kind

    def describe(self, details: Mapping[str, Any]) -> str:
        """Return the sentence for the activity page in the current language, or an empty text if it
        has none. A word that is not in the details is left out."""
        return (self.sentence or "").format_map(_Words(readable(details)))


@dataclass
class Catalogue:
    """The registered activities, found by the names that the database stores."""

    audited: dict[tuple[str, bool], Activity] = field(default_factory=dict)
    notifications: dict[str, Notification] = field(default_factory=dict)
    emails: dict[str, Email] = field(default_factory=dict)

    def register(self, activity: Activity) -> Activity:
        """Add the activity, and return it.

        Raises ValueError, without adding anything, if the audit name is registered already, or if
        the kind of its notification or email is registered with another text. Two activities may
        share a notification or an email.
        """
        key = (activity.audit, activity.automatic) if activity.audit is not None else None
        if key in self.audited:
            raise ValueError(f"the activity {activity.audit} is registered already")
        emails = [each for each in (activity.email, activity.email_by_others) if each]
        note = activity.notification
        if note and self.notifications.get(note.kind, note) != note:
            raise ValueError(f"the notification {note.kind} is registered with another text")
        for email in emails:
            if self.emails.get(email.kind, email) != email:
                raise ValueError(f"the email {email.kind} is registered with another text")
        if key:
            self.audited[key] = activity
        if note:
            self.notifications[note.kind] = note
        self.emails |= {email.kind: email for email in emails}
        return activity

    def find(self, audit: str, *, automatic: bool = False) -> Activity | None:
        """Return the activity of this audit name. None for a name that is not registered.

        Two activities can share a name. If the one that is `automatic` as asked does not exist, the
        other is returned.
        """
        found = self.audited.get((audit, automatic))
        return found or self.audited.get((audit, not automatic))

    def ends_sessions(self, audit: str) -> bool:
        """Return whether an activity of this audit name ends sessions."""
        return any(each.ends_sessions for (name, _), each in self.audited.items() if name == audit)

    def log_sentence(self, audit: str, *, automatic: bool = False) -> LogSentence | None:
        """Return the name and the sentences of this audit name in the audit log: those of the
        activity or, without any, those in LOG_SENTENCES. None if there are neither.

        With `automatic`, the sentence for what no person did, if there is one.
        """
        activity = self.find(audit, automatic=automatic)
        found = (activity and activity.log) or LOG_SENTENCES.get(audit)
        if found and automatic and audit in AUTOMATIC_SENTENCES:
            return LogSentence(found.label, AUTOMATIC_SENTENCES[audit])
        return found

    def log_labels(self) -> dict[str, str]:
        """Return the audit names of all activities with their labels in the audit log; an activity
        without one has its audit name."""
        names = {name for name, _ in self.audited}
        found = {name: self.log_sentence(name) for name in names}
        return {name: each.label if each else name for name, each in found.items()}

    def on_activity_page(self) -> list[str]:
        """Return the audit names that have a sentence for the activity page, in the order in which
        they were registered."""
        return list({name: None for (name, _), each in self.audited.items() if each.sentence})

    def notification_text(self, kind: str, data: Mapping[str, Any]) -> str:
        """Return the text of a stored notification; "Something changed." for a kind that is not
        registered."""
        found = self.notifications.get(kind)
        return found.render(data) if found else str(_("Something changed."))


def readable(stored: Mapping[str, Any]) -> dict[str, Any]:
    """Return the words with times in the reader's language and zone, and the placeholders for what
    was erased in that language. All other values stay as they are stored: earlier versions stored
    times as texts."""
    return {name: _readable(value) for name, value in stored.items()}


def _readable(value: Any) -> Any:
    if isinstance(value, datetime):
        return format_time(value)
    return str(_PLACEHOLDERS.get(value, value)) if isinstance(value, str) else value


class _Words(dict[str, Any]):
    """Leaves a gap for a word that was not stored, such as by an older version."""

    def __missing__(self, name: str) -> str:
        return ""


def _placeholders(text: str) -> list[str]:
    return [name for _text, name, _spec, _conversion in Formatter().parse(str(text)) if name]


catalogue = Catalogue()
register = catalogue.register
