"""A real SMTP server, which does to letters what a test tells it to."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from email import message_from_bytes
from email.message import EmailMessage
from email.policy import default
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from quartapp.jobs.outbox_worker import OutboxWorker
from quartapp.models import Mail
from quartapp.settings import Settings


@dataclass(frozen=True)
class Envelope:
    """A letter as the server got it."""

    mail_from: str
    rcpt_tos: list[str]
    content: str


@dataclass(frozen=True)
class PostOffice:
    """One way into the server. What it was given is in the folder, whichever way it came."""

    port: int
    folder: Path

    @property
    def envelopes(self) -> list[Envelope]:
        return [Envelope(**said) for said in self._kept("envelope")]

    @property
    def letters(self) -> list[EmailMessage]:
        contents = [each.content.encode("utf-8", "surrogateescape") for each in self.envelopes]
        return [message_from_bytes(content, policy=default) for content in contents]  # type: ignore[misc]

    @property
    def logins(self) -> list[tuple[str, str]]:
        return [(said["user"], said["password"]) for said in self._kept("login")]

    def answer(self, *answers: str) -> None:
        """Instead of taking the next letters."""
        (self.folder / "answers").write_text("\n".join(answers))

    def _kept(self, what: str) -> list[Any]:
        return [json.loads(file.read_text()) for file in sorted(self.folder.glob(f"*.{what}"))]


@asynccontextmanager
async def post_offices(
    folder: Path, certificate: Path | None = None
) -> AsyncIterator[dict[str, PostOffice]]:
    """A mail server in a process of its own, by each way into it: see `tests.email.smtp_server`."""
    process = await asyncio.create_subprocess_exec(
        *(
            sys.executable,
            "-m",
            "tests.email.smtp_server",
            folder,
            *([certificate] if certificate else []),
        ),
        stdout=asyncio.subprocess.PIPE,
        cwd=Path(__file__).parents[2],
    )
    assert process.stdout is not None
    try:
        async with asyncio.timeout(40):
            ports = json.loads(await process.stdout.readline())
        yield {way: PostOffice(port, folder) for way, port in ports.items()}
    finally:
        process.terminate()
        await process.communicate()


@pytest.fixture(scope="session")
async def _post_offices(
    tmp_path_factory: pytest.TempPathFactory, certificate: Path
) -> AsyncIterator[dict[str, PostOffice]]:
    async with post_offices(tmp_path_factory.mktemp("post"), certificate) as offices:
        yield offices


@pytest.fixture
def offices(_post_offices: dict[str, PostOffice]) -> dict[str, PostOffice]:
    """Empty."""
    for file in _post_offices["plain"].folder.iterdir():
        file.unlink()
    return _post_offices


@pytest.fixture
def office(offices: dict[str, PostOffice]) -> PostOffice:
    return offices["plain"]


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """For 127.0.0.1, signed by itself; with its key in the same file."""
    file = tmp_path_factory.mktemp("tls") / "server.pem"
    subject = ["-subj", "/CN=post.example", "-addext", "subjectAltName=IP:127.0.0.1"]
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", *subject]
    subprocess.run(
        [*command, "-keyout", file, "-out", f"{file}.crt"], check=True, capture_output=True
    )
    file.write_text(file.read_text() + Path(f"{file}.crt").read_text())
    return file


def postman(settings: Settings, office: PostOffice, **changes: Any) -> OutboxWorker:
    """One who brings letters to the office."""
    return OutboxWorker(
        settings.model_copy(
            update={
                "smtp_host": "127.0.0.1",
                "smtp_port": office.port,
                "smtp_tls": "none",
                "base_url": "https://people.example.org",
                "secret_key": SecretStr("k" * 32),
                **changes,
            }
        )
    )


async def the_outbox() -> list[dict[str, Any]]:
    return await Mail.get_motor_collection().find({}).sort("_id").to_list(None)
