"""The database user of workers, with the role that docs/operations.md describes."""

from __future__ import annotations

import json
import re
from datetime import timedelta
from pathlib import Path
from typing import Any, cast

import pytest
from pydantic import SecretStr
from pymongo import AsyncMongoClient
from pymongo.errors import OperationFailure

from quartapp import clock, create_app, models
from quartapp.activities import ROLE_GRANTED
from quartapp.authority import session_states
from quartapp.authority.session_rule import Principal
from quartapp.models.audit import seal
from quartapp.models.audit.event import Event
from quartapp.models.audit.verification import Verification
from quartapp.models.base.tokens import digest_of
from quartapp.settings import Settings
from tests.faults.replicas import Node, replicas
from tests.integration.models.helpers import acting, register, role, sign_in

DOCS = Path(__file__).parents[2] / "docs" / "operations.md"
PRIVILEGE = re.compile(
    r"\{resource: \{db: \"quartapp\", collection: (\".*?\")\}, actions:\s*(\[.*?\])\}"
)
# The collection that stands for all others in the documents.
OTHERS = "users"


def documented_privileges() -> list[dict[str, Any]]:
    """Return the privileges of the role, with one for each collection of the application."""
    found = {
        json.loads(name): json.loads(actions)
        for name, actions in PRIVILEGE.findall(DOCS.read_text())
    }
    names = {cast(Any, document).Settings.name for document in models.DOCUMENTS}
    wanted = {name: found.get(name, found[OTHERS]) for name in [*sorted(names), ""]}
    return [
        {"resource": {"db": "quartapp", "collection": name}, "actions": actions}
        for name, actions in wanted.items()
    ]


async def create_users(node: Node) -> None:
    """Create the operator, and the database user of the workers with the role of the documents."""
    async with AsyncMongoClient[Any](node.uri) as first:
        await first.admin.command("createUser", "operator", pwd="secret", roles=["root"])
    operator = node.uri.replace("://", "://operator:secret@")
    async with AsyncMongoClient[Any](operator) as client:
        privileges = documented_privileges()
        await client.quartapp.command(
            "createRole", "quartappWorker", privileges=privileges, roles=[]
        )
        await client.quartapp.command(
            "createUser", "worker", pwd="secret", roles=["quartappWorker"]
        )


async def test_a_worker_with_the_documented_role_cannot_change_the_audit_log(
    tmp_path: Path,
) -> None:
    key = tmp_path / "key"
    key.touch(mode=0o600)
    key.write_text("a key that only this test uses")
    options = ("--oplogSize", "32", "--keyFile", str(key))
    async with replicas(tmp_path / "nodes", *options, count=1) as nodes:
        (node,) = nodes.nodes
        await create_users(node)
        uri = f"mongodb://worker:secret@{node.host}/?authSource=quartapp&replicaSet=faults"
        app = create_app(
            Settings.load(
                mongodb_uri=SecretStr(uri),
                mongodb_db="quartapp",
                data=tmp_path / "data",
                allow_old_mongodb=True,
            )
        )
        async with app.test_app():
            await use_the_application()


async def use_the_application() -> None:
    root, ada = await register("root", "admin"), await register("ada", "member")
    _, token = await sign_in(ada)
    moderator = await role("moderator")
    assert await ada.grant(moderator, by=acting(root), until=clock.now() + timedelta(hours=1))
    assert await ada.revoke(moderator, by=acting(root))
    assert not isinstance(await session_states.state_by_digest(digest_of(token)), Principal)
    assert await ada.grant(moderator, by=acting(root))
    while await seal.seal():
        pass
    await seal.expire_seals()
    found = Verification(set())
    assert [fault async for fault in found.faults()] == []
    assert found.newest is not None
    events = Event.get_motor_collection()
    match = {"verb": ROLE_GRANTED.audit}
    for refused in (
        events.update_one(match, {"$set": {"details.role": "admin"}}),
        events.replace_one(match, {}),
        events.delete_one(match),
        events.find_one_and_delete(match),
        events.drop(),
        events.rename("others"),
    ):
        with pytest.raises(OperationFailure, match="not authorized"):
            await refused
