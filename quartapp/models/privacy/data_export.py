"""The export of what is stored about a person, as JSON."""

import json
from collections.abc import AsyncIterator
from datetime import datetime
from typing import Any

from bson import DBRef

from quartapp.activities import DATA_EXPORTED
from quartapp.db.mongo import Tx
from quartapp.models.accounts.user import User
from quartapp.models.audit.event import Event
from quartapp.models.authorization.transaction import authorized_transaction
from quartapp.models.base.actor import Actor
from quartapp.models.factors.factor import NAMES
from quartapp.models.privacy.person import Person, fields
from quartapp.models.privacy.personal_data import PERSONAL
from quartapp.models.roles.role import Role

ACCOUNT = (
    *("username", "email", "email_verified_at", "pending_email", "created_at"),
    *("claimed_email", "must_verify"),
    *("display_name", "about", "preferences"),
    *(
        "password_changed_at",
        "letters_asked",
        "disabled_at",
        "closes_at",
        "closed_at",
        "deletes_at",
        "seen_at",
    ),
)


async def export(user: User) -> AsyncIterator[str]:
    """Yield a JSON object with all that is stored about the person, in pieces that together are the
    text.

    `account` has the fields of the user document, the names of roles and the kinds of second
    factors; each collection in PERSONAL has a list. Reads the documents in batches, while the
    pieces are consumed.
    """
    roles = await Role.everyone()
    person = await Person.of(user, roles)
    held = [role.name for role in roles if user.holds(role)]
    document = await User.get_motor_collection().find_one({"_id": user.id}) or {}
    factors = sorted(str(NAMES[kind]) for kind in user.factors)
    ends = {person.roles[role]: at for role, at in user.ends.items() if role in person.roles}
    account = fields(*ACCOUNT)(document, person) | {"roles": held, "role_ends": ends}
    account["second_factors"] = factors
    yield f'{{\n"account": {_json(account)}'
    for personal in PERSONAL:
        yield f',\n"{personal.name}": ['
        comma = "\n"
        async for row in personal.rows(person):
            yield comma + _json(row)
            comma = ",\n"
        yield "\n]"
    yield "\n}\n"


async def record_export(user: User, *, by: Actor) -> None:
    """Record the event DATA_EXPORTED, in an authorized transaction. Raises SessionOver and
    RightsChanged.
    """

    async def work(tx: Tx) -> None:
        await Event.record(DATA_EXPORTED, by=by, subject=user.id, tx=tx)

    await authorized_transaction(by, work)


def _json(thing: Any) -> str:
    """Return the value as JSON text; dates in ISO format, ids and references as their ids."""
    return json.dumps(thing, ensure_ascii=False, default=_plain)


def _plain(value: Any) -> str:
    """Return a value that JSON does not have as a string: dates in ISO format, references as their
    ids.
    """
    if isinstance(value, datetime):
        return value.isoformat()
    return str(value.id if isinstance(value, DBRef) else value)
