"""Passkeys: their public keys, and what happens when one is added, removed or used (WebAuthn)."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Self

from beanie import Link, PydanticObjectId
from pydantic import Field
from pymongo import IndexModel
from pymongo.errors import DuplicateKeyError

from quartapp import clock
from quartapp.activities import PASSKEY_REFUSED
from quartapp.db.mongo import Tx, transaction
from quartapp.i18n import lazy_gettext as _
from quartapp.models.accounts.user import User
from quartapp.models.audit.event import Event
from quartapp.models.audit.recording import record
from quartapp.models.authorization.transaction import authorized_transaction
from quartapp.models.base.actor import Actor
from quartapp.models.base.record import Record
from quartapp.models.base.references import PASSKEYS, DomainError, linked_id, ref, user_ref
from quartapp.models.factors import enrolment
from quartapp.models.factors.enrolment import Enrolled, HasFactor
from quartapp.models.factors.factor import Factor, stored_words
from quartapp.security.challenges import CHALLENGE_LIFETIME, VerificationFailed

if TYPE_CHECKING:
    from quartapp.security.webauthn import NewPasskey, PasskeyAssertion


class TooManyPasskeys(DomainError):
    """The account has the maximum number of passkeys."""

    def __init__(self, at_most: int) -> None:
        super().__init__(
            _("An account has at most %(num)s passkeys. Remove one first.", num=at_most)
        )


class PasskeyTaken(DomainError):
    """The credential is registered already, for this user or for another."""

    def __init__(self) -> None:
        super().__init__(_("This passkey has already been added."))


class Answered(Record):
    """A value that may be used once, stored when it is used: a challenge, or a note in a cookie.

    It is kept until the value would have expired anyway.
    """

    id: bytes  # type: ignore[assignment]
    expires_at: datetime

    class Settings:
        name = "answered"
        indexes = [IndexModel([("expires_at", 1)], name="kept", expireAfterSeconds=60)]

    @classmethod
    async def use_challenge(cls, challenge: bytes, *, tx: Tx) -> None:
        """Store that the challenge was answered, until it would have expired. Raises
        VerificationFailed if it was answered before."""
        try:
            await cls(id=challenge, expires_at=clock.now() + CHALLENGE_LIFETIME).insert(session=tx)
        except DuplicateKeyError:
            raise VerificationFailed("the challenge was answered before") from None

    @classmethod
    async def use_note(cls, note: str, *, lasts: timedelta, tx: Tx | None = None) -> bool:
        """Store that the note was used, for `lasts`; return False if it was used before.

        Inside a transaction, after False the transaction must be aborted, because MongoDB has
        aborted it.
        """
        try:
            await cls(id=note.encode(), expires_at=clock.now() + lasts).insert(session=tx)
        except DuplicateKeyError:
            return False
        return True


class Passkey(Record):
    """One passkey of a user. `credential_id` is what the authenticator calls it.

    `sign_count` is the authenticator's counter at the last use; many authenticators leave it at 0.
    """

    user: Link[User]
    credential_id: str
    public_key: bytes = Field(repr=False)
    sign_count: int
    name: str
    transports: list[str] = []
    backed_up: bool
    created_at: datetime = Field(default_factory=clock.now)
    last_used_at: datetime | None = None
    uses: int = 0

    class Settings:
        name = "passkeys"
        indexes = [
            IndexModel([("credential_id", 1)], name="by_credential", unique=True),
            IndexModel([("user.$id", 1), ("created_at", 1)], name="of_user"),
        ]

    @classmethod
    async def of_user(cls, user_id: PydanticObjectId) -> list[Self]:
        """Return the user's passkeys, oldest first."""
        return await cls.find({"user.$id": user_id}, sort="created_at").to_list()

    @classmethod
    async def known_as(cls, credential_id: str) -> Self | None:
        """Return the passkey with this credential id; None if there is none."""
        return await cls.find_one({"credential_id": credential_id})

    @property
    def user_id(self) -> PydanticObjectId:
        return linked_id(self.user)

    @classmethod
    async def add(
        cls, user: User, made: NewPasskey, *, name: str, by: Actor, at_most: int = 20
    ) -> Enrolled:
        """Store a new passkey of the user and return what `enrolment.add` returns, which describes
        the effects.

        `made` is the verified answer of the authenticator. In the same transaction, stores that its
        challenge was answered. Raises TooManyPasskeys if the user has `at_most` passkeys,
        PasskeyTaken, VerificationFailed if the challenge was answered before, and what else
        `enrolment.add` raises, such as Unverified; nothing is stored then.
        """
        passkey = cls(
            user=user_ref(user.id),
            credential_id=made.credential_id,
            public_key=made.public_key,
            sign_count=made.sign_count,
            name=name,
            transports=list(made.transports),
            backed_up=made.backed_up,
        )

        async def keep(tx: Tx) -> None:
            await Answered.use_challenge(made.challenge, tx=tx)
            try:
                await passkey.insert(session=tx)
            except DuplicateKeyError:
                raise PasskeyTaken from None

        room = {f"passkeys.{at_most - 1}": {"$exists": False}}
        change = {"$push": {"passkeys": ref(PASSKEYS, passkey.id)}}
        try:
            return await enrolment.add(
                user, Factor.PASSKEY, room, change, by=by, name=name, also=keep
            )
        except HasFactor:
            raise TooManyPasskeys(at_most) from None

    @staticmethod
    def refusals_to_add(user: User, *, at_most: int) -> list[DomainError]:
        """Return TooManyPasskeys if the user has `at_most` passkeys, so that `add` would refuse
        another now."""
        return [TooManyPasskeys(at_most)] if len(user.passkeys) >= at_most else []

    async def rename(self, name: str, *, by: Actor) -> bool:
        """Change the name, in an authorized transaction; return False if it was deleted or had this
        name.

        Nobody is notified, and the audit log has no entry. Does not check whose passkey it is: the
        route does. Raises SessionOver and RightsChanged.
        """

        async def work(tx: Tx) -> bool:
            return await Passkey.change({"_id": self.id}, {"$set": {"name": name}}, tx=tx)

        return await authorized_transaction(by, work)

    async def remove(self, user: User, *, by: Actor) -> Event | None:
        """Delete the passkey, and inform the user and record the event as `enrolment.remove` does;
        return the event FACTOR_REMOVED, or None if the passkey was gone."""

        async def erase(tx: Tx) -> None:
            await Passkey.erase(self.id, tx=tx)

        listed = {"passkeys.$id": self.id}
        change = {"$pull": {"passkeys": ref(PASSKEYS, self.id)}}
        return await enrolment.remove(
            user, Factor.PASSKEY, listed, change, by=by, name=self.name, also=erase
        )

    async def use(self, user: User, shown: PasskeyAssertion, *, by: Actor) -> None:
        """Verify that this passkey signed the challenge, and record its use. Returns nothing if it
        is valid.

        In a transaction, stores that the challenge was answered, the new counter and the time of
        use. Raises VerificationFailed if the signature is wrong, the challenge was answered before,
        or the passkey was deleted: then nothing is stored.

        Also raises VerificationFailed if the counter is not higher than the last one (unless both
        are 0), which means that two devices may have the key. In this case the transaction commits:
        the challenge is used up, the user is notified and emailed, and the event PASSKEY_REFUSED is
        recorded.
        """
        count, backed_up = shown.verify(self.public_key)
        goes_on = [{"sign_count": {"$lt": count}}] + ([{"sign_count": 0}] if count == 0 else [])

        async def work(tx: Tx) -> bool:
            await Answered.use_challenge(shown.challenge, tx=tx)
            used = await Passkey.change(
                {"_id": self.id, "$or": goes_on},
                {
                    "$set": {
                        "sign_count": count,
                        "backed_up": backed_up,
                        "last_used_at": clock.now(),
                    },
                    # Otherwise, without a counter, the second of two uses in one millisecond
                    # would change nothing, and be refused.
                    "$inc": {"uses": 1},
                },
                tx=tx,
            )
            if not used:
                if await Passkey.get(self.id, session=tx) is None:
                    raise VerificationFailed("the passkey was removed")
                await self._report_copy(user, by=by, tx=tx)
            return used

        if not await transaction(work):
            raise VerificationFailed("the counter went back: the passkey may have been copied")

    async def _report_copy(self, user: User, *, by: Actor, tx: Tx) -> None:
        """Notify and email the user that a copy of the passkey may exist, and record
        PASSKEY_REFUSED.
        """
        factor = stored_words(Factor.PASSKEY, self.name)
        words = {"factor": factor}
        await record(PASSKEY_REFUSED, user, by=by, tx=tx, words=words, name=self.name)
