"""A real SMTP server, whose answers a test can choose, and a worker that delivers to it."""

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
    """An email as the server received it."""

    mail_from: str
    rcpt_tos: list[str]
    content: str


@dataclass(frozen=True)
class SmtpServer:
    """One port of the server. What arrives at any port is kept in the same folder."""

    port: int
    folder: Path

    @property
    def envelopes(self) -> list[Envelope]:
        return [Envelope(**record) for record in self._kept("envelope")]

    @property
    def emails(self) -> list[EmailMessage]:
        contents = [each.content.encode("utf-8", "surrogateescape") for each in self.envelopes]
        return [message_from_bytes(content, policy=default) for content in contents]  # type: ignore[misc]

    @property
    def logins(self) -> list[tuple[str, str]]:
        return [(record["user"], record["password"]) for record in self._kept("login")]

    def answer(self, *answers: str) -> None:
        """Refuse the next emails with these answers."""
        (self.folder / "answers").write_text("\n".join(answers))

    def _kept(self, what: str) -> list[Any]:
        return [json.loads(file.read_text()) for file in sorted(self.folder.glob(f"*.{what}"))]


@asynccontextmanager
async def running_smtp_servers(
    folder: Path, certificate: Path | None = None
) -> AsyncIterator[dict[str, SmtpServer]]:
    """Run the SMTP server in its own process, and yield its ports by kind: see its module."""
    process = await asyncio.create_subprocess_exec(
        *(
            sys.executable,
            "-m",
            "tests.integration.email.smtp_server",
            folder,
            *([certificate] if certificate else []),
        ),
        stdout=asyncio.subprocess.PIPE,
        cwd=Path(__file__).parents[3],
    )
    assert process.stdout is not None
    try:
        async with asyncio.timeout(40):
            ports = json.loads(await process.stdout.readline())
        yield {kind: SmtpServer(port, folder) for kind, port in ports.items()}
    finally:
        process.terminate()
        await process.communicate()


@pytest.fixture(scope="session")
async def _smtp_servers(
    tmp_path_factory: pytest.TempPathFactory, certificate: Path
) -> AsyncIterator[dict[str, SmtpServer]]:
    async with running_smtp_servers(tmp_path_factory.mktemp("smtp"), certificate) as smtp_servers:
        yield smtp_servers


@pytest.fixture
def smtp_servers(_smtp_servers: dict[str, SmtpServer]) -> dict[str, SmtpServer]:
    """Return the ports of the server by kind, without emails and logins."""
    for file in _smtp_servers["plain"].folder.iterdir():
        file.unlink()
    return _smtp_servers


@pytest.fixture
def smtp_server(smtp_servers: dict[str, SmtpServer]) -> SmtpServer:
    return smtp_servers["plain"]


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Create a self-signed certificate for 127.0.0.1 and its key in one file.

    The certificate alone is in a file whose name also ends in `.crt`.
    """
    file = tmp_path_factory.mktemp("tls") / "server.pem"
    subject = ["-subj", "/CN=post.example", "-addext", "subjectAltName=IP:127.0.0.1"]
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", *subject]
    subprocess.run(
        [*command, "-keyout", file, "-out", f"{file}.crt"], check=True, capture_output=True
    )
    file.write_text(file.read_text() + Path(f"{file}.crt").read_text())
    return file


def outbox_worker(settings: Settings, smtp_server: SmtpServer, **changes: Any) -> OutboxWorker:
    """Return a worker that delivers to this server, with changed settings if given."""
    return OutboxWorker(
        settings.model_copy(
            update={
                "smtp_host": "127.0.0.1",
                "smtp_port": smtp_server.port,
                "smtp_tls": "none",
                "base_url": "https://people.example.org",
                "secret_key": SecretStr("k" * 32),
                **changes,
            }
        )
    )


async def outbox() -> list[dict[str, Any]]:
    return await Mail.get_motor_collection().find({}).sort("_id").to_list(None)
