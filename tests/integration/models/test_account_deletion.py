"""Deactivation, deletion, restoration and erasure of accounts."""

from __future__ import annotations

import json
import random
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import limits
import pytest
from beanie import PydanticObjectId
from bson import DBRef

from quartapp import clock
from quartapp.activities import (
    ACCOUNT_CREATED,
    ACCOUNT_DEACTIVATED,
    ACCOUNT_DELETED,
    ACCOUNT_RESTORED,
    DELETED_USER,
    DELETION_SCHEDULED,
)
from quartapp.authority import session_states
from quartapp.authority.session_rule import EndedSession
from quartapp.db import mongo
from quartapp.db.mongo import Database
from quartapp.models import DOCUMENTS, Invitation
from quartapp.models.accounts import email_address, password_reset, registration
from quartapp.models.accounts.administrators import LastAdministrator, active_administrators
from quartapp.models.accounts.one_time_token import Purpose, Token, TokenSpent
from quartapp.models.accounts.user import User
from quartapp.models.audit.event import Event
from quartapp.models.base.actor import SYSTEM, Actor
from quartapp.models.base.tokens import digest_of
from quartapp.models.email.outbox import Mail
from quartapp.models.invitations import invitation
from quartapp.models.notifications.notice import Notice
from quartapp.models.posts import erasing
from quartapp.models.posts.comment import Comment
from quartapp.models.posts.post import Post
from quartapp.models.privacy import account_deletion, data_export, personal_data
from quartapp.models.privacy.person import Person
from quartapp.models.roles.role import Role
from quartapp.models.sessions.reason import Reason
from tests.integration.models.helpers import (
    acting,
    concurrently,
    dump,
    end_reason,
    not_none,
    race,
    register,
    reloaded,
    role,
    role_names,
    sign_in,
)
from tests.integration.models.test_secrets import words

DAY = timedelta(days=1)


async def delete(user: User, *, by: Actor | None = None, with_posts: bool = False) -> Event | None:
    until = clock.now() + DAY
    return await user.deactivate(by=by or acting(user), deletes_at=until, with_posts=with_posts)


async def make_due(user: User) -> None:
    """Make the account due for erasure."""
    due = {"$set": {"deletes_at": clock.now() - timedelta(seconds=1)}}
    assert await User.change({"_id": user.id}, due)


async def erase_due() -> int:
    """Erase all due accounts and return their number."""
    erased = 0
    while user := await account_deletion.claim():
        erased += await account_deletion.erase(user)
    return erased


async def emails(user: User) -> list[str]:
    return [mail.kind for mail in await Mail.find({"user.$id": user.id}).to_list()]


async def test_deactivating_ends_every_session_with_a_message_to_the_owner(db: Database) -> None:
    ada = await register("ada")
    assert await ada.restore(by=SYSTEM) is None, "the account is open"
    _, first = await sign_in(ada)
    _, second = await sign_in(ada)
    event = not_none(await ada.deactivate(by=acting(ada)))
    for token in (first, second):
        state = await session_states.state_by_digest(digest_of(token))
        assert isinstance(state, EndedSession)
        assert (state.reason, state.event) == (Reason.ACCOUNT_DISABLED, event.id)
        assert state.message == "You deactivated or deleted your account."
    assert event.verb == ACCOUNT_DEACTIVATED.audit
    assert await emails(ada) == [ACCOUNT_DEACTIVATED.email_kind]
    assert await ada.deactivate(by=acting(ada)) is None


async def test_end_state_from_a_change_recognises_the_owner(db: Database) -> None:
    ada = await register("ada")
    await sign_in(ada)
    await ada.deactivate(by=acting(ada))
    row = not_none(await db["sessions"].find_one({}))
    (ended,) = await session_states.ended_sessions_from_updates(
        {row["_id"]: row}, users={row["_id"]: ada.id}, names={}
    )
    assert ended.user_id == ada.id
    assert ended.message == "You deactivated or deleted your account."


async def test_a_deletion_by_an_administrator_names_the_administrator(db: Database) -> None:
    root, ada = await register("root", "admin"), await register("ada")
    _, token = await sign_in(ada)
    event = not_none(await delete(ada, by=acting(root)))
    state = await session_states.state_by_digest(digest_of(token))
    assert isinstance(state, EndedSession)
    assert state.message == "root disabled your account. It will be deleted."
    # A change event leads to the same message.
    row = not_none(await db["sessions"].find_one({}))
    (heard,) = await session_states.ended_sessions_from_updates(
        {row["_id"]: row}, users={row["_id"]: ada.id}, names={}
    )
    assert isinstance(heard, EndedSession)
    assert heard.message == state.message
    assert (await Notice.page(ada.id, limit=1))[0].text == "root deactivated your account."
    assert (event.verb, set(event.details)) == (DELETION_SCHEDULED.audit, {"until", "posts"})
    assert event.details["posts"] == "kept"
    assert await emails(ada) == ["account.removed"]
    # The email does not contain the administrator's IP address.
    assert "192.0.2.7" not in str(await db["outbox"].find_one({}))


async def test_a_closed_account_has_no_active_session(
    db: Database,
) -> None:
    ada = await register("ada")
    _, token = await sign_in(ada)
    await db["users"].update_one({"_id": ada.id}, {"$set": {"closed_at": clock.now()}})
    assert await end_reason(token) is Reason.ACCOUNT_DISABLED
    _, later = await sign_in(ada)
    assert await end_reason(later) is Reason.ACCOUNT_DISABLED


async def test_the_owner_restores_the_account_once_with_the_token(db: Database) -> None:
    ada = await register("ada", "member")
    await delete(ada, with_posts=True)
    token = await account_deletion.issue(await reloaded(ada))
    assert not_none(await account_deletion.user_to_restore(token)).id == ada.id
    back = await account_deletion.restore_with_token(token, by=Actor(ip="192.0.2.8"))
    assert (back.is_active, back.deletes_at, back.deletes_posts) == (True, None, False)
    assert await role_names(ada) == {"member"}
    assert ACCOUNT_RESTORED.email_kind in await emails(ada)
    event = not_none(await Event.find_one({"verb": ACCOUNT_RESTORED.audit}))
    assert not_none(event.actor).ref.id == ada.id
    with pytest.raises(TokenSpent):
        await account_deletion.restore_with_token(token, by=SYSTEM)
    assert await erase_due() == 0
    (welcome,) = await Notice.page(ada.id)
    assert welcome.kind == ACCOUNT_CREATED.notification_kind, "restoring sends no notification"


@pytest.mark.parametrize(
    "why", ["disabled", "by an administrator", "too late", "another password", "already open"]
)
async def test_an_account_that_its_owner_may_not_restore_stays_closed(
    db: Database, why: str
) -> None:
    root, ada = await register("root", "admin"), await register("ada")
    await delete(ada, by=acting(root) if why == "by an administrator" else None)
    token = await account_deletion.issue(await reloaded(ada))
    if why == "disabled":
        await ada.disable(by=acting(root))
    elif why == "too late":
        await make_due(ada)
    elif why == "another password":
        await User.change({"_id": ada.id}, {"$set": {"password_hash": "another"}})
    elif why == "already open":
        await ada.restore(by=acting(root))
        assert (await Notice.page(ada.id))[0].text == "root restored your account."
    before = await dump(db)
    assert await account_deletion.user_to_restore(token) is None
    with pytest.raises(TokenSpent):
        await account_deletion.restore_with_token(token, by=SYSTEM)
    assert await dump(db) == before


async def test_only_the_reset_token_works_on_a_deactivated_account(db: Database) -> None:
    ada = await register("ada")
    tokens = {
        purpose: await Token.issue(PydanticObjectId(), purpose, ada, ada.email, lasts=DAY)
        for purpose in (Purpose.CONFIRM, Purpose.RESET)
    }
    await ada.deactivate(by=acting(ada))
    usable = {each for each, token in tokens.items() if await Token.usable(each, token)}
    assert usable == {Purpose.RESET}
    await ada.disable(by=SYSTEM)
    assert await Token.usable(Purpose.RESET, tokens[Purpose.RESET]) is None


async def test_a_disabled_account_stays_disabled_when_restored(db: Database) -> None:
    ada = await register("ada")
    await ada.disable(by=SYSTEM)
    await delete(ada, by=SYSTEM)
    assert await ada.restore(by=SYSTEM)
    restored = await reloaded(ada)
    assert (restored.closed_at, restored.can_sign_in_or_restore) == (None, False)


async def test_the_owner_cannot_undo_a_deletion_by_an_administrator(
    db: Database,
) -> None:
    root, ada = await register("root", "admin"), await register("ada")
    await delete(ada)
    first = not_none((await reloaded(ada)).deletes_at)
    assert await delete(ada) is None, "the date stays"
    token = await account_deletion.issue(await reloaded(ada))
    event = not_none(await delete(ada, by=acting(root), with_posts=True))
    after = await reloaded(ada)
    assert (after.closed_by_owner, after.deletes_at, after.deletes_posts) == (False, first, True)
    assert event.details == {"until": first, "posts": "removed"}
    with pytest.raises(TokenSpent):
        await account_deletion.restore_with_token(token, by=SYSTEM)
    assert await emails(ada) == [DELETION_SCHEDULED.email_kind, "account.removed"]
    assert await delete(ada, by=acting(root)) is None, "the account is closed already"
    assert await delete(ada) is None, "it stays a deletion by an administrator"


@pytest.mark.parametrize("administrators", [2, 6])
@race(8, short=2)
async def test_concurrent_departures_leave_one_administrator(
    db: Database, administrators: int, rounds: range
) -> None:
    people = [await register(f"admin{i}", "admin") for i in range(administrators)]
    for number in rounds:

        def work(i: int, number: int = number) -> Any:
            user = people[i]
            ways = (
                lambda: user.deactivate(by=acting(user)),
                lambda: delete(user),
                lambda: delete(user, by=acting(people[i - 1])),
                lambda: user.disable(by=acting(people[i - 1])),
            )
            return ways[(i + number) % len(ways)]()

        done = await concurrently(
            *(work(i) for i in range(administrators)), unless=LastAdministrator
        )
        assert await active_administrators() == 1
        assert len(done) == administrators - 1
        for user in people:
            await user.enable(by=SYSTEM)
            await user.restore(by=SYSTEM)


async def test_a_restored_account_can_still_verify_the_address_that_it_claims(
    db: Database,
) -> None:
    member = await role("member")
    eve = await registration.claim("eve", "eve@example.org", "hash", roles=[member], by=SYSTEM)
    assert await eve.deactivate(by=SYSTEM, deletes_at=clock.now() + DAY / 2)
    assert await (await reloaded(eve)).restore(by=SYSTEM)
    assert await email_address.mark_verified(await reloaded(eve), by=SYSTEM)
    eve = await reloaded(eve)
    assert (eve.email, eve.claimed_email, eve.verified) == ("eve@example.org", None, True)


async def invited(email: str, *, by: User) -> Invitation:
    return await Invitation.write(email, None, by=acting(by))


async def change_address(user: User, email: str) -> None:
    """Change the user's email address and verify it."""
    await email_address.request_change(
        user, email, limit=limits.parse("5 per hour"), by=acting(user)
    )
    token = await Token.issue(PydanticObjectId(), Purpose.CONFIRM, user, email, lasts=DAY)
    await email_address.confirm_by_link(user, token, by=acting(user))


async def user_with_data(db: Database) -> tuple[User, User, dict[str, Any]]:
    """Return Ada, who has data in every collection, Bob, who has dealt with her, and some ids."""
    root, bob = await register("root", "admin"), await register("bob")
    moderator = await Role.named("moderator")
    await Invitation.write("Canary@example.org", moderator, by=acting(root))
    await (await invited("old-canary@example.org", by=root)).withdraw(by=acting(root))
    await invited("old-CANARY@example.org", by=root)
    mail = (await Mail.find({}, sort="-_id").to_list())[0]
    token = not_none(await invitation.issue(mail))["token"]
    ada = await Invitation.accept(token, "canary-ada", "canary-hash", by=SYSTEM)
    await change_address(ada, "canary@example.org")
    ada = await reloaded(ada)
    await Invitation.write("guest@example.org", None, by=acting(ada))
    _, cookie = await sign_in(ada)
    mine = await Post.write("Of canary", "text", by=acting(ada))
    other = await Post.write("Of bob", "text", by=acting(bob))
    await Comment.write(other, "by canary", by=acting(ada))
    await Comment.write(other, "by bob", by=acting(bob))
    await Comment.write(mine, "by bob", by=acting(bob))
    await not_none(await Comment.write(mine, "by bob", by=acting(bob))).remove(by=acting(root))
    await Token.issue(PydanticObjectId(), Purpose.CONFIRM, ada, ada.email, lasts=DAY)
    await password_reset.request("Canary@example.org", by=Actor(ip="192.0.2.7"))
    removed = await Post.write("Of canary, removed", "text", by=acting(ada))
    await removed.remove(by=acting(root))
    await sign_in(bob)
    await bob.end_sessions(Reason.ENDED_BY_ADMIN, by=acting(ada))
    return ada, bob, {"token": cookie, "mine": mine.id, "other": other.id}


@pytest.mark.parametrize("with_posts", [False, True])
async def test_erasing_removes_all_personal_data(db: Database, with_posts: bool) -> None:
    ada, bob, told = await user_with_data(db)
    before = await dump(db)
    await delete(ada, with_posts=with_posts)
    assert await erase_due() == 0, "the account is not due yet"
    await make_due(ada)
    assert await erase_due() == 1
    after = await dump(db)

    if not with_posts:
        # The posts stay as they are, so they may contain the name.
        for name in ("posts", "comments"):
            assert after[name] == before[name]
            after[name] = []
    assert [word for word in words(after) if "canary" in word.casefold()] == []
    # Records of users whom Ada invited or signed out keep her id.
    theirs = {name for name, rows in after.items() if str(ada.id) in str(rows)}
    assert theirs == {"events", "invitations", "sessions"}
    assert {session["user"].id for session in after["sessions"]} == {bob.id}
    (guest,) = after["invitations"]
    assert (guest["email"], guest["account"]) == ("guest@example.org", None)
    assert await session_is_gone(told["token"])
    for event in after["events"]:
        actor = event.get("actor")
        assert event["ip"] is None or (actor is not None and actor.id != ada.id), event
    last = after["events"][-1]
    erased = sorted(event["_id"] for event in after["events"] if "erased_for" in event)
    assert (last["verb"], last["details"]) == (
        "user.erased",
        {"posts": "removed" if with_posts else "kept", "erased": erased},
    )
    assert [each.text for each in await Notice.page(bob.id, limit=3)] == [
        f"{DELETED_USER} ended your sessions.",
        "root removed your comment on “a post of a deleted user”.",
        f"{DELETED_USER} commented on “Of bob”.",
    ]
    root = not_none(await User.by_username("root"))
    assert (await Notice.page(root.id, limit=1))[0].text == (
        f"{DELETED_USER} accepted your invitation to their address."
    )
    if with_posts:
        (post,) = after["posts"]
        assert (post["_id"], post["comment_count"]) == (told["other"], 1)
        assert [each["body"] for each in after["comments"]] == ["by bob"]


async def test_the_export_has_the_users_data_and_no_identity_of_others(db: Database) -> None:
    ada, _, _ = await user_with_data(db)
    found = json.loads("".join([piece async for piece in data_export.export(ada)]))
    invitations = sorted(found["invitations"], key=lambda each: each["created_at"])
    told = [
        (each["by"], each["to"], each.get("email"), "withdrawn_at" in each, "accepted_at" in each)
        for each in invitations
    ]
    assert told == [
        ("somebody else", "you", "Canary@example.org", False, False),
        ("somebody else", "you", "old-canary@example.org", True, False),
        ("somebody else", "you", "old-CANARY@example.org", False, True),
        ("you", "somebody else", None, False, False),
    ]
    assert invitations[0]["role"] == "moderator"
    events = [(each["verb"], each["by"], each.get("to")) for each in found["events"]]
    assert events.count(("user.invited", "somebody else", "you")) == 3
    assert ("invitation.withdrawn", "somebody else", "you") in events
    (written,) = [
        each for each in found["events"] if (each["verb"], each["by"]) == ("user.invited", "you")
    ]
    assert "details" not in written
    # The export has the actions on other users, without their details.
    (ended,) = [each for each in found["events"] if each["verb"] == "sessions.ended"]
    assert (ended["by"], ended["to"], ended["ip"]) == ("you", "somebody else", "192.0.2.7")
    assert "details" not in ended
    assert "guest@" not in str(found)
    assert {each["letter"] for each in found["outbox"]} >= {"user.invited", "password.reset"}


async def test_later_data_of_a_former_address_is_not_exported_or_erased(
    db: Database,
) -> None:
    root, ada = await register("root", "admin"), await register("ada")
    await change_address(ada, "new@example.org")
    later = await invited("ada@example.org", by=root)
    found = json.loads("".join([piece async for piece in data_export.export(await reloaded(ada))]))
    assert found["invitations"] == []
    assert "user.invited" not in {each["verb"] for each in found["events"]}
    await delete(ada)
    await make_due(ada)
    await erase_due()
    assert await Invitation.get(later.id)
    assert await Event.find({"details.email": "ada@example.org"}).count() == 1
    assert await Mail.find({"to": "ada@example.org", "user": None}).count() == 1


async def test_erasing_reads_few_documents_of_other_users(db: Database) -> None:
    ada, _, _ = await user_with_data(db)
    await delete(ada, with_posts=True)
    await make_due(ada)
    held = {personal.name for personal in personal_data.PERSONAL}
    for name in held:
        await db[name].insert_many([of_another(number) for number in range(100)])
        # The cached plans are of nearly empty collections.
        await db.command("planCacheClear", name)
    await db.command("profile", 2)
    assert await erase_due() == 1
    await db.command("profile", 0)
    read = [row async for row in db["system.profile"].find({"docsExamined": {"$gt": 60}})]
    # The outbox has only queued emails, so a scan of it is short.
    assert {row["ns"].partition(".")[2] for row in read} & held <= {"outbox"}, read


def of_another(number: int) -> dict[str, Any]:
    """Return a document about another user that fits into any collection."""
    other, email = DBRef("users", PydanticObjectId()), f"{number}@example.org"
    links = dict.fromkeys(("user", "author", "by", "account", "actor", "subject"), other)
    unique = {"seq": number, "digest": email, "credential_id": email}
    return {**links, **unique, "email": email, "details": {"email": email}, "data": {"by": email}}


async def session_is_gone(token: str) -> bool:
    return await session_states.state_by_digest(digest_of(token)) is None


async def test_a_username_is_available_only_after_the_erasure(db: Database) -> None:
    ada = await register("ada")
    await delete(ada)
    with pytest.raises(Exception, match="taken"):
        await register("ADA")
    await make_due(ada)
    await erase_due()
    another = await register("ADA")
    assert another.id != ada.id
    assert await Post.page(author=another.id) == []


async def test_concurrent_workers_erase_and_record_each_account_once(db: Database) -> None:
    people = [await register(f"ada{i}") for i in range(6)]
    for user in people:
        await delete(user)
        await make_due(user)
    erased = await concurrently(*(erase_due() for _ in range(4)))
    assert sum(erased) == len(people)
    assert await Event.find({"verb": ACCOUNT_DELETED.audit}).count() == len(people)
    assert await User.find({}).count() == 0


async def test_an_erasure_that_a_dead_worker_began_is_completed(db: Database) -> None:
    ada, _, told = await user_with_data(db)
    await delete(ada, with_posts=True)
    await make_due(ada)
    begun = not_none(await account_deletion.claim())
    for personal in personal_data.PERSONAL[:6]:
        async for _ in personal.erase(await Person.of(begun)):
            pass
    assert await account_deletion.claim() is None, "the lease has not expired"
    over = {"$set": {"erasing_until": clock.now() - timedelta(seconds=1)}}
    assert await User.change({"_id": ada.id}, over)
    assert await erase_due() == 1
    # The first worker was only slow and finishes later.
    assert await account_deletion.erase(begun) is False
    assert await Event.find({"verb": ACCOUNT_DELETED.audit}).count() == 1
    assert not_none(await Post.get(told["other"])).comment_count == 1


@race(12, short=3)
async def test_a_restore_during_the_erasure_keeps_everything_or_nothing(
    db: Database, rounds: range
) -> None:
    for number in rounds:
        ada = await register(f"ada{number}")
        await Post.write("A post", "text", by=acting(ada))
        until = clock.now() + timedelta(milliseconds=20)
        await ada.deactivate(by=acting(ada), deletes_at=until, with_posts=True)

        async def erase(until: Any = until) -> int:
            while clock.now() < until + timedelta(milliseconds=random.randint(0, 4)):
                pass
            return await erase_due()

        async def restore(ada: User = ada, until: Any = until) -> bool:
            await concurrently()
            return await ada.restore(by=SYSTEM) is not None

        restored, erased = await concurrently(restore(), erase())
        posts = len(await Post.page(author=ada.id))
        user = await User.get(ada.id)
        assert (posts, user is not None) == ((1, True) if restored else (0, False))
        assert erased == (0 if restored else 1)


async def test_an_account_being_erased_cannot_be_restored(db: Database) -> None:
    ada = await register("ada")
    await delete(ada)
    await make_due(ada)
    assert await ada.restore(by=SYSTEM) is None
    # Not even if the date is moved afterwards.
    assert await account_deletion.claim()
    await User.change({"_id": ada.id}, {"$set": {"deletes_at": clock.now() + DAY}})
    assert await ada.restore(by=SYSTEM) is None


async def test_a_comment_written_during_the_erasure_is_deleted_with_its_post(
    db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    ada, bob = await register("ada"), await register("bob")
    post = await Post.write("A post", "text", by=acting(ada))
    await delete(ada, with_posts=True)
    await make_due(ada)
    said: list[Comment | None] = []

    async def late(work: Any) -> Any:
        said.append(await Comment.write(post, "Late", by=acting(bob)))
        return await mongo.transaction(work)

    monkeypatch.setattr(erasing, "transaction", late)
    assert await erase_due() == 1
    assert said[0] is not None
    assert await Comment.find({}).count() == 0


async def test_notifications_and_emails_created_during_the_erasure_are_erased(
    db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    ada, bob = await register("ada"), await register("bob")
    post = await Post.write("A post", "text", by=acting(ada))
    await delete(ada)
    await make_due(ada)
    forget_name = personal_data.forget_name

    async def late(user: User) -> AsyncIterator[int]:
        async for count in forget_name(user):
            yield count
        await Comment.write(post, "Late", by=acting(bob))
        await password_reset.request("ADA@example.org", by=SYSTEM)

    monkeypatch.setattr(personal_data, "forget_name", late)
    assert await erase_due() == 1
    assert await Notice.find({"user.$id": ada.id}).count() == 0
    assert await Mail.find({}).count() == 0


def test_every_collection_is_declared_as_personal_or_impersonal() -> None:
    held = [personal.document for personal in personal_data.PERSONAL]
    declared = [User, *held, *personal_data.IMPERSONAL, *personal_data.IDS_ONLY]
    assert set(declared) == set(DOCUMENTS)
    assert len(declared) == len(DOCUMENTS)
    for document in (*personal_data.IMPERSONAL, *personal_data.IDS_ONLY):
        types = {name: str(field.annotation) for name, field in document.model_fields.items()}
        links = [name for name, annotation in types.items() if "User" in annotation]
        by_id = personal_data.IDS_ONLY.get(document)
        assert links == ([by_id] if by_id else []), document
