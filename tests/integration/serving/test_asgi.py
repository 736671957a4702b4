"""`hypercorn asgi:app` without `quartapp serve` has the same protections and metrics."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import subprocess
import sys
import tomllib
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
import websockets
from websockets.asyncio.client import connect

from quartapp.serving import worker_process
from quartapp.settings import Settings
from tests.conftest import PASSWORD
from tests.integration.flows.test_http_framing import HOST, TO_HTTP_2, send_raw
from tests.people import Person, until

ROOT = Path(__file__).parents[3]


@pytest.fixture
async def url(settings: Settings, tmp_path: Path) -> AsyncIterator[str]:
    """Return the URL of plain hypercorn with two workers that share a metrics folder."""
    assert settings.mongodb_uri
    (metrics := tmp_path / "metrics").mkdir()
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "hypercorn", "asgi:app", "--bind", "127.0.0.1:0", "--workers", "2"),
        cwd=ROOT,
        env={
            **os.environ,
            "MONGODB_URI": settings.mongodb_uri.get_secret_value(),
            "MONGODB_DB": settings.mongodb_db,
            "QUARTAPP_DATA": str(settings.data),
            "BCRYPT_COST": "4",
            "PROMETHEUS_MULTIPROC_DIR": str(metrics),
        },
        stderr=asyncio.subprocess.PIPE,
    )
    assert process.stderr
    output = ""
    try:
        async with asyncio.timeout(40):
            while not (found := re.search(r"Running on (\S+)", output)):
                output += (await process.stderr.readuntil(b"\n")).decode()
        yield found[1]
    finally:
        process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(30):
            await process.communicate()


async def test_plain_hypercorn_refuses_compression_and_http_2(url: str) -> None:
    async with Person(url, "ada", PASSWORD) as ada:
        await ada.register()
        async with connect(
            url.replace("http", "ws", 1) + "/ws",
            origin=websockets.Origin(url),
            additional_headers={"Cookie": ada.cookies()},
            compression="deflate",
        ) as socket:
            assert socket.response
            assert "Sec-WebSocket-Extensions" not in socket.response.headers
    output = await send_raw(url, ["GET /livez HTTP/1.1", HOST, *TO_HTTP_2])
    assert output.startswith(b"HTTP/1.1 200")


def test_plain_hypercorn_reports_an_invalid_setting_in_one_line() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "hypercorn", "asgi:app", "--bind", "127.0.0.1:0"],
        cwd=ROOT,
        env={**os.environ, "BCRYPT_COST": "canary"},
        capture_output=True,
        text=True,
        timeout=40,
    )
    assert done.stderr == "quartapp: BCRYPT_COST: write a whole number from 4 to 16\n"


async def test_metrics_of_plain_hypercorn_workers_are_summed(url: str) -> None:
    async def metric(name: str) -> float:
        # Either worker may answer, since the connection is new.
        async with httpx.AsyncClient(base_url=url) as client:
            text = (await client.get("/metrics")).text
        found = re.search(rf"^{re.escape(name)} (\S+)", text, re.MULTILINE)
        return float(found[1]) if found else 0.0

    async def both_serve() -> bool:
        return await metric("quartapp_change_streams") == 2

    await until(both_serve)
    answers = 'quartapp_requests_total{method="GET",status="404"}'
    for asked in range(1, 9):
        async with httpx.AsyncClient(base_url=url) as client:
            assert (await client.get("/nowhere")).status_code == 404
        assert await metric(answers) == asked


def test_the_documented_hypercorn_settings_match_the_launcher() -> None:
    """hypercorn reads them from a file only, and ignores unknown names in it."""
    page = (ROOT / "docs/operations.md").read_text()
    documented = re.search(r"```toml\n(.*?)```", page, re.DOTALL)
    assert documented
    only_of_the_launcher = {"_bind", "backlog", "accesslog", "errorlog"}
    settings = vars(worker_process._config(0)).items()
    assert tomllib.loads(documented[1]) == {
        k: v for k, v in settings if k not in only_of_the_launcher
    }
