"""Codes of authenticator apps (RFC 6238): six digits, another every half minute, each good once."""

import hmac
from datetime import timedelta

from pyotp import random_base32
from pyotp.totp import TOTP

from quartapp import clock
from quartapp.db.mongo import Tx
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
# A secret is offered to a browser for so long.
OFFER_LASTS = timedelta(hours=1)
# Clocks of phones differ, and typing takes a while: one step either way (RFC 6238, 5.2).
DRIFT = 1


class OfferUsed(DomainError):
    """The secret was set up before, by somebody who may know it."""

    def __init__(self) -> None:
        super().__init__("This setup key was already used. Scan the new QR code.")


class WrongAppCode(DomainError):
    """Not what the app shows at this moment, if it has the secret."""

    def __init__(self) -> None:
        super().__init__("Incorrect code. Enter the code that the app shows now.")


def plain(code: str) -> str:
    """Return a code without the spaces and dashes that people group it by."""
    return "".join(c for c in code if not c.isspace() and c != "-")


def new_secret() -> str:
    """A random 160 bits (ASVS 6.5.3), in the letters that apps and people type."""
    return random_base32()


def uri(secret: str, username: str, *, issuer: str) -> str:
    """Return the `otpauth` URI for the QR code.

    A colon separates the issuer from the username, so colons in the issuer become spaces.
    """
    issuer = " ".join(issuer.replace(":", " ").split())
    return TOTP(secret).provisioning_uri(name=username, issuer_name=issuer)


async def set_up(
    user: User, secret: str, code: str, *, encryption: Encryption, by: Actor
) -> Enrolled:
    """Turns it on, if the code shows that the app has the secret.

    An account can set up a secret once. Raises WrongAppCode, OfferUsed and HasFactor.
    """
    step = _step(secret, code)
    if step is None:
        raise WrongAppCode
    kept = Totp(sealed=encryption.encrypt(secret, _about(user)), added_at=clock.now())
    # The code that turns it on is used by that.
    change = {"totp": kept.model_dump(), "totp_step": step}

    async def use_up(tx: Tx) -> None:
        note = f"totp secret {user.id} {digest_of(secret)}"
        if not await Answered.first(note, lasts=OFFER_LASTS, tx=tx):
            raise OfferUsed

    off = {"totp": None}
    return await enrolment.add(user, Factor.TOTP, off, {"$set": change}, by=by, also=use_up)


async def accept(user: User, code: str, *, encryption: Encryption) -> bool:
    """Whether it is a code of the user's app that was not used yet; then it is used by that.

    Of two who come with one code at once, one is let in. A secret that was sealed under an older
    key is sealed anew.
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
    """Turns it off; None if it was off."""
    is_on = {"totp": {"$ne": None}}
    return await enrolment.remove(user, Factor.TOTP, is_on, {"$set": {"totp": None}}, by=by)


def _step(secret: str, code: str) -> int | None:
    """The half minute for which the secret gives this code, if that is about now."""
    app, now = TOTP(secret), int(clock.now().timestamp()) // SECONDS
    steps = range(now - DRIFT, now + DRIFT + 1)
    fits = [step for step in steps if hmac.compare_digest(app.generate_otp(step), code)]
    return max(fits, default=None)


def _about(user: User) -> str:
    return f"totp {user.id}"
