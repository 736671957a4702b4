"""The challenges of WebAuthn, signed by the server.

A module of its own because importing the library for WebAuthn is slow, and `quartapp.models` needs
only what is here.
"""

from __future__ import annotations

import hmac
import secrets
from dataclasses import dataclass
from datetime import timedelta

from quartapp import clock

CHALLENGE_LIFETIME = timedelta(minutes=5)
_RANDOM_BYTES, _TIME_BYTES = 16, 8


class VerificationFailed(Exception):
    """A response of a browser is malformed or not valid. The message is for the log."""


@dataclass(frozen=True, slots=True)
class ChallengeSigner:
    """Creates and checks challenges that are signed with the server's key.

    A challenge holds random bytes, the time when it was created, and an HMAC of both and of
    `binding`, the text that ties it to the browser or session which asks. So nothing is stored for
    the many challenges that are never answered. Callers have to remember an answered challenge for
    CHALLENGE_LIFETIME to refuse its reuse.
    """

    key: str
    binding: str

    def new_challenge(self) -> bytes:
        """Return a new challenge for this binding, with the current time."""
        payload = secrets.token_bytes(_RANDOM_BYTES) + _milliseconds().to_bytes(_TIME_BYTES)
        return payload + self._signature(payload)

    def check(self, challenge: bytes) -> None:
        """Check the signature, the binding and the age of a challenge.

        Raises VerificationFailed for a challenge that was not created with this key and binding, or
        is older than CHALLENGE_LIFETIME. Accepts one whose time is ahead of this host's clock, and
        does not notice that a challenge was used before.
        """
        payload, signature = (
            challenge[: _RANDOM_BYTES + _TIME_BYTES],
            challenge[_RANDOM_BYTES + _TIME_BYTES :],
        )
        if not hmac.compare_digest(signature, self._signature(payload)):
            raise VerificationFailed("the challenge is not ours, or not for this page")
        age = _milliseconds() - int.from_bytes(payload[_RANDOM_BYTES:])
        if timedelta(milliseconds=age) > CHALLENGE_LIFETIME:
            raise VerificationFailed("the challenge is too old")

    def _signature(self, payload: bytes) -> bytes:
        bound = f"passkey {self.binding} ".encode()
        return hmac.digest(self.key.encode(), bound + payload, "sha256")


def _milliseconds() -> int:
    return int(clock.now().timestamp() * 1000)
