"""A worker that is frozen during a revocation does not use its stale cache when it continues."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from pathlib import Path

import httpx
import pytest

from tests.conftest import PASSWORD, serving
from tests.people import Person, Server, http_client


@pytest.fixture
async def scene(tmp_path: Path) -> AsyncIterator[tuple[Server, Person, Person]]:
    """Return a server that no other test uses, with root and ada signed in."""
    async with serving(tmp_path) as server:
        await server.run(
            *("user", "create", "root", "root@example.org", "--role", "admin"), stdin=PASSWORD
        )
        async with (
            Person(server.url, "root", PASSWORD) as root,
            Person(server.url, "ada", PASSWORD) as ada,
        ):
            await root.sign_in()
            await ada.register()
            yield server, root, ada


@contextmanager
def frozen(pid: int) -> Iterator[None]:
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


async def test_a_frozen_worker_refuses_sessions_ended_meanwhile(
    scene: tuple[Server, Person, Person],
) -> None:
    server, root, ada = scene
    token = await root.csrf_token("/admin/users/ada")
    for _ in range(40):
        assert await ada.status("/api/me") == 200  # so that both workers cache her session
    async with browsers(server, 12) as clients:
        with frozen(server.worker("1")):
            alive = await answered_clients(clients)
            answer = await alive[0].post(
                "/admin/users/ada/disable",
                data={"csrf_token": token},
                headers={"Cookie": root.cookies(), "Origin": server.url},
            )
            assert answer.status_code == 303
            acknowledged = time.monotonic()
            # Some of these wait at the frozen worker, which answers them first when it continues.
            async with browsers(server, 24, warm=False) as others:
                waiting = [asyncio.create_task(ask(other, ada)) for other in others]
                await asyncio.wait(waiting, timeout=1)
                late = [task for task in waiting if not task.done()]
                assert late, "no request went to the frozen worker"
                os.kill(server.worker("1"), signal.SIGCONT)
                answers = await asyncio.gather(*waiting)
    assert all(began > acknowledged for began, _ in answers)
    assert {status for _, status in answers} == {401}


@asynccontextmanager
async def browsers(
    server: Server, count: int, *, warm: bool = True
) -> AsyncIterator[list[httpx.AsyncClient]]:
    """Open clients with one connection each, for which the kernel chooses a worker."""
    async with AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(http_client(server.url)) for _ in range(count)]
        if warm:
            await asyncio.gather(*(client.get("/livez") for client in clients))
        yield clients


async def answered_clients(clients: list[httpx.AsyncClient]) -> list[httpx.AsyncClient]:
    async def is_answered(client: httpx.AsyncClient) -> bool:
        try:
            return (await client.get("/livez", timeout=1)).status_code == 200
        except httpx.TimeoutException:
            return False

    answered = await asyncio.gather(*map(is_answered, clients))
    alive = [client for client, yes in zip(clients, answered, strict=True) if yes]
    assert 0 < len(alive) < len(clients), "the connections are all with one worker"
    return alive


async def ask(client: httpx.AsyncClient, ada: Person) -> tuple[float, int]:
    began = time.monotonic()
    answer = await client.get("/api/me", headers={"Cookie": ada.cookies()})
    return began, answer.status_code
