"""Forms that name a role which is deleted while they are sent."""

from __future__ import annotations

import pytest

from quartapp.models import Role
from quartapp.models.base.actor import SYSTEM
from tests.integration.routes.conftest import Visitor, contents

FORMS = {
    "/account/roles": {"role": "writer", "reason": "For the print run."},
    "/admin/users/new": {"username": "eve", "email": "eve@example.org", "role": "writer"},
    "/admin/users/ada/grants": {"role": "writer", "until": "2h"},
    "/admin/invitations": {"email": "eve@example.org", "role": "writer"},
}


@pytest.mark.parametrize("path", FORMS)
async def test_a_role_deleted_meanwhile_is_named_and_loses_nothing_typed(
    root: Visitor, ada: Visitor, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    writer = await Role.add("writer", "", [], by=SYSTEM)
    read = Role.everyone

    async def read_and_delete() -> list[Role]:
        roles = await read()
        await Role.erase(writer.id)
        return roles

    visitor = ada if path == "/account/roles" else root
    typed = FORMS[path]
    before = await contents()
    monkeypatch.setattr(Role, "everyone", read_and_delete)
    answer = await visitor.post(path, **typed)
    assert answer.status == 422
    assert "The role writer was deleted in the meantime." in answer.text
    for name in typed.keys() - {"role"}:
        assert answer.fields[name] == typed[name]
    after = await contents()
    for name in ("users", "invitations", "role_requests", "outbox"):
        assert before.get(name) == after.get(name)
