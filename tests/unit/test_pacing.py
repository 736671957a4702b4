"""A flood of forms leaves turns of the loop to everything else, and the lag is measured (P10)."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from quartapp import metrics
from quartapp.jobs.loop_lag import LoopLagMonitor
from quartapp.middleware.post_serializer import PostSerializer


async def flood(method: str, path: str = "/", *, count: int = 40, seconds: float = 0.005) -> float:
    """How long a task that is always ready was kept from its turn at most, in seconds."""

    async def app(*_: object) -> None:
        time.sleep(seconds)  # noqa: ASYNC251

    paced: Any = PostSerializer(app)
    waits: list[float] = []

    async def watch() -> None:
        while True:
            began = time.perf_counter()
            await asyncio.sleep(0)
            waits.append(time.perf_counter() - began)

    watcher = asyncio.create_task(watch())
    await asyncio.sleep(0)
    scope = {"type": "http", "method": method, "path": path}
    await asyncio.gather(*(paced(scope, None, None) for _ in range(count)))
    watcher.cancel()
    return max(waits)


async def test_of_many_posts_at_once_one_begins_in_each_turn() -> None:
    assert await flood("POST") < 0.1
    assert await flood("GET") < 0.1
    # What is not paced is run in one go.
    assert await flood("GET", "/livez") >= 0.2


async def test_a_post_that_waits_lets_the_next_begin() -> None:
    begun, go = [], asyncio.Event()

    async def app(scope: dict[str, Any], *_: object) -> None:
        begun.append(scope["number"])
        await go.wait()

    paced: Any = PostSerializer(app)
    tasks = [
        asyncio.create_task(
            paced({"type": "http", "method": "POST", "path": "/", "number": n}, None, None)
        )
        for n in range(10)
    ]
    async with asyncio.timeout(5):
        while len(begun) < 10:  # noqa: ASYNC110
            await asyncio.sleep(0)
    assert begun == list(range(10))
    go.set()
    await asyncio.gather(*tasks)


async def test_the_lag_of_the_loop_is_measured() -> None:
    def total() -> float:
        (family,) = metrics.LOOP_LAG.collect()
        return next(s.value for s in family.samples if s.name.endswith("_sum"))

    pulse, before = LoopLagMonitor(), total()
    await pulse.start()
    await asyncio.sleep(0.01)
    time.sleep(0.3)  # noqa: ASYNC251
    async with asyncio.timeout(5):
        while total() - before < 0.2:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    await pulse.stop()


async def test_a_flood_of_pages_does_not_delay_a_post() -> None:
    begun = []

    async def app(scope: dict[str, Any], *_: object) -> None:
        begun.append(scope["method"])

    paced: Any = PostSerializer(app)
    methods = ["GET"] * 40 + ["POST"]
    scopes = [{"type": "http", "method": method, "path": "/"} for method in methods]
    gone = asyncio.create_task(paced(scopes[0], None, None))
    tasks = [asyncio.create_task(paced(scope, None, None)) for scope in scopes]
    await asyncio.sleep(0)
    # One whose client has hung up holds up nobody.
    tasks[0].cancel()
    gone.cancel()
    await asyncio.gather(gone, *tasks, return_exceptions=True)
    assert begun.index("POST") <= 2
    assert len(begun) >= 40
