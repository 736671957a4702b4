"""Emails of a running server, delivered to a real SMTP server."""

from __future__ import annotations

from pathlib import Path

from quartapp import clock
from tests.conftest import PASSWORD, serving
from tests.integration.email.conftest import running_smtp_servers
from tests.integration.routes.conftest import link_in
from tests.people import Person, until


async def test_emails_are_sent_again_after_a_temporary_refusal(tmp_path: Path) -> None:
    async with (
        running_smtp_servers(tmp_path) as smtp_servers,
        serving(
            tmp_path / "data",
            BASE_URL="http://people.example.org",
            SMTP_HOST="127.0.0.1",
            SMTP_PORT=str(smtp_servers["plain"].port),
            SMTP_TLS="none",
            MAIL_FROM="people@example.org",
            REQUIRE_VERIFIED_EMAIL="false",
        ) as server,
    ):
        smtp_server = smtp_servers["plain"]
        smtp_server.answer("451 greylisted")
        async with Person(server.url, "ada", PASSWORD) as ada, server.database() as database:
            await ada.register()

            async def is_put_off() -> bool:
                return await database["outbox"].find_one({"trouble": {"$ne": None}}) is not None

            await until(is_put_off)
            assert (await ada.get("/account")).status_code == 200
            await database["outbox"].update_many({}, {"$set": {"due_at": clock.now()}})

            async def came() -> bool:
                return bool(smtp_server.emails)

            await until(came)
            (message,) = smtp_server.emails
            assert message["From"] == "quartapp <people@example.org>"
            text = message.get_content()
            assert "http://people.example.org/verify/" in text
            answer = await ada.post(link_in(text), page=link_in(text))
            assert answer.headers["Location"] == "/account"
            assert not (server.data / "mail").exists()
            assert link_in(text).rpartition("/")[2] not in server.stderr(), "no secret in a log"
