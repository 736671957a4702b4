"""The mail budget: how many emails of which kind a mailbox gets."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

import pytest
from structlog.testing import capture_logs

from quartapp import clock
from quartapp.activities import (
    EMAIL_VERIFICATION_REQUESTED,
    PASSWORD_RESET_REQUESTED,
    RECOVERY_CODES_CREATED,
    Activity,
    Email,
    catalogue,
)
from quartapp.db.mongo import Database, Tx, transaction
from quartapp.models import Invitation, Mail
from quartapp.models.accounts import password_reset
from quartapp.models.accounts.user import User
from quartapp.models.base.actor import SYSTEM
from quartapp.models.email.mailbox import Mailbox
from quartapp.models.factors import recovery_codes
from quartapp.models.factors.factor import Factor
from quartapp.models.notifications.notice import Notice
from tests.integration.models.helpers import acting, register, reloaded

ADA = "ada@example.org"


async def queue(what: Activity | Email, to: str = ADA, *, times: int = 1) -> None:
    async def work(tx: Tx) -> None:
        await Mail.queue(what, to, tx=tx)

    for _ in range(times):
        await transaction(work)


async def queued(**match: Any) -> Counter[str]:
    return Counter([mail.kind async for mail in Mail.find(match)])


async def test_forty_sets_of_recovery_codes_send_five_emails(db: Database) -> None:
    ada = await register("ada")
    await User.change({"_id": ada.id}, {"$set": {"totp": {"sealed": "", "added_at": clock.now()}}})
    ada = await reloaded(ada)
    assert Factor.TOTP in ada.factors
    for _ in range(40):
        await recovery_codes.renew(ada, by=acting(ada))
    assert await queued() == {"recovery_codes.made": 5}
    told = {"user.$id": ada.id, "kind": RECOVERY_CODES_CREATED.notification_kind}
    assert await Notice.find(told).count() == 40, "each of them has a notification in the app"


async def test_each_kind_of_email_has_its_own_budget(db: Database) -> None:
    for email in catalogue.emails.values():
        await queue(email, times=12)
    sent = await queued()
    assert sum(sent.values()) == 30
    by_lane: Counter[str] = Counter()
    for kind, email in catalogue.emails.items():
        by_lane[email.lane] += sent[kind]
    assert len(by_lane) == 5
    assert {count for lane, count in by_lane.items() if lane != "notifications"} == {5}
    notifications = (
        kind for kind, email in catalogue.emails.items() if email.lane == "notifications"
    )
    assert max(sent[kind] for kind in notifications) <= 5


@pytest.mark.parametrize(
    "spellings",
    [
        [f"ada+{number}@example.org" for number in range(40)],
        ["Ada@example.org", "ADA@EXAMPLE.ORG", "ada+x+y@Example.org", "ada+@example.org"] * 10,
        ["ada@b\u00fccher.example", "ada@xn--bcher-kva.example", "ADA+1@B\u00dcCHER.example"] * 10,
    ],
    ids=["tags", "case", "domain"],
)
async def test_all_spellings_of_a_mailbox_share_its_budget(
    db: Database, spellings: list[str]
) -> None:
    for spelling in spellings:
        await queue(EMAIL_VERIFICATION_REQUESTED, spelling)
    assert sum((await queued()).values()) == 5
    await queue(EMAIL_VERIFICATION_REQUESTED, "bob@example.org")
    assert sum((await queued()).values()) == 6, "another mailbox has a budget of its own"


async def test_concurrent_requests_stay_within_the_email_budget(db: Database) -> None:
    asked = [password_reset.request(f"ada+{number}@example.org", by=SYSTEM) for number in range(30)]
    with capture_logs() as logs:
        await asyncio.gather(*asked)
    assert await queued() == {"password.reset": 5}
    assert [line["why"] for line in logs if line["event"] == "mail_suppressed"][:25] == [
        "budget"
    ] * 25


async def test_the_email_budget_is_renewed_after_its_period(db: Database) -> None:
    await queue(PASSWORD_RESET_REQUESTED, times=6)
    assert await queued() == {"password.reset": 5}
    await Mailbox.change_all({}, {"$set": {"until": clock.now()}})
    await queue(PASSWORD_RESET_REQUESTED)
    assert await queued() == {"password.reset": 6}


async def test_an_email_that_is_not_committed_is_not_counted(db: Database) -> None:
    async def work(tx: Tx) -> None:
        await Mail.queue(PASSWORD_RESET_REQUESTED, ADA, tx=tx)
        raise ZeroDivisionError

    for _ in range(6):
        with pytest.raises(ZeroDivisionError):
            await transaction(work)
    await queue(PASSWORD_RESET_REQUESTED)
    assert await queued() == {"password.reset": 1}


async def test_an_invitation_whose_email_is_suppressed_is_still_created(db: Database) -> None:
    for number in range(7):
        await Invitation.write(f"ada+{number}@example.org", None, by=SYSTEM)
    assert await queued() == {"user.invited": 5}
    assert await Invitation.find({}).count() == 7


async def test_an_unverified_address_gets_no_notifications(db: Database) -> None:
    ada = await register("ada")
    await User.change({"_id": ada.id}, {"$set": {"email_verified_at": None}})
    ada = await reloaded(ada)
    await ada.change_password("another", by=acting(ada))
    await ada.deactivate(by=acting(ada))
    assert await queued() == {}
    await password_reset.request(ada.email, by=SYSTEM)
    assert await queued() == {"password.reset": 1}
