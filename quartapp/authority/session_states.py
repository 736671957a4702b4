"""Reading sessions with their users and roles, and judging them by the session rule.

A session that is found to be over is marked as ended, so that the rule and the data agree.
"""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from beanie import PydanticObjectId
from bson import DBRef

from quartapp import clock
from quartapp.authority.session_rule import (
    EndedSession,
    Principal,
    PrincipalOrEnded,
    state_of,
    state_of_deleted,
    stored_detail,
    stored_reason,
)
from quartapp.db import mongo
from quartapp.log import log
from quartapp.models.accounts.user import User
from quartapp.models.base.actor import SYSTEM
from quartapp.models.base.references import role_ref
from quartapp.models.roles.deletion import RoleDeletion
from quartapp.models.sessions.reason import EndDetail, Reason
from quartapp.models.sessions.session import Session, mark_ended

QUERY_TIMEOUT_MS = 2000


async def state_by_digest(digest: str) -> PrincipalOrEnded | None:
    """Return the state of the session with this token digest, or None if there is no such session.

    Has the effects of `states_matching`, and raises the driver's errors.
    """
    found = await states_matching({"digest": digest})
    return found[0] if found else None


async def state_by_id(session_id: PydanticObjectId) -> PrincipalOrEnded | None:
    """Return the state of the session with this id, or None if there is no such session.

    Has the effects of `states_matching`, and raises the driver's errors.
    """
    found = await states_matching({"_id": session_id})
    return found[0] if found else None


async def states_matching(match: Mapping[str, Any]) -> list[PrincipalOrEnded]:
    """Return the states of all sessions that match the filter, read with one query, or with three
    if one of their users has a link to a role that does not exist.

    Before it returns it writes two things. A session that is over by the rule, but not marked as
    ended, is marked so with the reason; no user is named as the one who ended it, unless a role was
    deleted. A role that the user holds and the session does not list yet is added to the session:
    the session ends when the user loses that role, also if another program takes it away.

    A malformed document is logged as `session_not_understood`, and its session counts as deleted.
    Raises the driver's errors; the query is given up after QUERY_TIMEOUT_MS.
    """
    now = clock.now()
    sessions = Session.get_motor_collection().with_options(
        read_concern=mongo.current_read_concern()
    )
    rows = await sessions.aggregate(_pipeline(match), maxTimeMS=QUERY_TIMEOUT_MS).to_list(None)
    await _add_role_deletions(rows)
    evaluated = [(row, _state_or_deleted(row, now)) for row in rows]
    over: dict[tuple[Reason, EndDetail | None], list[PydanticObjectId]] = {}
    deleted: dict[PydanticObjectId, tuple[RoleDeletion, list[PydanticObjectId]]] = {}
    for row, state in evaluated:
        if isinstance(state, Principal):
            await _record_new_roles(row, state)
        elif (deletion := row.get("deletion")) and state.reason is Reason.ROLE_DELETED:
            deleted.setdefault(deletion.id, (deletion, []))[1].append(state.session_id)
        elif row.get("ended_at") is None:
            why = state.reason, state.because
            over.setdefault(why, []).append(state.session_id)
    for (reason, because), ids in over.items():
        await mark_ended({"_id": {"$in": ids}}, reason, by=SYSTEM, because=because)
    for deletion, ids in deleted.values():
        match = {"_id": {"$in": ids}, "ended_at": None}
        await Session.change_all(match, {"$set": deletion.end_fields})
    return [state for _, state in evaluated]


async def _add_role_deletions(rows: Sequence[dict[str, Any]]) -> None:
    """Add to each row of a session that is not marked as ended, in `deletion`, the first deletion
    of a role to which the session or its user has a link; and in `deleter`, who deleted it.

    Makes no query if all of these roles exist.
    """
    missing = {row["_id"]: _missing_roles(row) for row in rows if row.get("ended_at") is None}
    if not any(missing.values()):
        return
    deletions = await RoleDeletion.of_roles(set().union(*missing.values()))
    users = User.get_motor_collection()
    by = [deletion.by_id for deletion in deletions]
    deleters = await users.find({"_id": {"$in": by}}, {"username": 1}).to_list(None)
    for row in rows:
        found = [each for each in deletions if each.id in missing.get(row["_id"], ())]
        if found:
            row["deletion"] = first = min(found, key=lambda deletion: deletion.at)
            row["deleter"] = [user for user in deleters if user["_id"] == first.by_id]


def _missing_roles(row: Mapping[str, Any]) -> set[PydanticObjectId]:
    """Return the ids of the roles that the session or its user links, and that were not found."""
    found = {role["_id"] for role in row.get("held", ())}
    documents = [row, *row.get("holder", ())]
    lists = [document.get("roles") for document in documents]
    links = [link for roles in lists if isinstance(roles, list) for link in roles]
    return {link.id for link in links if isinstance(link, DBRef)} - found


async def ended_sessions_from_updates(
    updates: Mapping[PydanticObjectId, Mapping[str, Any]],
    *,
    users: Mapping[PydanticObjectId, PydanticObjectId],
    names: dict[PydanticObjectId, str],
) -> list[EndedSession]:
    """Return the sessions that ended, built from the updates that ended them, without reading the
    sessions: a session that has ended stays ended.

    `updates` has the updated fields, and `users` the id of the user, by session id. `names` is a
    cache of usernames by user id: the names of the users who ended the sessions are added to it,
    with one query, if they are missing. Raises the driver's errors, and KeyError or ValueError for
    fields of a wrong form.
    """
    enders = {link.id for fields in updates.values() if (link := fields.get("ended_by"))}
    if unknown := list(enders - names.keys()):
        collection = User.get_motor_collection()
        async for row in collection.find({"_id": {"$in": unknown}}, {"username": 1}):
            names[row["_id"]] = row["username"]
    return [
        EndedSession(
            session_id=session_id,
            user_id=users[session_id],
            reason=stored_reason(fields),
            by=names.get(link.id) if (link := fields.get("ended_by")) else None,
            at=clock.as_utc(fields["ended_at"]),
            event=link.id if (link := fields.get("ended_event")) else None,
            ender=link.id if (link := fields.get("ended_by")) else None,
            because=stored_detail(fields),
        )
        for session_id, fields in updates.items()
    ]


def _state_or_deleted(row: Mapping[str, Any], now: datetime) -> PrincipalOrEnded:
    """Return the state by the rule, or that of a deleted session if the document is malformed.

    A malformed document, which another program has written, is logged as `session_not_understood`,
    so that it does not prevent the evaluation of the other sessions.
    """
    try:
        return state_of(row, now)
    except (AttributeError, KeyError, TypeError, ValueError, OverflowError):
        log.exception("session_not_understood", session=str(row["_id"]))
        return state_of_deleted(row["_id"], getattr(row.get("user"), "id", row["_id"]))


async def _record_new_roles(row: Mapping[str, Any], state: Principal) -> None:
    """Add the roles that the user holds and the session does not list to the session.

    Writes nothing if there are none, or if the session has ended.
    """
    known = {link.id for link in row.get("roles", ())}
    fresh = [role_ref(role.id) for role in state.held if role.id not in known]
    if fresh:
        await Session.change(
            {"_id": row["_id"], "ended_at": None}, {"$addToSet": {"roles": {"$each": fresh}}}
        )


def _pipeline(match: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the aggregation that reads matching sessions as `state_of` needs them."""
    users, username = User.Settings.name, {"$project": {"username": 1}}
    return [
        {"$match": dict(match)},
        {
            "$lookup": {
                "from": users,
                "localField": "user.$id",
                "foreignField": "_id",
                "as": "holder",
            }
        },
        {
            "$lookup": {
                "from": "roles",
                "localField": "holder.roles.$id",
                "foreignField": "_id",
                "as": "held",
            }
        },
        {
            "$lookup": {
                "from": users,
                "localField": "ended_by.$id",
                "foreignField": "_id",
                "pipeline": [username],
                "as": "ender",
            }
        },
        {
            "$lookup": {
                "from": users,
                "localField": "holder.authz_by.$id",
                "foreignField": "_id",
                "pipeline": [username],
                "as": "changer",
            }
        },
        {
            "$lookup": {
                "from": users,
                "localField": "held.changed_by.$id",
                "foreignField": "_id",
                "pipeline": [username],
                "as": "editors",
            }
        },
    ]
