"""The outbox worker delivers each email once, in spite of failing servers and other workers."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from datetime import timedelta
from email.message import EmailMessage
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr
from structlog.testing import capture_logs

from quartapp import clock
from quartapp.activities import SIGNED_IN
from quartapp.db.mongo import Database, Tx, transaction
from quartapp.email import messages, transports
from quartapp.models import Mail
from quartapp.models.accounts.user import User
from quartapp.models.email.outbox import FIRST_PAUSE, LEASE, TRIES
from quartapp.settings import Settings
from tests.integration.email.conftest import SmtpServer, outbox, outbox_worker
from tests.integration.email.smtp_server import LOGIN
from tests.integration.models.helpers import not_none, register


@pytest.fixture
async def ada(db: Database) -> User:
    return await register("ada")


LONGEST = f"{'a' * 64}@{'b' * 63}.{'c' * 63}.{'d' * 57}.org"


async def queue(user: User, to: str = "", **data: Any) -> None:
    async def work(tx: Tx) -> None:
        await Mail.queue(SIGNED_IN, to or user.email, user=user.id, tx=tx, **data)

    await transaction(work)


async def make_due() -> None:
    """Make all emails due, as if their pauses were over."""
    await Mail.change_all({}, {"$set": {"due_at": clock.now() - timedelta(milliseconds=1)}})


async def test_a_delivered_email_leaves_the_outbox(
    settings: Settings, ada: User, smtp_server: SmtpServer
) -> None:
    await queue(ada, device="Firefox on Linux", ip="192.0.2.7")
    await outbox_worker(settings, smtp_server).deliver()
    (envelope,), (message,) = smtp_server.envelopes, smtp_server.emails
    assert envelope.rcpt_tos == ["ada@example.org"]
    assert envelope.mail_from == "no-reply@people.example.org"
    assert message["Subject"] == "[quartapp] Signed in from a new browser"
    assert message["To"] == "ada@example.org"
    assert message["Auto-Submitted"] == "auto-generated"
    text = message.get_content()
    assert "Firefox on Linux" in text
    assert "https://people.example.org/account/timeline" in text.split()
    assert await outbox() == []


async def test_a_temporary_failure_is_retried_with_exponential_backoff(
    settings: Settings, ada: User, smtp_server: SmtpServer
) -> None:
    await queue(ada)
    worker = outbox_worker(settings, smtp_server)
    smtp_server.answer("451 greylisted", "421 busy")
    for pause in (FIRST_PAUSE, 2 * FIRST_PAUSE):
        before = clock.now()
        await worker.deliver()
        (waiting,) = await outbox()
        assert before + pause <= waiting["due_at"] <= clock.now() + pause
        await worker.deliver()
        assert smtp_server.envelopes == [], "not before the pause is over"
        await make_due()
    await worker.deliver()
    assert len(smtp_server.envelopes) == 1
    assert await outbox() == []


@pytest.mark.parametrize("to", ["nobody@example.org", "ada@example.org"])
async def test_a_permanently_refused_email_is_not_retried(
    settings: Settings, ada: User, smtp_server: SmtpServer, to: str
) -> None:
    await queue(ada, to)
    smtp_server.answer(f"554 spam for <{to}>")
    with capture_logs() as lines:
        await outbox_worker(settings, smtp_server).deliver()
    (line,) = lines
    assert line["event"] == "mail_given_up"
    assert to not in line["trouble"], "the log has no addresses"
    (given_up,) = await outbox()
    assert given_up["gave_up_at"] is not None
    assert "55" in given_up["trouble"]
    await make_due()
    await outbox_worker(settings, smtp_server).deliver()
    assert smtp_server.envelopes == []


async def test_an_unreachable_server_is_tried_a_bounded_number_of_times(
    settings: Settings, ada: User
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed_again:
        port = closed_again.getsockname()[1]
    await queue(ada)
    worker = outbox_worker(settings, SmtpServer(port, settings.data))
    for tries in range(1, TRIES + 1):
        assert (await outbox())[0]["gave_up_at"] is None
        await make_due()
        await worker.deliver()
        assert (await outbox())[0]["tries"] == tries
    assert (await outbox())[0]["gave_up_at"] is not None
    await make_due()
    await worker.deliver()
    assert (await outbox())[0]["tries"] == TRIES


async def never_answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read()
    writer.close()


async def answer_slowly(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answer each command in time, but make the client send many."""
    answer = b"220 hello\r\n"
    with suppress(ConnectionError):
        while answer:
            await asyncio.sleep(0.3)
            writer.write(answer)
            answer = await reader.readline() and b"250 fine\r\n"
    writer.close()


@pytest.mark.parametrize("behave", [never_answer, answer_slowly])
async def test_a_hanging_server_is_given_up_after_a_timeout(
    behave: Callable[..., Awaitable[None]],
    settings: Settings,
    ada: User,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert timedelta(seconds=transports.SECONDS) < LEASE
    monkeypatch.setattr(transports, "SECONDS", 0.5)
    server = await asyncio.start_server(behave, "127.0.0.1", 0)
    async with server:
        silent = SmtpServer(server.sockets[0].getsockname()[1], settings.data)
        await queue(ada)
        began = time.monotonic()
        await outbox_worker(settings, silent).deliver()
        assert time.monotonic() - began < 10
    (waiting,) = await outbox()
    assert waiting["gave_up_at"] is None
    assert "Timeout" in waiting["trouble"]


async def test_concurrent_workers_send_each_email_once(
    settings: Settings, ada: User, smtp_server: SmtpServer
) -> None:
    for number in range(20):
        await queue(ada, f"reader{number}@example.org")
    await asyncio.gather(*(outbox_worker(settings, smtp_server).deliver() for _ in range(5)))
    receivers = [envelope.rcpt_tos[0] for envelope in smtp_server.envelopes]
    assert sorted(receivers) == sorted(f"reader{number}@example.org" for number in range(20))
    assert await outbox() == []


async def test_an_email_claimed_by_a_dead_worker_is_sent_after_its_lease(
    settings: Settings, ada: User, smtp_server: SmtpServer
) -> None:
    await queue(ada)
    dead = not_none(await Mail.claim())
    await outbox_worker(settings, smtp_server).deliver()
    assert smtp_server.envelopes == []
    await Mail.change({"_id": dead.id}, {"$set": {"due_at": dead.due_at - LEASE}})
    await outbox_worker(settings, smtp_server).deliver()
    assert len(smtp_server.envelopes) == 1


async def test_an_email_that_cannot_be_rendered_does_not_block_others(
    settings: Settings, ada: User, smtp_server: SmtpServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    await queue(ada)
    poison = not_none(await Mail.find_one({}))
    await queue(ada, "reader@example.org")
    compose = messages.compose

    def failing_once(mail: Mail, **words: Any) -> EmailMessage:
        if mail.id == poison.id:
            raise KeyError("token")
        return compose(mail, **words)

    monkeypatch.setattr(messages, "compose", failing_once)
    await outbox_worker(settings, smtp_server).deliver()
    assert [envelope.rcpt_tos for envelope in smtp_server.envelopes] == [["reader@example.org"]]
    await Mail.change({"_id": poison.id}, {"$set": {"tries": TRIES - 1}})
    await make_due()
    await outbox_worker(settings, smtp_server).deliver()
    assert (await outbox())[0]["gave_up_at"] is not None


async def test_a_worker_that_lost_its_claim_cannot_change_the_email(ada: User) -> None:
    await queue(ada)
    frozen = not_none(await Mail.claim())
    await make_due()
    holder = not_none(await Mail.claim())
    await frozen.record_failure("timed out", for_good=True)
    await frozen.remove()
    (kept,) = await outbox()
    assert (kept["gave_up_at"], kept["tries"]) == (None, 2)
    await holder.remove()
    assert await outbox() == []


async def test_the_worker_logs_in_to_the_server(
    settings: Settings, ada: User, smtp_servers: dict[str, SmtpServer]
) -> None:
    smtp_server, password = smtp_servers["login"], LOGIN.password.decode()
    login = {"smtp_user": "quartapp", "smtp_password": SecretStr("wrong")}
    await queue(ada)
    await outbox_worker(settings, smtp_server, **login).deliver()
    (waiting,) = await outbox()
    assert waiting["gave_up_at"] is None, "a wrong password must not lose emails"
    assert "wrong" not in waiting["trouble"]
    login["smtp_password"] = SecretStr(password)
    await make_due()
    await outbox_worker(settings, smtp_server, **login).deliver()
    assert smtp_server.logins[-1] == ("quartapp", password)
    assert len(smtp_server.envelopes) == 1


@pytest.mark.parametrize("mode", ["starttls", "tls"])
async def test_a_server_with_an_untrusted_certificate_gets_no_email(
    mode: str,
    settings: Settings,
    ada: User,
    certificate: Path,
    smtp_servers: dict[str, SmtpServer],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    smtp_server = smtp_servers[mode]
    await queue(ada)
    await outbox_worker(settings, smtp_server, smtp_tls=mode).deliver()
    assert smtp_server.envelopes == []
    assert len(await outbox()) == 1
    # OpenSSL trusts the certificates in this file.
    monkeypatch.setenv("SSL_CERT_FILE", f"{certificate}.crt")
    await make_due()
    await outbox_worker(settings, smtp_server, smtp_tls=mode).deliver()
    assert len(smtp_server.envelopes) == 1


async def test_a_server_without_the_required_tls_gets_no_email(
    settings: Settings, ada: User, smtp_server: SmtpServer
) -> None:
    await queue(ada)
    await outbox_worker(settings, smtp_server, smtp_tls="starttls").deliver()
    assert smtp_server.envelopes == []
    assert len(await outbox()) == 1


@pytest.mark.parametrize(
    "to",
    [
        "ada@example.org\r\nBcc: eve@example.org",
        "ada@example.org\nX: y",
        "ada@example.org, eve@example.org",
        "ada@example.org,eve@example.org",
        "ada@example.org eve@example.org",
        "ada@example.org\x00",
        # Not a mailbox by RFC 5321, or a header that would be read as another address.
        "=?utf-8?q?victim?=@example.org",
        "=?utf-8?q?victim=40example.org=2C?=@example.org",
        '"ada"@example.org',
        "(eve@example.org)ada@example.org",
        "ada@example.org(eve)",
        "Ada <ada@example.org>",
        "eve@example.org@example.com",
        "ada@[127.0.0.1]",
        "ada@example..org",
        "ada.@example.org",
        "ada@example.org.",
        "ada",
        "a" * 65 + "@example.org",
        "ada@" + "b" * 64 + ".org",
    ],
)
async def test_an_address_cannot_inject_a_header_or_a_recipient(
    settings: Settings, ada: User, smtp_server: SmtpServer, to: str
) -> None:
    await queue(ada, to)
    await outbox_worker(settings, smtp_server).deliver()
    assert smtp_server.envelopes == []
    (mail,) = await outbox()
    assert mail["gave_up_at"] is not None
    assert mail["trouble"]


@pytest.mark.parametrize(
    ("stored", "receiver"),
    [
        ("Ada+x@Example.org", "Ada+x@example.org"),
        ("ada@bücher.example", "ada@xn--bcher-kva.example"),
        ("ada@xn--bcher-kva.example", "ada@xn--bcher-kva.example"),
        ("a?=b@example.org", "a?=b@example.org"),
        ("!#$%&'*+-/=^_`{|}~@example.org", "!#$%&'*+-/=^_`{|}~@example.org"),
        (LONGEST, LONGEST),
    ],
)
async def test_the_recipient_and_the_to_header_are_the_stored_address(
    settings: Settings, ada: User, smtp_server: SmtpServer, stored: str, receiver: str
) -> None:
    await queue(ada, stored)
    await outbox_worker(settings, smtp_server).deliver()
    (envelope,), (message,) = smtp_server.envelopes, smtp_server.emails
    assert envelope.rcpt_tos == [receiver]
    assert f"\nTo: {receiver}\n" in envelope.content.replace("\r\n", "\n")
    assert [each.addr_spec for each in message["To"].addresses] == [receiver]


async def test_values_in_an_email_cannot_become_headers(
    settings: Settings, ada: User, smtp_server: SmtpServer
) -> None:
    await queue(ada, device="Firefox\r\nBcc: eve@example.org\r\n\r\n", ip="{token}")
    await outbox_worker(settings, smtp_server).deliver()
    (envelope,), (message,) = smtp_server.envelopes, smtp_server.emails
    assert envelope.rcpt_tos == ["ada@example.org"]
    assert message["Bcc"] is None
    assert "IP address: {token}" in message.get_content()


async def test_without_a_server_emails_are_files_that_only_the_owner_can_read(
    settings: Settings, ada: User, smtp_server: SmtpServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transports, "FILES", 3)
    for number in range(5):
        await queue(ada, f"reader{number}@example.org")
        await outbox_worker(settings, smtp_server, smtp_host="").deliver()
    folder = settings.data / "mail"
    files = sorted(folder.iterdir())
    assert [file.suffix for file in files] == 3 * [".eml"], "the oldest have gone"
    assert {file.stat().st_mode & 0o777 for file in files} == {0o600}
    assert folder.stat().st_mode & 0o777 == 0o700
    assert [f"reader{n}@" in f.read_text() for n, f in enumerate(files, 2)] == 3 * [True]
    assert smtp_server.envelopes == []


async def test_an_email_to_a_non_ascii_address_is_sent(
    settings: Settings, ada: User, smtp_servers: dict[str, SmtpServer]
) -> None:
    smtp_server = smtp_servers["utf8"]
    await queue(ada, "jürgen@bücher.example")
    await outbox_worker(settings, smtp_server).deliver()
    (envelope,) = smtp_server.envelopes
    assert envelope.rcpt_tos == ["jürgen@xn--bcher-kva.example"]
