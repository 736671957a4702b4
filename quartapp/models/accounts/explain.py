"""Why a user has a permission, and what they would lose without a role."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime

from quartapp.activities import ROLE_GRANTED, ROLE_GRANTED_UNTIL
from quartapp.models.accounts.preview import is_withheld, lost_without
from quartapp.models.accounts.user import User
from quartapp.models.audit.event import Event
from quartapp.models.roles.role import Role

# How many grants of the audit log are read, the latest first.
GRANTS = 100


@dataclass(frozen=True)
class HeldRole:
    """A role of a user. `grant` is the audit event of the last grant, None if the log has none:
    then the user got the role with the account, or from another program.

    `until` is when the grant ends, None if it has no end. `lost` are the permissions that the user
    would lose without the role, as the preview of its revocation says. `withheld` says that the
    role requires a second factor and the user has none, so that it gives nothing.
    """

    role: Role
    grant: Event | None
    until: datetime | None
    lost: Sequence[str]
    withheld: bool

    @property
    def granted_by(self) -> User | None:
        """The user who granted the role; None if the log has no grant, or none by a user who still
        exists."""
        actor = self.grant.actor if self.grant else None
        return actor if isinstance(actor, User) else None


async def held_roles(user: User, roles: Collection[Role]) -> list[HeldRole]:
    """Return each of these roles, which the caller has read and the user holds, with the event of
    its last grant, its end, what the user would lose without it, and whether it is withheld.

    Looks for the grants, by the name of the role, among the user's latest GRANTS ones in the audit
    log.
    """
    verbs = [ROLE_GRANTED.audit_name, ROLE_GRANTED_UNTIL.audit_name]
    events = await Event.page(subject=user.id, verbs=verbs, limit=GRANTS, fetch=["actor"])
    grants: dict[str, Event] = {}
    for event in events:
        grants.setdefault(str(event.details.get("role")), event)
    return [
        HeldRole(
            role,
            grants.get(role.name),
            user.ends.get(role.id),
            lost_without(user, role, roles),
            is_withheld(user, role),
        )
        for role in roles
    ]


def by_permission(held: Collection[HeldRole]) -> dict[str, list[HeldRole]]:
    """Return the roles that include each permission, also withheld ones, by permission in
    alphabetical order."""
    names = sorted({permission for each in held for permission in each.role.permissions})
    return {name: [each for each in held if name in each.role.permissions] for name in names}
