"""Workers without an application, so that a small machine can run many: for bench.cluster.

`python -m bench.cheap_workers COUNT` runs this many change streams, leases and barriers in one
process, with one driver, on the database of the settings. They receive the same changes, write the
same heartbeats and acknowledge marks by the same code as the workers of one server. Prints a line
when all have started, and stops when its standard input is closed.
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
from contextlib import AsyncExitStack
from pathlib import Path

from quartapp import models
from quartapp.authority.barrier import Barrier
from quartapp.authority.change_stream import ChangeStream
from quartapp.authority.lease import Lease
from quartapp.authority.membership import Membership
from quartapp.db import mongo
from quartapp.settings import Settings


async def start_worker(name: str, folder: Path, stack: AsyncExitStack) -> None:
    """Start the parts of one worker, in the order in which a worker starts them."""
    lease, membership = Lease(name), Membership()
    barrier = Barrier(lease, membership, count_tabs=lambda event: 0, folder=folder)
    stream = ChangeStream([lease, barrier], worker_id=lease.worker_id)
    for part in (stream, lease, membership, barrier):
        stack.push_async_callback(part.stop)
        await part.start()


async def run(count: int) -> None:
    loop = asyncio.get_running_loop()
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        async with mongo.connected(Settings.load(), models.DOCUMENTS), AsyncExitStack() as stack:
            for index in range(count):
                await start_worker(str(index), Path(folder), stack)
            print("ready", flush=True)
            await loop.run_in_executor(None, sys.stdin.read)


if __name__ == "__main__":
    asyncio.run(run(int(sys.argv[1])))
