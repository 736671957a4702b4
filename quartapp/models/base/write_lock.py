"""Locks: documents that transactions write so that two of them conflict.

Two transactions that each remove one of the last two administrators read the other administrator as
still there, and both would commit (write skew). As both write one document, MongoDB lets one commit
and the other run again. Likewise for invitations, whose number is limited.

The lock of the roles is shared or exclusive. It consists of ROLE_LOCKS: a transaction of a user
writes one of them, and a transaction that changes or deletes a role writes them all. So the latter
conflicts with every transaction that may rely on a role, and these seldom with each other.
"""

import random

from quartapp.db.mongo import Tx
from quartapp.models.base.record import Record

ADMINISTRATORS = "administrators"
INVITATIONS = "invitations"
ROLE_LOCKS = tuple(f"roles-{number}" for number in range(64))
ALL_LOCKS = (ADMINISTRATORS, INVITATIONS, *ROLE_LOCKS)


class WriteLock(Record):
    """One lock. `changes` counts the transactions that held it, and `acts` those that shared it.

    The collection keeps the name that earlier versions gave it: workers of two versions that run at
    the same time must write the same documents.
    """

    id: str  # type: ignore[assignment]
    changes: int = 0
    acts: int = 0

    class Settings:
        name = "guards"


async def hold_administrators(tx: Tx) -> None:
    """Increment the lock document of the administrators, so that other transactions that do so
    conflict.

    Call it in the transaction before counting administrators. Does not wait: of two transactions at
    once, MongoDB aborts one, and `transaction` runs it again. Without the document, which
    `models.prepare` inserts, it does nothing.
    """
    await WriteLock.change({"_id": ADMINISTRATORS}, {"$inc": {"changes": 1}}, tx=tx)


async def hold_invitations(tx: Tx) -> None:
    """Increment the lock document of the invitations, so that other transactions that do so
    conflict.

    Call it in the transaction before counting invitations. Does not wait: of two transactions at
    once, MongoDB aborts one, and `transaction` runs it again. Without the document, which
    `models.prepare` inserts, it does nothing.
    """
    await WriteLock.change({"_id": INVITATIONS}, {"$inc": {"changes": 1}}, tx=tx)


async def hold_roles(tx: Tx) -> None:
    """Increment all documents of ROLE_LOCKS, so that every transaction that shares the roles
    conflicts with this one.

    Call it in a transaction that changes or deletes a role. Of two transactions that conflict,
    MongoDB aborts one, and `transaction` runs it again, so that it sees what the other has written.
    """
    await WriteLock.change_all({"_id": {"$in": ROLE_LOCKS}}, {"$inc": {"changes": 1}}, tx=tx)


async def share_roles(tx: Tx) -> None:
    """Increment one document of ROLE_LOCKS, chosen at random.

    Call it at the end of a transaction that relies on the roles of a user. It then commits only if
    no role was changed or deleted since it began. Two such transactions conflict only if they have
    the same document and commit at the same moment.
    """
    lock = random.choice(ROLE_LOCKS)  # noqa: S311
    await WriteLock.change({"_id": lock}, {"$inc": {"acts": 1}}, tx=tx)
