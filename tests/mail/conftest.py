"""A real SMTP server, which does to letters what a test tells it to."""

from __future__ import annotations

import asyncio
import ssl
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from email import message_from_bytes
from email.message import EmailMessage
from email.policy import default
from pathlib import Path
from typing import Any

import pytest
from aiosmtpd.smtp import SMTP, AuthResult, LoginPassword
from pydantic import SecretStr

from quartapp.mail.postman import Postman
from quartapp.models import Mail
from quartapp.settings import Settings

LOGIN = LoginPassword(b"quartapp", b"canary-smtp-password")


@dataclass
class PostOffice:
    """Takes letters, or answers the next of them with what stands in `answers`."""

    port: int = 0
    answers: list[str] = field(default_factory=list)
    envelopes: list[Any] = field(default_factory=list)
    logins: list[LoginPassword] = field(default_factory=list)

    @property
    def letters(self) -> list[EmailMessage]:
        return [message_from_bytes(e.content, policy=default) for e in self.envelopes]  # type: ignore[misc]

    async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:  # noqa: N802
        if self.answers:
            return self.answers.pop(0)
        self.envelopes.append(envelope)
        return "250 taken"

    async def handle_RCPT(  # noqa: N802
        self, server: Any, session: Any, envelope: Any, address: str, options: Any
    ) -> str:
        if address.startswith("nobody@"):
            return "550 no such mailbox"
        envelope.rcpt_tos.append(address)
        return "250 fine"

    def authenticate(self, *args: Any) -> AuthResult:
        self.logins.append(args[-1])
        return AuthResult(success=args[-1] == LOGIN)


@asynccontextmanager
async def post_office(**options: Any) -> AsyncIterator[PostOffice]:
    """On a free port of this machine. `tls` encrypts from the first byte."""
    office, tls = PostOffice(), options.pop("tls", None)
    loop = asyncio.get_running_loop()
    server = await loop.create_server(
        lambda: SMTP(
            office, hostname="post.example", loop=loop, authenticator=office.authenticate, **options
        ),
        "127.0.0.1",
        0,
        ssl=tls,
    )
    office.port = server.sockets[0].getsockname()[1]
    try:
        yield office
    finally:
        server.close()
        await server.wait_closed()


@pytest.fixture
async def office() -> AsyncIterator[PostOffice]:
    async with post_office() as office:
        yield office


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


@pytest.fixture
def tls(certificate: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    return context


def postman(settings: Settings, office: PostOffice, **changes: Any) -> Postman:
    """One who brings letters to the office."""
    return Postman(
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
