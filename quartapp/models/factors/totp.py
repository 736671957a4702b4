"""Authenticator apps: six-digit codes that change every 30 seconds (RFC 6238). Each works once."""

import hmac
from datetime import timedelta

from pyotp import random_base32
from pyotp.totp import TOTP

from quartapp import clock
from quartapp.db.mongo import Tx
from quartapp.i18n import lazy_gettext as _
from quartapp.models.accounts.user import User
from quartapp.models.audit.event import Event
from quartapp.models.base.actor import Actor
from quartapp.models.base.references import DomainError
from quartapp.models.base.tokens import digest_of
from quartapp.models.factors import enrolment
from quartapp.models.factors.enrolment import Enrolled
from quartapp.models.factors.factor import Factor, Totp
from quartapp.models.factors.passkey import Answered
from quartapp.security.encryption import Encryption

DIGITS, SECONDS = 6, 30
# How long a browser is shown the same secret until it is set up.
OFFER_LASTS = timedelta(hours=1)
# Clocks of phones differ, and typing takes time, so the codes of one step before and after the
# present one are accepted too (RFC 6238, 5.2).
DRIFT = 1


class OfferUsed(DomainError):
    """This secret was set up before, by this account or with a copy of the cookie that contains
    it."""

    def __init__(self) -> None:
        super().__init__(_("This setup key was already used. Scan the new QR code."))


class WrongAppCode(DomainError):
    """The code is not one that the app shows now."""

    def __init__(self) -> None:
        super().__init__(_("Incorrect code. Enter the code that the app shows now."))


def plain(code: str) -> str:
    """Return a code without the spaces and dashes that people group it by."""
    return "".join(c for c in code if not c.isspace() and c != "-")


def new_secret() -> str:
    """Return a new secret of 160 random bits (ASVS 6.5.3) in base32."""
    return random_base32()


def uri(secret: str, username: str, *, issuer: str) -> str:
    """Return the `otpauth` URI for the QR code, with the secret, the username and the issuer.

    A colon separates the issuer from the username, so colons in the issuer become spaces.
    """
    issuer = " ".join(issuer.replace(":", " ").split())
    return TOTP(secret).provisioning_uri(name=username, issuer_name=issuer)


async def set_up(
    user: User, secret: str, code: str, *, encryption: Encryption, by: Actor
) -> Enrolled:
    """Add the authenticator app to the user if the code proves that the app has the secret.

    Stores the secret encrypted, and the time step of the code, which therefore cannot be used
    again. Has the effects of `enrolment.add`, and returns what that returns. Raises WrongAppCode
    without a write, OfferUsed if the account set up this secret within the last hour, HasFactor if
    it has an app, and what else `enrolment.add` raises.
    """
    step = _step(secret, code)
    if step is None:
        raise WrongAppCode
    kept = Totp(sealed=encryption.encrypt(secret, _about(user)), added_at=clock.now())
    # Setting `totp_step` uses the code up.
    change = {"totp": kept.model_dump(), "totp_step": step}

    async def use_up(tx: Tx) -> None:
        note = f"totp secret {user.id} {digest_of(secret)}"
        if not await Answered.use_note(note, lasts=OFFER_LASTS, tx=tx):
            raise OfferUsed

    off = {"totp": None}
    return await enrolment.add(user, Factor.TOTP, off, {"$set": change}, by=by, also=use_up)


async def accept(user: User, code: str, *, encryption: Encryption) -> bool:
    """Check a code of the user's app and use it up; return whether it was right and unused.

    False if the user has no app, or if the secret cannot be decrypted. A right code updates the
    user document: no code of the same or an earlier time step is accepted after it, so of two
    requests with one code one gets False. Also encrypts the secret again if its key is not the
    newest. Counts no attempt and records no event. `code` must be ASCII.
    """
    if user.totp is None:
        return False
    secret = encryption.decrypt(user.totp.sealed, _about(user))
    step = _step(secret, code) if secret else None
    if secret is None or step is None:
        return False
    change: dict[str, object] = {"totp_step": step}
    if encryption.outdated(user.totp.sealed, _about(user)):
        change["totp.sealed"] = encryption.encrypt(secret, _about(user))
    unused = {"_id": user.id, "totp.added_at": user.totp.added_at, "totp_step": {"$lt": step}}
    return await User.change(unused, {"$set": change})


async def remove(user: User, *, by: Actor) -> Event | None:
    """Remove the authenticator app, and inform the user and record the event as `enrolment.remove`
    does; return the event FACTOR_REMOVED, or None if there was no app."""
    is_on = {"totp": {"$ne": None}}
    return await enrolment.remove(user, Factor.TOTP, is_on, {"$set": {"totp": None}}, by=by)


def _step(secret: str, code: str) -> int | None:
    """Return the time step whose code this is, at most DRIFT steps from now; the latest one if
    several have the same code, None if none has it."""
    app, now = TOTP(secret), int(clock.now().timestamp()) // SECONDS
    steps = range(now - DRIFT, now + DRIFT + 1)
    fits = [step for step in steps if hmac.compare_digest(app.generate_otp(step), code)]
    return max(fits, default=None)


def _about(user: User) -> str:
    """Return the context that binds the encrypted secret to its user."""
    return f"totp {user.id}"
