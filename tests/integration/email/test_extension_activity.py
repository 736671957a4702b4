"""An activity that an extension adds, as docs/extending.md describes it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from quartapp.activities import Activity, Email, Notification, catalogue, register
from quartapp.db.mongo import Database
from quartapp.models.accounts.user import User
from quartapp.models.audit import activity as activity_page
from quartapp.models.audit.event import Event
from quartapp.models.audit.recording import record
from quartapp.models.authorization.transaction import authorized_transaction
from quartapp.models.notifications.notice import Notice
from quartapp.settings import Settings
from tests.integration.email.conftest import SmtpServer, outbox_worker
from tests.integration.models.helpers import acting
from tests.integration.models.helpers import register as register_user


@pytest.fixture
def ticket_answered() -> Iterator[Activity]:
    before = (dict(catalogue.audited), dict(catalogue.notifications), dict(catalogue.emails))
    yield register(
        Activity(
            audit="ticket.answered",
            notification=Notification(
                kind="ticket.answered", text="{by} answered your ticket “{title}”."
            ),
            email=Email(
                kind="ticket.answered",
                subject="Your ticket was answered",
                text=("{by} answered “{title}”, {username}.", "{base}/tickets"),
            ),
            sentence="The ticket “{title}” was answered",
        )
    )
    catalogue.audited, catalogue.notifications, catalogue.emails = before


async def answer(activity: Activity, owner: User, by: User, **details: Any) -> Event:
    actor = acting(by)

    async def work(tx: Any) -> Event:
        return await record(activity, owner, by=actor, tx=tx, **details)

    return await authorized_transaction(actor, work)


async def test_an_added_activity_reaches_log_page_notification_and_email(
    db: Database, settings: Settings, smtp_server: SmtpServer, ticket_answered: Activity
) -> None:
    root, ada = await register_user("root", "admin"), await register_user("ada")
    event = await answer(ticket_answered, ada, root, title="No sound")
    assert (event.verb, event.details) == ("ticket.answered", {"title": "No sound"})
    (newest, *_) = await activity_page.page(ada.id, before=None, limit=5)
    assert newest.id == event.id
    assert activity_page.text(newest) == "The ticket “No sound” was answered"
    (notice,) = await Notice.page(ada.id, limit=1)
    assert notice.text == "root answered your ticket “No sound”."
    assert notice.data == {"by": "root", "title": "No sound"}
    await outbox_worker(settings, smtp_server).deliver()
    (email,) = smtp_server.emails
    assert email["Subject"] == "[quartapp] Your ticket was answered"
    assert "root answered “No sound”, ada." in email.get_content()


async def test_an_activity_with_a_missing_word_changes_nothing(
    db: Database, ticket_answered: Activity
) -> None:
    root, ada = await register_user("root", "admin"), await register_user("ada")
    with pytest.raises(TypeError, match=r"ticket\.answered needs the words title"):
        await answer(ticket_answered, ada, root)
    assert await Event.find({"verb": "ticket.answered"}).count() == 0
    assert await Notice.find({"kind": "ticket.answered"}).count() == 0


async def test_events_and_notifications_of_a_removed_extension_still_display(
    db: Database, settings: Settings, smtp_server: SmtpServer
) -> None:
    ada = await register_user("ada")
    gone = Activity(
        audit="ticket.gone",
        notification=Notification(kind="ticket.gone", text="Gone."),
        email=Email(kind="ticket.gone", subject="Gone", text=("Gone.",)),
    )
    await answer(gone, ada, ada)
    (event,) = await Event.page(subject=ada.id, verbs=["ticket.gone"])
    assert (event.verb, activity_page.text(event)) == ("ticket.gone", "")
    assert not activity_page.is_reportable(event, ada.id)
    (notice,) = await Notice.page(ada.id, limit=1)
    assert notice.text == "Something changed."
    await outbox_worker(settings, smtp_server).deliver()
    assert smtp_server.emails == []
