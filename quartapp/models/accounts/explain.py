"""Why a user has a permission: through which roles, since when, and who granted them."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime

from quartapp.activities import ROLE_GRANTED, ROLE_GRANTED_UNTIL
from quartapp.models.accounts.preview import lost_without
from quartapp.models.accounts.user import User
from quartapp.models.audit.event import Event
from quartapp.models.roles.role import Role

# How many grants of the audit log are read, the latest first.
GRANTS = 100


@dataclass(frozen=True)
class HeldRole:
    """A role of a user. `grant` is the audit event of the last grant, None if the log has none:
    then the user got the role with the account, or from another program.

    `lost` are the permissions that no other role of the user gives. `withheld` says that the role
    requires a second factor and the user has none, so that it allows nothing.
    """

    role: Role
    grant: Event | None
    lost: Sequence[str]
    withheld: bool

    @property
    def since(self) -> datetime | None:
        return self.grant.at if self.grant else None


async def held_roles(user: User, roles: Collection[Role]) -> list[HeldRole]:
    """Return each of the user's roles, which the caller has read, with the event of its last grant,
    the permissions that only it gives, and whether it waits for a second factor.

    Looks for the grants among the user's latest GRANTS ones, by the name of the role.
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
            lost_without(role, roles),
            withheld=role.requires_factor and not user.factors,
        )
        for role in roles
    ]


def by_permission(held: Collection[HeldRole]) -> dict[str, list[HeldRole]]:
    """Return the roles that include each permission, also withheld ones, by permission in
    alphabetical order."""
    names = sorted({permission for each in held for permission in each.role.permissions})
    return {name: [each for each in held if name in each.role.permissions] for name in names}
