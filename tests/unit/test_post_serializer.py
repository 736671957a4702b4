"""Many concurrent POST requests do not block the event loop, and its lag is measured."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from quartapp import metrics
from quartapp.jobs.loop_lag import LoopLagMonitor
from quartapp.middleware.post_serializer import PostSerializer


async def flood(method: str, path: str = "/", *, count: int = 40, seconds: float = 0.005) -> float:
    """Send many requests; return the longest time in seconds that a ready task had to wait."""

    async def app(*_: object) -> None:
        time.sleep(seconds)  # noqa: ASYNC251

    serializer: Any = PostSerializer(app)
    waits: list[float] = []

    async def watch() -> None:
        while True:
            began = time.perf_counter()
            await asyncio.sleep(0)
            waits.append(time.perf_counter() - began)

    watching = asyncio.create_task(watch())
    await asyncio.sleep(0)
    scope = {"type": "http", "method": method, "path": path}
    await asyncio.gather(*(serializer(scope, None, None) for _ in range(count)))
    watching.cancel()
    return max(waits)


async def test_concurrent_posts_start_one_per_turn_of_the_loop() -> None:
    assert await flood("POST") < 0.1
    assert await flood("GET") < 0.1
    # Exempt paths run without turns in between.
    assert await flood("GET", "/livez") >= 0.2


async def test_a_waiting_post_does_not_delay_the_next() -> None:
    begun, go = [], asyncio.Event()

    async def app(scope: dict[str, Any], *_: object) -> None:
        begun.append(scope["number"])
        await go.wait()

    serializer: Any = PostSerializer(app)
    tasks = [
        asyncio.create_task(
            serializer({"type": "http", "method": "POST", "path": "/", "number": n}, None, None)
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

    monitor, before = LoopLagMonitor(), total()
    await monitor.start()
    await asyncio.sleep(0.01)
    time.sleep(0.3)  # noqa: ASYNC251
    async with asyncio.timeout(5):
        while total() - before < 0.2:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    await monitor.stop()


async def test_a_flood_of_pages_does_not_delay_a_post() -> None:
    begun = []

    async def app(scope: dict[str, Any], *_: object) -> None:
        begun.append(scope["method"])

    serializer: Any = PostSerializer(app)
    methods = ["GET"] * 40 + ["POST"]
    scopes = [{"type": "http", "method": method, "path": "/"} for method in methods]
    gone = asyncio.create_task(serializer(scopes[0], None, None))
    tasks = [asyncio.create_task(serializer(scope, None, None)) for scope in scopes]
    await asyncio.sleep(0)
    # A request whose client has disconnected does not block the others.
    tasks[0].cancel()
    gone.cancel()
    await asyncio.gather(gone, *tasks, return_exceptions=True)
    assert begun.index("POST") <= 2
    assert len(begun) >= 40
