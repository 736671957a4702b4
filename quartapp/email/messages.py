"""What letters say. Plain text: nothing to load, nothing to hide behind."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from email.headerregistry import Address
from email.message import EmailMessage
from email.policy import SMTP, SMTPUTF8
from email.utils import format_datetime

from quartapp import clock
from quartapp.models.email.outbox import Letter, Mail

SUBJECTS = {
    Letter.CONFIRM: "Verify your email address",
    Letter.ADDRESS_TAKEN: "You already have an account",
    Letter.RESET: "Set a new password",
    Letter.SIGNED_IN: "Signed in from a new browser",
    Letter.PASSWORD_CHANGED: "Your password was changed",
    Letter.ADDRESS_CHANGED: "Your email address was changed",
    Letter.INVITED: "You are invited to make an account",
    Letter.CLOSED: "Your account is closed",
    Letter.LEAVING: "Your account will be deleted",
    Letter.REMOVED: "Your account will be deleted",
    Letter.RESTORED: "Your account is open again",
    Letter.DISOWNED: "You said that it was not you",
    Letter.PASSKEY_REFUSED: "A passkey of yours may have been copied",
    Letter.FACTOR_ADDED: "A second factor was added",
    Letter.FACTOR_REMOVED: "A second factor was removed",
    Letter.CODES_REFUSED: "Somebody may know your password",
    Letter.CODES_BLOCKED: "Codes no longer sign in to your account",
    Letter.FACTORS_RESET: "Your second factors were removed",
    Letter.RECOVERY_CODE_USED: "A recovery code was used",
    Letter.RECOVERY_CODES_MADE: "New recovery codes were made",
}
_IF_NOT_YOU = (
    "If it was you, there is nothing to do. If not, somebody else knows your password: set a new "
    "one at once, and look at your second factors:"
)
# A paragraph is a line, which mail programs break where their window ends.
TEXTS = {
    Letter.CONFIRM: (
        "Verify that this email address is yours, to use it at {site}. Open this page:",
        "{base}/verify/{token}",
        "Or enter this code on the page that asks for it: {code}",
        "Both work for 10 minutes.",
        "If you did not ask for this, ignore this email: somebody else entered your address, and "
        "can't use it without you. Do not pass on the code.",
    ),
    # To the holder of the address, in the place of the mail above.
    Letter.ADDRESS_TAKEN: (
        "Somebody, probably you, entered {to} to create an account or to change the address of "
        "one at {site}. You already have an account with this address, so nothing was changed.",
        "Sign in to your account:",
        "{base}/login",
        "If you forgot your password, set a new one: {base}/forgot",
        "If it was not you, ignore this email.",
    ),
    Letter.RESET: (
        "You, or somebody else, asked on {at} from {ip} for a new password for {account}.",
        "Set a new password on this page:",
        "{base}/reset/{token}",
        "The link works once, for 30 minutes. If it was not you, do nothing: the password stays "
        "as it is.",
    ),
    Letter.SIGNED_IN: (
        "Somebody has signed in to the account {username} from a browser that was not used there "
        "before.",
        "Browser: {device}\nAddress: {ip}\nTime: {at}",
        "If it was you, there is nothing to do. If not, say so on this page. That ends the session "
        "and leads to a new password:",
        "{base}/account/timeline",
    ),
    Letter.PASSWORD_CHANGED: (
        "The password of the account {username} was changed on {at}, from {ip}. Any other session "
        "has ended.",
        "If it was you, there is nothing to do. If not, set a new password at once:",
        "{base}/forgot",
    ),
    Letter.ADDRESS_CHANGED: (
        "The account {username} has another email address since {at}, and this one gets no more "
        "email about it. The change came from {ip}.",
        "If it was you, there is nothing to do. If not, restore this address. That signs the "
        "account out everywhere and leads to a new password:",
        "{base}/undo/{token}",
        "The link works once, for 72 hours after the change.",
    ),
    Letter.INVITED: (
        "{inviter} invites you to create an account for {to} at {site}. It comes with this: "
        "{roles}.",
        "Choose a username and a password on this page:",
        "{base}/invited/{token}",
        "The link works once, for 7 days. If you do not want an account, do nothing, and none is "
        "made.",
    ),
    Letter.CLOSED: (
        "The account {username} was closed on {at}, from {ip}, and signed out everywhere. All that "
        "is in it is kept.",
        "To open it again, sign in:",
        "{base}/login",
        "If it was not you who closed it, set a new password first: {base}/forgot",
    ),
    Letter.LEAVING: (
        "The account {username} was closed on {at}, from {ip}, and signed out everywhere. It will "
        "be deleted on {until}, and nobody can bring it back after that.",
        'Until then you can keep it. Sign in, and press "Keep my account":',
        "{base}/login",
        "If it was not you who closed it, set a new password first: {base}/forgot",
    ),
    Letter.REMOVED: (
        "An administrator has closed the account {username}. It will be deleted on {until}, and "
        "nobody can bring it back after that.",
        "If you think that this is a mistake, tell an administrator before then.",
    ),
    Letter.RESTORED: (
        "The account {username} was opened again on {at}, and will not be deleted.",
        "If neither you nor an administrator did that, set a new password at once:",
        "{base}/forgot",
    ),
    Letter.DISOWNED: (
        "Somebody signed in to the account {username} has said that this was not them:",
        "{what}, {when}",
        "Any other session has ended. Whoever it was can come back by what they know or "
        "have left behind, so go through this:",
        "{base}/account/timeline/not-me",
        "If you did not say so, set a new password at once, or tell an administrator if that does "
        "not reach you here: {base}/forgot",
    ),
    Letter.FACTOR_ADDED: (
        "The account {username} has a new second factor since {at}: {factor}. It was set up from "
        "{ip}.",
        _IF_NOT_YOU,
        "{base}/account/factors\n{base}/forgot",
    ),
    Letter.FACTOR_REMOVED: (
        "A second factor was removed from the account {username} on {at}, from {ip}: {factor}.",
        _IF_NOT_YOU,
        "{base}/account/factors\n{base}/forgot",
    ),
    Letter.PASSKEY_REFUSED: (
        "On {at} somebody at {ip} showed the {factor} of the account {username}, and was refused. "
        "A passkey counts how often it is used. The count of this one had gone back, so there may "
        "be a copy of it.",
        "Remove the passkey and make a new one:",
        "{base}/account/factors/passkeys",
    ),
    Letter.CODES_REFUSED: (
        "Somebody typed the password of the account {username}, and then wrong codes again and "
        "again in place of the second factor, the last one on {at} from {ip}. They were not let "
        "in.",
        "If it was you, there is nothing to do. If not, set a new password, and they are back at "
        "the beginning:",
        "{base}/forgot",
    ),
    Letter.CODES_BLOCKED: (
        "Somebody who knows the password of the account {username} has typed so many wrong codes "
        "in place of the second factor that codes no longer sign in. The last one came on {at} "
        "from {ip}.",
        "Set a new password. After that, codes work again, and whoever it was has to start over:",
        "{base}/forgot",
    ),
    Letter.FACTORS_RESET: (
        "{by} removed all second factors and recovery codes from the account {username} on {at}, "
        "and signed it out everywhere. A password alone opens it now.",
        "If you asked for that, sign in and set up a new one. If not, set a new password at once, "
        "and ask who did it:",
        "{base}/account/factors\n{base}/forgot",
    ),
    Letter.RECOVERY_CODE_USED: (
        "Somebody signed in to the account {username} with a recovery code in place of the second "
        "factor on {at}, from {ip}. Codes left: {left}.",
        _IF_NOT_YOU,
        "{base}/account/factors\n{base}/forgot",
    ),
    Letter.RECOVERY_CODES_MADE: (
        "New recovery codes were made for the account {username} on {at}, from {ip}. The old ones "
        "are void.",
        _IF_NOT_YOU,
        "{base}/account/factors\n{base}/forgot",
    ),
}
MOMENTS = {"until", "when"}


def write(
    mail: Mail,
    *,
    letter: Letter,
    to: str,
    receiver: str,
    sender: str,
    site_name: str,
    base: str,
    words: Mapping[str, str],
) -> EmailMessage:
    """Return the mail as a message, with the text of this `letter`.

    It speaks of the address `to`, and goes to the `receiver`, which is the same address as mail
    servers know it: see `names.mail_address`. The header and the envelope have to name one
    receiver, so the header is built from the two parts of the address: a string would be parsed,
    and what looks encoded decoded.
    """
    # The header of the longest address fits: a folded header would have the address encoded.
    message = EmailMessage((SMTP if receiver.isascii() else SMTPUTF8).clone(max_line_length=900))
    local, _, domain = sender.rpartition("@")
    message["From"] = Address(display_name=site_name, username=local, domain=domain)
    local, _, domain = receiver.rpartition("@")
    message["To"] = Address(username=local, domain=domain)
    message["Subject"] = f"[{site_name}] {SUBJECTS[letter]}"
    message["Date"] = format_datetime(clock.now())
    # The same for each try, so that a mailbox that got two can tell.
    message["Message-ID"] = f"<{mail.id}@{sender.rpartition('@')[2]}>"
    message["Auto-Submitted"] = "auto-generated"
    data = {
        name: clock.format_long(datetime.fromisoformat(word)) if name in MOMENTS else word
        for name, word in mail.data.items()
    }
    known = {"ip": "an unknown address", "device": "unknown"} | data | dict(words)
    text = "\n\n".join((*TEXTS[letter], ""))
    text = text.format(
        base=base, to=to, site=site_name, at=clock.format_long(mail.created_at), **known
    )
    # Never quoted-printable where it can be helped: that breaks a link into two lines.
    message.set_content(
        text.removesuffix("\n"), cte="7bit" if text.isascii() else "quoted-printable"
    )
    return message
