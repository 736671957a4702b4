"""The database documents and the operations on them. No module in this package imports Quart.

`DOCUMENTS` lists all document classes; `prepare` brings the database up to date at the start.
"""

from contextlib import suppress
from typing import Any

from beanie import Document
from pymongo.errors import BulkWriteError, DuplicateKeyError, OperationFailure

from quartapp.db import mongo
from quartapp.db.mongo import error_summary
from quartapp.i18n import DEFAULT, use_locale
from quartapp.log import log
from quartapp.models.accounts import canonical
from quartapp.models.accounts.bulk_action import BulkAction
from quartapp.models.accounts.one_time_token import Token
from quartapp.models.accounts.user import User
from quartapp.models.audit.event import Event
from quartapp.models.audit.event_receipts import EventReceipts
from quartapp.models.audit.seal import Seal, UnsealedEntry
from quartapp.models.base.actor import SYSTEM
from quartapp.models.base.write_lock import ALL_LOCKS, WriteLock
from quartapp.models.cluster.acknowledgement import Acknowledgement
from quartapp.models.cluster.barrier_mark import BarrierMark
from quartapp.models.cluster.worker import Worker
from quartapp.models.email.mailbox import Mailbox
from quartapp.models.email.outbox import Mail
from quartapp.models.factors.passkey import Answered, Passkey
from quartapp.models.invitations.invitation import Invitation
from quartapp.models.limits.counter import Counter
from quartapp.models.limits.failed_attempts import FailedAttempts
from quartapp.models.limits.hash_cost import Cost
from quartapp.models.notifications.notice import Notice
from quartapp.models.posts import search
from quartapp.models.posts.comment import Comment
from quartapp.models.posts.draft import PostDraft
from quartapp.models.posts.post import Post
from quartapp.models.roles.deletion import RoleDeletion
from quartapp.models.roles.request import RoleRequest
from quartapp.models.roles.role import Role
from quartapp.models.sessions.session import Session
from quartapp.models.statistics.hourly_count import HourlyCount
from quartapp.policy import BUILT_IN_ROLES, DEFAULT_ROLES, MANAGEMENT_PERMISSIONS
from quartapp.settings import StartError

DOCUMENTS: list[type[Document]] = [
    Role,
    RoleDeletion,
    RoleRequest,
    User,
    Session,
    Notice,
    Event,
    EventReceipts,
    UnsealedEntry,
    Seal,
    Post,
    Comment,
    PostDraft,
    Token,
    Mail,
    Mailbox,
    Invitation,
    BulkAction,
    Passkey,
    Answered,
    WriteLock,
    Counter,
    FailedAttempts,
    Cost,
    Worker,
    BarrierMark,
    Acknowledgement,
    HourlyCount,
]

# Resolve the references of models.base.references, now that all classes exist.
_LINKED = {"User": User, "Role": Role, "Passkey": Passkey, "Event": Event}
for document in DOCUMENTS:
    document.model_rebuild(_types_namespace=_LINKED)


async def prepare() -> None:
    """Create the indexes, lock documents and built-in roles that are missing. Runs at every start.

    In this order: creates the indexes of all collections, inserts missing write locks, sets the
    canonical usernames and addresses where they are missing (logging `canonical_conflict` for each
    that two accounts share), sets the words of posts where they are missing, inserts missing
    built-in roles, removes the management permissions from the roles that new accounts receive, and
    adds to the role `admin` the permissions that this version brings.

    Several processes may run it at once. Never drops an index, because an older version that is
    still running may need it: see `models.obsolete_indexes`. Raises StartError if an index cannot
    be built, for example because there are duplicates.
    """
    for document in DOCUMENTS:
        settings: Any = document.get_settings()
        indexes = [index.index for index in settings.indexes]
        try:
            if indexes:
                await mongo.build_indexes(document.get_collection_name(), indexes)
        except OperationFailure as error:
            name = document.get_collection_name()
            raise StartError(
                f"cannot build the indexes of {name}: {error_summary(error)}"
            ) from None
    await _add_locks()
    for conflict in await canonical.fill_in():
        log.error("canonical_conflict", trouble=str(conflict))
    await search.fill_in()
    for name, (description, permissions) in BUILT_IN_ROLES.items():
        if await Role.named(name) is None:
            with use_locale(DEFAULT):
                text = str(description)
            await _insert_once(Role(name=name, description=text, permissions=sorted(permissions)))
    await _forbid_management_by_default()
    # The role `admin` has all permissions, also those that are new in this version.
    await Role.change(
        {"name": "admin"},
        {"$addToSet": {"permissions": {"$each": sorted(BUILT_IN_ROLES["admin"][1])}}},
    )


async def _add_locks() -> None:
    """Insert the write locks that are missing, in one write. Other processes may do so too."""
    stored = {lock.id async for lock in WriteLock.find({})}
    if missing := [WriteLock(id=lock) for lock in ALL_LOCKS if lock not in stored]:
        with suppress(BulkWriteError):
            await WriteLock.insert_many(missing, ordered=False)


async def _forbid_management_by_default() -> None:
    """Remove the permissions of MANAGEMENT_PERMISSIONS from the roles that new accounts receive.

    Earlier versions let administrators add them. Uses `Role.edit`, so the permissions of the users
    who hold the role change too, and the audit log has an entry. Logs `default_role_restricted`.
    """
    for name in DEFAULT_ROLES:
        role = await Role.named(name)
        if role is None or not role.manages:
            continue
        await role.edit(
            name=role.name,
            description=role.description,
            permissions=set(role.known) - MANAGEMENT_PERMISSIONS,
            by=SYSTEM,
        )
        removed = sorted(MANAGEMENT_PERMISSIONS.intersection(role.permissions))
        log.warning("default_role_restricted", role=role.name, removed=removed)


async def _insert_once(document: Document) -> None:
    """Insert the document. Does nothing if another process has inserted it in the meantime."""
    with suppress(DuplicateKeyError):
        await document.insert()
