"""The range protocol of Have I Been Pwned, against a server on this machine."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from quartapp.security import breached_passwords
from quartapp.security.breached_passwords import BreachedPasswords
from quartapp.security.password_policy import PasswordPolicy
from quartapp.settings import Settings, StartError

BREACHED = "correct horse battery staple"
DIGEST = hashlib.sha1(BREACHED.encode()).hexdigest().upper()
OTHER = hashlib.sha1(b"another").hexdigest().upper()[5:]


@dataclass
class Service:
    """Answers each request with `answer`, or with nothing if it is None."""

    answer: bytes | None = b""
    status: str = "200 OK"
    url: str = ""
    requests: list[str] = field(default_factory=list)
    tasks: list[asyncio.Task[None]] = field(default_factory=list)

    def begin(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.tasks.append(asyncio.create_task(self.serve(reader, writer)))

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError, asyncio.IncompleteReadError):
            self.requests.append((await reader.readuntil(b"\r\n\r\n")).decode())
            if self.answer is None:
                await reader.read()
            else:
                head = f"HTTP/1.1 {self.status}\r\nConnection: close\r\nLocation: {self.url}"
                writer.write(f"{head}\r\n\r\n".encode() + self.answer)
        writer.close()
        with suppress(OSError):
            await writer.wait_closed()


@asynccontextmanager
async def running() -> AsyncIterator[Service]:
    service = Service()
    async with await asyncio.start_server(service.begin, "127.0.0.1") as server:
        service.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/range/"
        yield service
    # A connection may have been accepted just before the server was closed. asyncio calls `begin`
    # for it some turns of the loop later.
    for _ in range(5):
        await asyncio.sleep(0)
    while unfinished := [task for task in service.tasks if not task.done()]:
        await asyncio.gather(*unfinished)


@asynccontextmanager
async def asked(answer: bytes | None, status: str = "200 OK") -> AsyncIterator[Service]:
    async with running() as service:
        service.answer, service.status = answer, status
        yield service


async def contains(service: Service, password: str = BREACHED) -> bool:
    breached = BreachedPasswords(service.url)
    try:
        return await breached.contains(password)
    finally:
        await breached.close()


@pytest.mark.parametrize(
    ("answer", "known"),
    [
        (f"{OTHER}:3\r\n{DIGEST[5:]}:42\r\n", True),
        (f"{DIGEST[5:].lower()}:1", True),
        (f"{OTHER}:3\r\n", False),
        (f"{DIGEST[5:]}:0\r\n{OTHER}:3\r\n", False),
        (f"{DIGEST[5:-1]}:9\r\n{DIGEST}:9\r\n", False),
        ("", False),
    ],
    ids=["known", "in lower case", "unknown", "padding", "parts", "empty"],
)
async def test_a_password_is_breached_if_its_hash_is_counted(answer: str, known: bool) -> None:
    with capture_logs() as logs:
        async with asked(answer.encode()) as service:
            assert await contains(service) is known
    assert logs == []


async def test_the_service_learns_five_digits_of_the_hash_and_no_more() -> None:
    async with asked(b"") as service:
        await contains(service)
        # Two Unicode forms of a password count as one.
        await contains(service, "caf\u00e9 society")
        await contains(service, "cafe\u0301 society")
    first, *others = service.requests
    assert first.startswith(f"GET /range/{DIGEST[:5]} HTTP/1.1\r\n")
    assert "add-padding: true" in first.lower()
    assert DIGEST[5:10] not in first
    assert len({request.split()[1] for request in others}) == 1


@pytest.mark.parametrize(
    ("answer", "status"),
    [
        (None, "200 OK"),
        (f"{DIGEST[5:]}:42".encode(), "503 Unavailable"),
        (f"{DIGEST[5:]}:42".encode(), "302 Found"),
        (b"\xff\xfe", "200 OK"),
        (f"{DIGEST[5:]}:42\r\n".encode() + b"x" * 2_000_000, "200 OK"),
    ],
    ids=["silent", "failing", "redirecting", "no text", "endless"],
)
async def test_a_failing_service_is_logged_and_refuses_no_password(
    answer: bytes | None, status: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if answer is None:
        monkeypatch.setattr(breached_passwords, "TIMEOUT_SECONDS", 0.3)
    with capture_logs() as logs:
        async with asked(answer, status) as service:
            assert await contains(service) is False
        # The server has stopped.
        assert await contains(service) is False
    assert [line["event"] for line in logs] == ["breached_passwords_unavailable"] * 2
    assert DIGEST[:5] not in str(logs)
    assert service.url not in str(logs)


async def test_the_service_is_asked_only_about_otherwise_good_passwords(
    tmp_path: Path,
) -> None:
    async with asked(f"{DIGEST[5:]}:42".encode()) as service:
        settings = Settings.load(data=tmp_path, breached_passwords=service.url)
        policy = PasswordPolicy.of(settings)
        for password in ("short", "password", "qwertyuiop"):
            assert await policy.weakness(password) is not None
        assert service.requests == []
        assert "data breach" in (await policy.weakness(BREACHED) or "")
        service.answer = b""
        assert await policy.weakness(BREACHED) is None
        await policy.close()


@pytest.mark.parametrize(
    ("value", "url"),
    [
        ("off", None),
        ("OFF", None),
        ("", None),
        ("https://api.pwnedpasswords.com/range/", "https://api.pwnedpasswords.com/range/"),
        ("http://localhost:8080/range", "http://localhost:8080/range"),
    ],
)
def test_breached_passwords_is_off_or_a_url(tmp_path: Path, value: str, url: str | None) -> None:
    assert Settings.load(data=tmp_path, breached_passwords=value).breached_passwords == url
    assert Settings.load(data=tmp_path).breached_passwords is None


@pytest.mark.parametrize(
    "value", ["on", "api.pwnedpasswords.com", "http://example.org/range", "https://", "file:///etc"]
)
def test_breached_passwords_refuses_an_insecure_or_invalid_url(tmp_path: Path, value: str) -> None:
    with pytest.raises(StartError, match="BREACHED_PASSWORDS"):
        Settings.load(data=tmp_path, breached_passwords=value)
