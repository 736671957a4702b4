"""The disk of the embedded database is full."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import pytest
from pymongo import AsyncMongoClient
from pymongo.errors import AutoReconnect, WriteError

from tests.conftest import PASSWORD, serving
from tests.faults import machines
from tests.people import Person, Server, http_client, until

MEGABYTES = 620


def may_mount() -> bool:
    """Return whether a process may mount a file system here, which some containers forbid."""
    unshare = shutil.which("unshare")
    return bool(unshare) and not subprocess.run([unshare, "-Urm", "true"], check=False).returncode


pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(not may_mount(), reason="file systems cannot be mounted here"),
]


@dataclass
class Disk:
    """The file system of the server, as another process sees it."""

    server: Server

    @property
    def folder(self) -> Path:
        return Path(f"/proc/{self.server.process.pid}/root{self.server.data.parent}")

    @property
    def log(self) -> str:
        return self.server.stderr()

    def fill(self) -> None:
        """Use all free space."""
        with (self.folder / "filling").open("ab", buffering=0) as file:
            try:
                while True:
                    file.write(bytes(1_000_000))
            except OSError:
                assert not shutil.disk_usage(self.folder).free

    def empty(self) -> None:
        (self.folder / "filling").unlink()

    async def checkpoint(self) -> None:
        """Ask the database for checkpoints until one fails and the database exits."""
        # The full path of the socket is too long for a socket address.
        here = os.open(self.folder / self.server.data.name, os.O_PATH)
        socket = quote(f"/proc/self/fd/{here}/mongod.sock", safe="")
        uri = f"mongodb://{socket}/?directConnection=true&serverSelectionTimeoutMS=500"
        async with AsyncMongoClient[dict[str, object]](uri) as client:

            async def dies() -> bool:
                try:
                    with suppress(WriteError):
                        await client["other"]["things"].insert_one({"thing": os.urandom(1_000_000)})
                    self.fill()
                    await client.admin.command("fsync")
                except AutoReconnect:
                    return True
                return False

            await until(dies, within=60)
        os.close(here)


@pytest.fixture
async def disk(tmp_path: Path) -> AsyncIterator[Disk]:
    (folder := tmp_path / "disk").mkdir()
    small = machines.disk(folder, megabytes=MEGABYTES)
    async with serving(folder / "data", before_start=small, LIVE_SWEEP_SECONDS="3600") as server:
        yield Disk(server)


async def titles(person: Person) -> set[str]:
    page = (await person.get("/posts")).text
    return {title for title in ("before", "while full", "too late", "after") if title in page}


async def test_a_full_disk_loses_no_acknowledged_change(
    disk: Disk,
) -> None:
    server = disk.server

    async def answers(status: int, path: str) -> bool:
        async with http_client(server.url) as client:
            return (await client.get(path)).status_code == status

    async with Person(server.url, "ada", PASSWORD) as ada:
        await ada.register()
        assert (await ada.post("/posts/new", title="before", body="x")).status_code == 303
        disk.fill()
        # The journal file still has space.
        while_full = await ada.post("/posts/new", title="while full", body="x")
        token = await ada.csrf_token("/posts/new")
        await disk.checkpoint()
        await until(lambda: answers(503, "/readyz"), within=20)
        await until(lambda: answers(503, "/posts"), within=20)
        late = {"title": "too late", "body": "x", "csrf_token": token}
        refused = await ada.client.post("/posts/new", data=late, headers={"Origin": server.url})
        assert refused.status_code == 503
        assert await answers(200, "/livez")
        assert "no space left on the disk of the data folder" in disk.log
        disk.empty()
        await until(lambda: answers(200, "/readyz"), within=40)
        assert await ada.is_signed_in()
        assert (await ada.post("/posts/new", title="after", body="x")).status_code == 303
        confirmed = {"before", "after"} | (
            {"while full"} if while_full.status_code == 303 else set()
        )
        assert confirmed <= await titles(ada) <= confirmed | {"while full"}
