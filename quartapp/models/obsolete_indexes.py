"""Indexes that earlier versions created and this one does not use."""

from quartapp.models.base.record import documents
from quartapp.models.base.references import SESSIONS, USERS

# By collection. `models.prepare` leaves them, because an earlier version that is still running uses
# them.
OBSOLETE = {
    SESSIONS: ("by_use", "by_user", "by_address"),
    USERS: ("with_role",),
}


async def drop_obsolete() -> list[str]:
    """Drop the indexes in OBSOLETE that exist, and return their names, such as "sessions.by_use".

    For when no worker of an earlier version runs any more. Can be repeated.
    """
    dropped = []
    for collection, names in OBSOLETE.items():
        existing = await documents(collection).index_information()
        for name in names:
            if name in existing:
                await documents(collection).drop_index(name)
                dropped.append(f"{collection}.{name}")
    return dropped
