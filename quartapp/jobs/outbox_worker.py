"""A background task that sends the emails of the outbox, one after another, in each worker.

The change stream wakes it for a new email. A look every two seconds finds emails that are due for
another attempt, or whose worker has died.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from email.message import EmailMessage

from beanie import PydanticObjectId

from quartapp import metrics, validation
from quartapp.activities import (
    ACTIVITY_DISOWNED,
    EMAIL_ALREADY_IN_USE,
    EMAIL_CHANGED,
    EMAIL_VERIFICATION_REQUESTED,
    FIRST_PASSWORD_REQUESTED,
    NOTIFICATION_BY_EMAIL,
    PASSWORD_RESET_REQUESTED,
    USER_INVITED,
    Email,
    catalogue,
)
from quartapp.authority.change_stream import Change
from quartapp.email import messages
from quartapp.email.transports import Undelivered, transport_for
from quartapp.i18n import lazy_gettext as _
from quartapp.i18n import timezones, use_locale
from quartapp.i18n.times import use_zone
from quartapp.jobs.repeated import ListeningTask
from quartapp.log import log
from quartapp.models import Event, Mail, User
from quartapp.models.accounts import address_undo, email_address, password_reset
from quartapp.models.accounts.preferences import Preferences
from quartapp.models.audit import activity
from quartapp.models.invitations import invitation
from quartapp.settings import Settings
from quartapp.validation import Invalid


class UnknownEmail(Exception):
    """No activity that this version knows has this email: a newer version queued it."""


@dataclass(frozen=True, slots=True)
class PreparedEmail:
    """What an email says and to whom: its entry in the catalogue, the user whom it is about, if
    there is one, the address, and those words of its text that are known only now."""

    email: Email
    user: User | None
    to: str
    words: dict[str, str] = field(repr=False)


class OutboxWorker(ListeningTask):
    """Claims emails and sends them. No request waits for it.

    An email that is being sent when the task stops becomes due again when its claim expires.
    """

    name = "outbox worker"
    look_every = 2.0
    failure = "outbox_not_read"

    def __init__(self, settings: Settings) -> None:
        super().__init__()
        self._settings = settings
        self._transport = transport_for(settings)

    async def start(self) -> None:
        """Start the task. In production without SMTP_HOST, logs a warning that emails are stored
        in a folder."""
        if self._settings.production and not self._settings.sends_mail:
            log.warning("mail_is_kept_in_files", folder=str(self._settings.data / "mail"))
        await super().start()

    def concerns(self, change: Change) -> bool:
        """Return whether the outbox has changed."""
        return change.collection == Mail.Settings.name

    async def run(self) -> None:
        await self.deliver()

    async def deliver(self) -> None:
        """Claim and send the emails that are due, one after another, until none is left. Raises
        what the driver raises."""
        while (mail := await Mail.claim()) is not None:
            await self._deliver(mail)

    async def _deliver(self, mail: Mail) -> None:
        """Build and send a claimed email, then delete it from the outbox.

        An email that is not needed any more is deleted without being sent or logged. One that
        cannot be sent, for whatever error, becomes due again later, with growing pauses
        (`Mail.record_failure`); after the last attempt, or at once for a ValueError and a permanent
        Undelivered, it is given up and stays in the outbox for a week. Each outcome is counted in
        the metrics. Logs `mail_sent`, the warning `mail_put_off` or the error `mail_given_up`,
        without the address. Raises only what the driver raises when it stores the outcome; then the
        email is sent again two minutes later.
        """
        what = {"email": mail.kind, "id": str(mail.id)}
        try:
            composed = await self._compose(mail)
            if composed is None:
                await mail.remove()
                metrics.MAILS.labels("not needed").inc()
                return
            name = f"{mail.created_at:%Y%m%dT%H%M%S%f}-{mail.id}"
            await self._transport.send(name, *composed)
        except Exception as error:
            # No error of one email may stop the others, and no email is tried forever.
            for_good = isinstance(error, ValueError) or getattr(error, "permanent", False)
            trouble = str(error) if isinstance(error, Undelivered | Invalid) else repr(error)
            given_up = await mail.record_failure(trouble, for_good=for_good)
            metrics.MAILS.labels("given up" if given_up else "put off").inc()
            say = log.error if given_up else log.warning
            say("mail_given_up" if given_up else "mail_put_off", **what, trouble=trouble)
        else:
            await mail.remove()
            metrics.MAILS.labels("sent").inc()
            log.info("mail_sent", **what)

    async def _compose(self, mail: Mail) -> tuple[str, EmailMessage] | None:
        """Return the receiver's address and the message, in the language and the time zone that the
        user has chosen, or else in the language of `mail` and UTC. None if it is not needed any
        more, for example because the link would be void or the account was deleted.

        Has the effects of `_prepare`. Raises Invalid for an address that no mail server could know,
        such as an old version stored, and UnknownEmail for a kind of email that is not in the
        catalogue.
        """
        prepared = await self._prepare(mail)
        if prepared is None:
            return None
        receiver = validation.mail_address(prepared.to)
        chosen = prepared.user.preferences if prepared.user else Preferences()
        with (
            use_locale(chosen.language or mail.language),
            use_zone(timezones.find(chosen.timezone)),
        ):
            message = messages.compose(
                mail,
                email=prepared.email,
                to=prepared.to,
                receiver=receiver,
                sender=self._settings.mail_sender,
                site_name=self._settings.site_name,
                base=self._settings.base_url,
                words=prepared.words | await _quoted_words(mail),
            )
        return receiver, message

    async def _prepare(self, mail: Mail) -> PreparedEmail | None:
        """Return what a queued email says and to whom; None if it is not needed any more.

        For emails with a link, creates a new token in the database, which voids that of an earlier
        attempt; so the outbox never contains a usable token. A verification email for an address
        that another account has becomes the email EMAIL_ALREADY_IN_USE. Raises UnknownEmail.
        """
        email, to, words = catalogue.emails.get(mail.kind), mail.to, dict[str, str]()
        if email is None:
            raise UnknownEmail(mail.kind)
        if mail.kind in (
            PASSWORD_RESET_REQUESTED.email_kind,
            FIRST_PASSWORD_REQUESTED.email_kind,
        ):
            asked = await password_reset.issue(mail, at_most=self._settings.reset_links_per_user)
            if asked is None:
                return None
            user, words["token"] = asked
            to = user.address
        elif mail.kind == EMAIL_VERIFICATION_REQUESTED.email_kind:
            key = self._settings.secret_key.get_secret_value()
            issued = await email_address.issue(mail, key)
            if issued is None:
                return None
            user, to = issued.user, issued.to
            words |= {"token": issued.token, "code": issued.code}
            if issued.taken:
                email = EMAIL_ALREADY_IN_USE.own_email
        elif mail.kind == EMAIL_CHANGED.email_kind:
            undoing = await address_undo.issue(mail)
            if undoing is None:
                return None
            user, words["token"] = undoing
        elif mail.kind == USER_INVITED.email_kind:
            invited = await invitation.issue(mail)
            return PreparedEmail(email, None, to, invited) if invited else None
        else:
            user = await User.get(mail.user_id) if mail.user_id else None
            if user is None:
                return None
        words["username"] = user.username
        named = _("the account %(name)s", name=user.username)
        words["account"] = named if user.verified else _("your account")
        return PreparedEmail(email, user, to, words)


async def _quoted_words(mail: Mail) -> dict[str, str]:
    """Return the words of an email that quotes a notification or an entry of the audit log, in the
    current language; for other emails none. Reads the entry from the database."""
    if mail.kind == NOTIFICATION_BY_EMAIL.email_kind:
        kind, told = mail.data["notification_kind"], messages.stored_words(mail)
        return {"notification": catalogue.notification_text(kind, told)}
    if mail.kind == ACTIVITY_DISOWNED.email_kind and "event" in mail.data:
        reported = await Event.get(PydanticObjectId(mail.data["event"]))
        return {"what": activity.text(reported) if reported else ""}
    return {}
