"""Who acts. Verbs of the domain take the actor as `by=`; they read no request and no context."""

from dataclasses import dataclass

from beanie import PydanticObjectId


@dataclass(frozen=True, slots=True)
class Actor:
    """Who does something, and from which address; the command line and the rules have no user.

    From a page also in which session and with which permissions, as of the version of the user's
    rights: what is done counts only if it is so still. And by which worker, which waits until what
    is taken away is known everywhere.
    """

    user_id: PydanticObjectId | None = None
    username: str | None = None
    ip: str | None = None
    session_id: PydanticObjectId | None = None
    version: int = 0
    permissions: frozenset[str] = frozenset()
    worker: str | None = None

    def known_as(self, user_id: PydanticObjectId, username: str) -> "Actor":
        """Somebody who is not signed in, once it is known who they are."""
        return Actor(user_id, username, self.ip, worker=self.worker)


NOBODY = Actor()
