"""Health probes and metrics."""

import json

import pytest
from pydantic import SecretStr
from quart import Quart

from quartapp.runtime import runtime_of
from quartapp.settings import Settings
from tests.application import Shared
from tests.integration.routes.conftest import Visitor, Visitors

TOKEN = "a token for the one who scrapes"


async def test_a_draining_worker_is_alive_and_not_ready(app: Quart, anonymous: Visitor) -> None:
    assert (await anonymous.get("/readyz")).status == 200
    await runtime_of(app).drain()
    assert (await anonymous.get("/readyz")).status == 503
    assert (await anonymous.get("/livez")).status == 200


async def test_a_worker_without_the_change_stream_is_not_ready(
    app: Quart, anonymous: Visitor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runtime_of(app).change_stream, "live", False)
    answer = await anonymous.get("/readyz")
    assert (answer.status, json.loads(answer.text)) == (503, {"status": "no change stream"})


@pytest.fixture
async def visitor(shared: Shared, settings: Settings, token: str | None) -> Visitor:
    """A visitor of an application in production, whose metrics require a token."""
    update = {
        "quartapp_env": "production",
        "bcrypt_cost": 10,
        "metrics_token": token and SecretStr(token),
    }
    return Visitors(await shared.app(settings.model_copy(update=update)), "https").anonymous()


@pytest.mark.parametrize(
    ("token", "header", "status"),
    [
        (TOKEN, f"Bearer {TOKEN}", 200),
        (TOKEN, f"Bearer {TOKEN}x", 404),
        (TOKEN, "Bearer ", 404),
        (TOKEN, "", 404),
        (TOKEN, "Bearer \xff", 404),
        (None, "", 404),
        (None, "Bearer ", 404),
    ],
)
async def test_metrics_require_the_token_in_production(
    visitor: Visitor, header: str, status: int
) -> None:
    answer = await visitor.get("/metrics", headers={"Authorization": header})
    assert answer.status == status
    assert ("quartapp_sockets" in answer.text) is (status == 200)
