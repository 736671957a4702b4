"""The names and sentences of activities in the audit log, for people who read about others.

The sentences of the activity page, which address the user, are in the catalogue. An extension gives
those of its activities as `Activity.log`.
"""

from dataclasses import dataclass

from quartapp.i18n import lazy_gettext as _


@dataclass(frozen=True)
class LogSentence:
    """The `label` of an activity in the filter of the audit log, and its sentence.

    The sentences have no full stop. `%(actor)s` is who did it, `%(subject)s` the user to whom it
    was done, and any other word one of the details. `own` is the sentence if both are the same
    user; without it, `sentence` is used.
    """

    label: str
    sentence: str
    own: str | None = None


LOG_SENTENCES: dict[str, LogSentence] = {
    "activity.disowned": LogSentence(
        _("Activity reported"), _("%(actor)s reported activity in their account as not their own")
    ),
    "audit.exported": LogSentence(
        _("Audit log exported"), _("%(actor)s exported entries of the audit log")
    ),
    "codes.blocked": LogSentence(
        _("Second factor blocked"),
        _("The second factors of %(subject)s were blocked after too many wrong codes"),
    ),
    "comment.removed": LogSentence(
        _("Comment removed"), _("%(actor)s removed a comment of %(subject)s")
    ),
    "data.exported": LogSentence(
        _("Personal data exported"), _("%(actor)s downloaded all data of their account")
    ),
    "email.changed": LogSentence(
        _("Email address changed"),
        _("%(actor)s changed the email address of %(subject)s"),
        _("%(actor)s changed their email address"),
    ),
    "email.confirmed": LogSentence(
        _("Email address verified"),
        _("%(actor)s marked the email address of %(subject)s as verified"),
        _("%(actor)s verified their email address"),
    ),
    "email.restored": LogSentence(
        _("Email address restored"),
        _("%(actor)s undid a change of the email address of %(subject)s"),
        _("%(actor)s undid a change of their email address"),
    ),
    "factor.added": LogSentence(
        _("Second factor added"), _("%(actor)s added a second factor: %(factor)s")
    ),
    "factor.removed": LogSentence(
        _("Second factor removed"),
        _("%(actor)s removed a second factor of %(subject)s: %(factor)s"),
        _("%(actor)s removed a second factor: %(factor)s"),
    ),
    "factors.reset": LogSentence(
        _("Second factors reset"), _("%(actor)s removed all second factors of %(subject)s")
    ),
    "invitation.accepted": LogSentence(
        _("Invitation accepted"), _("%(actor)s accepted an invitation")
    ),
    "invitation.sent_again": LogSentence(
        _("Invitation sent again"), _("%(actor)s sent the invitation of %(email)s again")
    ),
    "invitation.withdrawn": LogSentence(
        _("Invitation withdrawn"), _("%(actor)s withdrew the invitation of %(email)s")
    ),
    "last_day.lifted": LogSentence(
        _("Account expiry removed"), _("%(actor)s removed the expiry date of %(subject)s")
    ),
    "last_day.set": LogSentence(
        _("Account expiry set"), _("%(actor)s set the expiry date of %(subject)s to %(day)s")
    ),
    "passkey.refused": LogSentence(
        _("Passkey refused"),
        _("A passkey of %(subject)s was refused because it may have been copied"),
    ),
    "password.changed": LogSentence(
        _("Password changed"),
        _("%(actor)s changed the password of %(subject)s"),
        _("%(actor)s changed their password"),
    ),
    "password.reset": LogSentence(
        _("Password reset"),
        _("%(actor)s replaced the forgotten password of %(subject)s"),
        _("%(actor)s replaced their forgotten password"),
    ),
    "post.removed": LogSentence(
        _("Post removed"), _("%(actor)s removed the post “%(title)s” of %(subject)s")
    ),
    "recovery_code.used": LogSentence(
        _("Recovery code used"), _("%(actor)s signed in with a recovery code")
    ),
    "recovery_codes.made": LogSentence(
        _("Recovery codes created"), _("%(actor)s created new recovery codes")
    ),
    "role.created": LogSentence(_("Role created"), _("%(actor)s created the role %(role)s")),
    "role.deleted": LogSentence(_("Role deleted"), _("%(actor)s deleted the role %(role)s")),
    "role.edited": LogSentence(_("Role changed"), _("%(actor)s changed the role %(role)s")),
    "role.end_changed": LogSentence(
        _("End of a role changed"),
        _("%(actor)s changed the end of the role %(role)s of %(subject)s to %(until)s"),
    ),
    "role.end_removed": LogSentence(
        _("End of a role removed"),
        _("%(actor)s removed the end of the role %(role)s of %(subject)s"),
    ),
    "role.granted": LogSentence(
        _("Role granted"),
        _("%(actor)s granted the role %(role)s to %(subject)s"),
        _("%(actor)s granted the role %(role)s to themselves"),
    ),
    "role.granted_until": LogSentence(
        _("Role granted for a time"),
        _("%(actor)s granted the role %(role)s to %(subject)s until %(until)s"),
        _("%(actor)s granted the role %(role)s to themselves until %(until)s"),
    ),
    "role.request_declined": LogSentence(
        _("Role request declined"),
        _("%(actor)s declined the request of %(subject)s for the role %(role)s"),
    ),
    "role.request_withdrawn": LogSentence(
        _("Role request withdrawn"),
        _("%(actor)s withdrew the request of %(subject)s for the role %(role)s"),
        _("%(actor)s withdrew their request for the role %(role)s"),
    ),
    "role.requested": LogSentence(_("Role requested"), _("%(actor)s requested the role %(role)s")),
    "role.revoked": LogSentence(
        _("Role revoked"),
        _("%(actor)s revoked the role %(role)s from %(subject)s"),
        _("%(actor)s revoked the role %(role)s from themselves"),
    ),
    "session.confirmed": LogSentence(
        _("Password re-entered"), _("%(actor)s re-entered their password")
    ),
    "session.ended": LogSentence(
        _("Session ended"),
        _("%(actor)s ended a session of %(subject)s"),
        _("%(actor)s ended one of their sessions"),
    ),
    "session.started": LogSentence(_("Signed in"), _("%(actor)s signed in")),
    "sessions.ended": LogSentence(
        _("Sessions ended"),
        _("%(actor)s ended the sessions of %(subject)s"),
        _("%(actor)s ended their sessions"),
    ),
    "user.deactivated": LogSentence(
        _("Account deactivated"),
        _("%(actor)s deactivated the account of %(subject)s"),
        _("%(actor)s deactivated their account"),
    ),
    "user.disabled": LogSentence(
        _("Account disabled"), _("%(actor)s disabled the account of %(subject)s")
    ),
    "user.enabled": LogSentence(
        _("Account enabled"), _("%(actor)s enabled the account of %(subject)s again")
    ),
    "user.erased": LogSentence(_("Account deleted"), _("An account was deleted: %(subject)s")),
    "user.invited": LogSentence(_("User invited"), _("%(actor)s invited %(email)s")),
    "user.leaving": LogSentence(
        _("Deletion scheduled"),
        _("%(actor)s scheduled the deletion of the account of %(subject)s for %(until)s"),
        _("%(actor)s scheduled the deletion of their account for %(until)s"),
    ),
    "user.registered": LogSentence(
        _("Account created"),
        _("%(actor)s created the account of %(subject)s"),
        _("%(actor)s created an account"),
    ),
    "user.restored": LogSentence(
        _("Account restored"),
        _("%(actor)s restored the account of %(subject)s"),
        _("%(actor)s restored their account"),
    ),
}
# Sentences of what no person did, where they differ.
AUTOMATIC_SENTENCES: dict[str, str] = {
    "last_day.lifted": _(
        "The account of %(subject)s did not expire, because no other administrator would be left"
    ),
    "role.end_removed": _(
        "The role %(role)s of %(subject)s did not expire, because no other administrator would be "
        "left"
    ),
    "role.revoked": _("The role %(role)s of %(subject)s expired"),
    "user.disabled": _("The account of %(subject)s expired and was disabled"),
}
