"""Who acts. Verbs of the domain take the actor as `by=`; they read no request and no context."""

from dataclasses import dataclass

from beanie import PydanticObjectId


@dataclass(frozen=True, slots=True)
class Actor:
    """Who does something, and from which address; the command line and the rules have no user."""

    user_id: PydanticObjectId | None = None
    username: str | None = None
    ip: str | None = None


NOBODY = Actor()
