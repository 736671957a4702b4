"""What is stored about an activity is data: each reader gets it in their own language."""

from __future__ import annotations

import re
from datetime import timedelta

import pytest

from quartapp import clock
from quartapp.activities import SIGNED_IN
from quartapp.db.mongo import Database
from quartapp.i18n import LOCALES, PSEUDO, timezones, use_locale
from quartapp.i18n.times import use_zone
from quartapp.jobs import role_deletions
from quartapp.models.accounts import account_expiry
from quartapp.models.audit import activity
from quartapp.models.audit.event import Event
from quartapp.models.base.actor import SYSTEM
from quartapp.models.email.outbox import Mail
from quartapp.models.notifications.notice import Notice
from quartapp.models.roles import role as roles
from quartapp.models.roles.role import Role
from quartapp.models.sessions.reason import Reason
from tests.integration.models.helpers import acting, not_none, register, role, sign_in

UNTIL = clock.truncate(clock.now() + timedelta(days=3))


async def do_much(name: str) -> None:
    """Do what stores a time, a number, a device or a code about the user of this name."""
    ada, by = await register(name, "member"), acting(await register("root-" + name, "admin"))
    crew = await Role.add("crew-" + name, "", [], by=SYSTEM)
    for until in (UNTIL, UNTIL + timedelta(hours=1), None):
        await ada.grant(crew, by=by, until=until)
    await by_user(name, crew)
    await ada.grant(await role("moderator"), by=by, until=UNTIL)
    await ada.revoke(await role("moderator"), by=by)
    await account_expiry.set_expiry(ada, UNTIL.date(), by=by)
    await crew.remove(by=by)
    await role_deletions.complete_all()
    await sign_in(ada)
    await activity.disown(not_none(await activity.latest(ada.id, SIGNED_IN)), by=acting(ada))
    await ada.end_sessions(Reason.ENDED_BY_ADMIN, by=by)
    await ada.deactivate(by=by, deletes_at=UNTIL, with_posts=True)


async def by_user(name: str, crew: Role) -> None:
    """Give the role to so many users that they are not counted to the end."""
    for number in range(roles.COUNTED_HOLDERS):
        await (await register(f"{name}-{number}", "member")).grant(crew, by=SYSTEM)


async def stored(name: str) -> list[str]:
    """Return what the audit log, the notifications and the outbox have about the user, without
    names and ids."""
    events = await Event.find({}, sort="_id").to_list()
    notices, mails = await Notice.find({}, sort="_id").to_list(), await Mail.find({}).to_list()
    found = [repr(sorted(event.details.items())) for event in events]
    found += [repr(sorted(notice.data.items())) for notice in notices]
    found += [repr(sorted(mail.data.items())) for mail in mails]
    for collection in (Event, Notice, Mail):
        await collection.get_motor_collection().delete_many({})
    anonymous = (re.sub(r"ObjectId\('\w+'\)|'[0-9a-f]{24}'", "ID", text) for text in found)
    return [re.sub(r"'when', '[^']+'", "WHEN", text.replace(name, "NAME")) for text in anonymous]


async def test_what_is_stored_does_not_depend_on_the_actors_language(
    db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(roles, "COUNTED_HOLDERS", 2)
    seen: dict[str, list[str]] = {}
    for number, language in enumerate([*LOCALES, PSEUDO]):
        name = f"ada{number}"
        with use_locale(language), use_zone(timezones.find("Asia/Tokyo") if number else None):
            await do_much(name)
            seen[language] = await stored(name)
    (expected, *others) = seen.values()
    assert len(expected) > 20
    assert others == [expected] * len(others)
