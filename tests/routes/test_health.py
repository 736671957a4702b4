"""What those who watch over a worker are told, and who else is told nothing."""

import pytest
from pydantic import SecretStr
from quart import Quart

from quartapp.runtime import runtime_of
from quartapp.settings import Settings
from tests.application import Shared
from tests.routes.conftest import Town, Visitor

TOKEN = "a token for the one who scrapes"


async def test_a_worker_is_ready_until_it_leaves_and_alive_all_the_time(
    app: Quart, nobody: Visitor
) -> None:
    assert (await nobody.get("/readyz")).status == 200
    await runtime_of(app).drain()
    assert (await nobody.get("/readyz")).status == 503
    assert (await nobody.get("/livez")).status == 200


@pytest.fixture
async def visitor(shared: Shared, settings: Settings, token: str | None) -> Visitor:
    """Of an application in production, whose numbers are for whoever has the token."""
    update = {
        "quartapp_env": "production",
        "bcrypt_cost": 10,
        "metrics_token": token and SecretStr(token),
    }
    return Town(await shared.app(settings.model_copy(update=update)), "https").nobody()


@pytest.mark.parametrize(
    ("token", "said", "status"),
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
async def test_in_production_the_numbers_are_for_whoever_has_the_token(
    visitor: Visitor, said: str, status: int
) -> None:
    answer = await visitor.get("/metrics", headers={"Authorization": said})
    assert answer.status == status
    assert ("quartapp_sockets" in answer.text) is (status == 200)
