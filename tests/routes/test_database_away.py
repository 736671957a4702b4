"""Without a database, requests are answered 503 in bounded time and accept no session."""

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from pydantic import SecretStr

from quartapp import create_app
from quartapp.authority import lease
from quartapp.db import embedded
from quartapp.settings import Settings
from tests.people import until
from tests.routes.conftest import Town

SECONDS = 15


@pytest.fixture
async def mongod(tmp_path: Path) -> AsyncIterator[int]:
    """A mongod of this test's own, to be frozen; its process."""
    async with embedded.running(tmp_path):
        process = embedded.Place(tmp_path).process()
        assert process
        yield process
        os.kill(process, signal.SIGCONT)


@pytest.fixture
async def town(mongod: int, tmp_path: Path) -> AsyncIterator[Town]:
    settings = Settings.load(
        mongodb_uri=SecretStr(embedded.Place(tmp_path).uri),
        data=tmp_path,
        bcrypt_cost=4,
        live_sweep_seconds=1,
    )
    app = create_app(settings)
    async with app.test_app():
        yield Town(app)
        # The lifespan ends with the database awake.
        os.kill(mongod, signal.SIGCONT)


async def freeze(process: int) -> None:
    """Returns once it has stopped: until then it may still answer."""
    os.kill(process, signal.SIGSTOP)

    async def stopped() -> bool:
        tasks = Path(f"/proc/{process}/task").glob("*/stat")  # noqa: ASYNC240
        return all(task.read_text().rpartition(")")[2].split()[0] == "T" for task in tasks)

    await until(stopped)


async def test_a_frozen_database_is_503_everywhere_in_time_and_then_all_is_well_again(
    town: Town, mongod: int
) -> None:
    nobody, ada, root = town.nobody(), await town.member(), await town.admin()
    token = await ada.csrf_token()
    visit = await nobody.csrf_token()
    await freeze(mongod)
    await asyncio.sleep(lease.SECONDS)
    start = time.monotonic()
    async with asyncio.timeout(SECONDS):
        answers = await asyncio.gather(
            *(ada.get(page) for page in ("/", "/account", "/account/sessions", "/api/me")),
            *(root.get(page) for page in ("/admin/users", "/admin/events")),
            nobody.get("/posts"),
            nobody.get("/readyz"),
            ada.send("/posts/new", {"csrf_token": token, "title": "A", "body": "B"}),
            ada.send("/logout", {"csrf_token": token}),
            nobody.send("/login", {"csrf_token": visit, "login": "ada", "password": ada.password}),
        )
    assert time.monotonic() - start < SECONDS
    for answer in answers:
        assert answer.status == 503, answer.text
        assert "data-username" not in answer.text
        assert "mongod" not in answer.text
    assert "Retry-After" in answers[0].headers
    assert "Database unavailable" in answers[0].text
    # What needs no database goes on, and is quick.
    async with asyncio.timeout(1):
        assert (await nobody.get("/livez")).status == 200
        assert (await nobody.get("/static/app.css")).status == 200
    os.kill(mongod, signal.SIGCONT)

    async def ready() -> bool:
        return (await nobody.get("/readyz")).status == 200

    await until(ready, within=SECONDS)
    assert (await root.get("/admin/users")).status == 200
    # A log-out that was answered with 503 has happened or has not; either way nothing is broken.
    assert (await ada.get("/account")).status in (200, 302)
    assert (await nobody.get("/posts")).status == 200
