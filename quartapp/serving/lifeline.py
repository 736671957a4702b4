"""What the launcher and the processes of the fork server have in common.

The launcher imports this module, so it imports neither hypercorn nor the application.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

# Written to the lifeline when the worker accepts connections.
READY = b"ready\n"
# A worker that was told to exit has so long to finish its requests.
GRACE_SECONDS = 10
# The environment variable that names the task of a process which is no worker: see `tasks`.
TASK = "QUARTAPP_TASK"
# The tasks: prepare the database, and delete the heartbeat of the worker in QUARTAPP_WORKER_ID.
PREPARE, FORGET_WORKER = "prepare", "forget-worker"


async def first_of(*waits: Coroutine[Any, Any, object], seconds: float | None = None) -> None:
    """Return when the first of the coroutines has returned or raised, or after so many seconds.

    The others are cancelled. Results and exceptions are dropped.
    """
    tasks = [asyncio.create_task(wait) for wait in waits]
    await asyncio.wait(tasks, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
