"""The catalogue of activities: stored names, and what registering checks."""

from __future__ import annotations

import pytest

from quartapp import activities
from quartapp.activities import (
    ACCOUNT_EXPIRED,
    ROLE_GRANTED,
    Activity,
    Email,
    LogSentence,
    Notification,
    catalogue,
)
from quartapp.activities.activity import Catalogue

# Databases contain these names: they never change.
AUDIT_NAMES = """
activity.disowned audit.exported codes.blocked comment.removed data.exported email.changed
email.confirmed email.restored factor.added factor.removed factors.reset invitation.accepted
invitation.sent_again invitation.withdrawn last_day.lifted last_day.set passkey.refused
password.changed password.reset post.removed recovery_code.used recovery_codes.made role.created
role.deleted role.edited role.end_changed role.end_removed role.granted role.granted_until
role.request_declined role.request_withdrawn role.requested role.revoked session.confirmed
session.ended session.started sessions.ended user.deactivated user.disabled user.enabled user.erased
user.invited user.leaving user.registered user.restored
"""
NOTIFICATIONS = """
account.closed account.disabled account.enabled account.restored codes.blocked codes.refused
comment.added comment.removed email.changed email.restored factor.added factor.removed
factors.reset invitation.accepted last_day.lifted last_day.over last_day.set passkey.refused
password.changed post.removed recovery_code.used recovery_codes.made role.deleted role.end_changed
role.end_removed role.ends_soon role.expired role.granted role.granted_until
role.request_declined role.request_declined_with_reason role.requested role.revoked sessions.ended
welcome
"""
EMAILS = """
account.closed account.leaving account.removed account.restored activity.disowned address.changed
address.confirm address.taken codes.blocked codes.refused factor.added factor.removed factors.reset
notification passkey.refused password.changed password.first password.reset recovery_code.used
recovery_codes.made session.started user.invited
"""
ENDS_SESSIONS = """
activity.disowned email.restored factors.reset password.reset role.deleted role.revoked
session.ended sessions.ended user.deactivated user.disabled user.leaving
"""
LANES = {
    "password.first": "reset",
    "password.reset": "reset",
    "address.confirm": "verification",
    "user.invited": "invitation",
    "address.changed": "address",
}
# Notifications that no email can tell of, and why.
WITHOUT_EMAIL = {
    "email.restored": "the user has just opened the link in the email with the old address",
    "welcome": "the user has just created the account",
}


def test_the_stored_names_stay_as_databases_have_them() -> None:
    audited = {name for name, _ in catalogue.audited}
    assert audited == set(AUDIT_NAMES.split())
    assert set(catalogue.notifications) == set(NOTIFICATIONS.split())
    assert set(catalogue.emails) == set(EMAILS.split())


def test_each_activity_that_ends_sessions_says_so() -> None:
    audited = {name for name, _ in catalogue.audited}
    assert {n for n in audited if catalogue.ends_sessions(n)} == set(ENDS_SESSIONS.split())
    assert not catalogue.ends_sessions("moon.landed")


def test_emails_that_strangers_can_cause_have_lanes_of_their_own() -> None:
    lanes = {kind: email.lane for kind, email in catalogue.emails.items()}
    assert {k: lane for k, lane in lanes.items() if lane != "notifications"} == LANES


def test_a_user_can_have_every_notification_by_email() -> None:
    kinds = {kind for kind, each in catalogue.notifications.items() if each.email_group}
    everything = [each for each in vars(activities).values() if isinstance(each, Activity)]
    kinds |= {each.notification_kind for each in everything if each.notification and each.email}
    assert set(catalogue.notifications) - kinds == set(WITHOUT_EMAIL)
    groups = {each.email_group for each in catalogue.notifications.values()} - {None}
    assert groups == set(activities.EMAIL_GROUPS)


def test_the_package_exports_every_activity() -> None:
    exported = [each for each in vars(activities).values() if isinstance(each, Activity)]
    for activity in catalogue.audited.values():
        assert activity in exported


def test_an_automatic_activity_has_its_own_sentence() -> None:
    assert catalogue.find("user.disabled", automatic=True) is ACCOUNT_EXPIRED
    assert catalogue.find("user.disabled") is not ACCOUNT_EXPIRED
    assert catalogue.find("role.granted", automatic=True) is ROLE_GRANTED
    assert catalogue.find("moon.landed") is None


def test_a_second_activity_of_the_same_audit_name_is_refused() -> None:
    own = Catalogue()
    own.register(Activity(audit="ticket.answered"))
    with pytest.raises(ValueError, match=r"ticket\.answered is registered already"):
        own.register(Activity(audit="ticket.answered", sentence="Again"))
    own.register(Activity(audit="ticket.answered", automatic=True))


def test_a_kind_with_another_text_is_refused_and_leaves_nothing() -> None:
    own = Catalogue()
    answered = Notification(kind="ticket.answered", text="{by} answered.")
    email = Email(kind="ticket.answered", subject="Answered", text=("{by} answered.",))
    own.register(Activity(audit="ticket.answered", notification=answered, email=email))
    own.register(Activity(audit="ticket.answered_again", notification=answered, email=email))
    other = Notification(kind="ticket.answered", text="Somebody answered.")
    with pytest.raises(
        ValueError, match=r"notification ticket\.answered is registered with another"
    ):
        own.register(Activity(audit="ticket.closed", notification=other))
    other_email = Email(kind="ticket.answered", subject="Other", text=())
    with pytest.raises(ValueError, match=r"email ticket\.answered is registered with another"):
        own.register(Activity(audit="ticket.closed", email=other_email))
    assert own.find("ticket.closed") is None


def test_a_text_stores_its_words_but_not_those_known_at_sending() -> None:
    note = Notification(kind="x", text="{by} did {what} to {title}.")
    assert note.words() == ("by", "what", "title")
    email = Email(kind="x", subject="X", text=("{username} at {base}: {ip}", "{token} {left}"))
    assert email.words() == ("ip", "left")


def test_an_activity_without_an_audit_name_cannot_be_recorded() -> None:
    with pytest.raises(TypeError, match="no audit name"):
        _ = activities.COMMENT_ADDED.audit_name
    with pytest.raises(TypeError, match="has no email"):
        _ = ROLE_GRANTED.own_email


def test_every_activity_has_a_name_and_a_sentence_in_the_audit_log() -> None:
    missing = [name for name in AUDIT_NAMES.split() if catalogue.log_sentence(name) is None]
    assert not missing, "add them to quartapp/activities/log_sentences.py"


def test_sentences_of_the_audit_log_name_no_unknown_words() -> None:
    details = {"actor", "day", "email", "factor", "role", "subject", "title", "until"}
    words = dict.fromkeys(details, "x")
    for name in AUDIT_NAMES.split():
        for automatic in (False, True):
            known = catalogue.log_sentence(name, automatic=automatic)
            assert known
            for sentence in filter(None, (known.sentence, known.own)):
                assert str(sentence) % words


def test_an_extension_gives_the_sentence_of_its_activity() -> None:
    own = Catalogue()
    log = LogSentence("Ticket answered", "%(actor)s answered a ticket of %(subject)s")
    own.register(Activity(audit="ticket.answered", log=log))
    own.register(Activity(audit="ticket.closed"))
    assert own.log_sentence("ticket.answered") == log
    assert own.log_sentence("ticket.closed") is None
    assert own.log_labels() == {"ticket.answered": log.label, "ticket.closed": "ticket.closed"}
