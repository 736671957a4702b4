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
from tests.integration.routes.conftest import Visitors
from tests.people import until

SECONDS = 15


@pytest.fixture
async def mongod(tmp_path: Path) -> AsyncIterator[int]:
    """A mongod of this test, to be frozen, and its process."""
    async with embedded.running(tmp_path):
        process = embedded.DataFolder(tmp_path).mongod_pid()
        assert process
        yield process
        os.kill(process, signal.SIGCONT)


@pytest.fixture
async def visitors(mongod: int, tmp_path: Path) -> AsyncIterator[Visitors]:
    settings = Settings.load(
        mongodb_uri=SecretStr(embedded.DataFolder(tmp_path).uri),
        data=tmp_path,
        bcrypt_cost=4,
        live_sweep_seconds=1,
    )
    app = create_app(settings)
    async with app.test_app():
        yield Visitors(app)
        # The application stops while the database is running.
        os.kill(mongod, signal.SIGCONT)


async def freeze(process: int) -> None:
    """Stop the process and wait until it has stopped."""
    os.kill(process, signal.SIGSTOP)

    async def stopped() -> bool:
        tasks = Path(f"/proc/{process}/task").glob("*/stat")  # noqa: ASYNC240
        return all(task.read_text().rpartition(")")[2].split()[0] == "T" for task in tasks)

    await until(stopped)


async def test_a_frozen_database_is_answered_with_503_until_it_recovers(
    visitors: Visitors, mongod: int
) -> None:
    anonymous, ada, root = visitors.anonymous(), await visitors.member(), await visitors.admin()
    token = await ada.csrf_token()
    visit = await anonymous.csrf_token()
    await freeze(mongod)
    await asyncio.sleep(lease.LEASE_SECONDS)
    start = time.monotonic()
    async with asyncio.timeout(SECONDS):
        answers = await asyncio.gather(
            *(ada.get(page) for page in ("/", "/account", "/account/sessions", "/api/me")),
            *(root.get(page) for page in ("/admin/users", "/admin/events")),
            anonymous.get("/posts"),
            anonymous.get("/readyz"),
            ada.send("/posts/new", {"csrf_token": token, "title": "A", "body": "B"}),
            ada.send("/logout", {"csrf_token": token}),
            anonymous.send(
                "/login", {"csrf_token": visit, "login": "ada", "password": ada.password}
            ),
        )
    assert time.monotonic() - start < SECONDS
    for answer in answers:
        assert answer.status == 503, answer.text
        assert "data-username" not in answer.text
        assert "mongod" not in answer.text
    assert "Retry-After" in answers[0].headers
    assert "Database unavailable" in answers[0].text
    # Requests without a database query are answered quickly.
    async with asyncio.timeout(1):
        assert (await anonymous.get("/livez")).status == 200
        assert (await anonymous.get("/static/app.css")).status == 200
    os.kill(mongod, signal.SIGCONT)

    async def ready() -> bool:
        return (await anonymous.get("/readyz")).status == 200

    await until(ready, within=SECONDS)
    assert (await root.get("/admin/users")).status == 200
    # A sign-out that was answered with 503 may have happened or not.
    assert (await ada.get("/account")).status in (200, 302)
    assert (await anonymous.get("/posts")).status == 200
