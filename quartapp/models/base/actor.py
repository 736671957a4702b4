"""The actor of an operation. Operations take it as `by=`; they read no request and no context."""

from dataclasses import dataclass

from beanie import PydanticObjectId


@dataclass(frozen=True, slots=True)
class Actor:
    """Who performs an operation, and from which IP address.

    A signed-in user has all fields: `version` and `permissions` are those that the request was
    authorized with, so that `authorized_transaction` can check whether they still hold. `worker` is
    the worker that handles the request and waits for the acknowledgements of a barrier mark. A
    visitor who is not signed in has only `ip` and `worker`; the command line and background jobs
    act as SYSTEM, which has none.
    """

    user_id: PydanticObjectId | None = None
    username: str | None = None
    ip: str | None = None
    session_id: PydanticObjectId | None = None
    version: int = 0
    permissions: frozenset[str] = frozenset()
    worker: str | None = None

    def known_as(self, user_id: PydanticObjectId, username: str) -> "Actor":
        """Return an actor for a visitor who has proved to be this user, without a session.

        Keeps the IP address and the worker, and has no permissions.
        """
        return Actor(user_id, username, self.ip, worker=self.worker)


SYSTEM = Actor()
