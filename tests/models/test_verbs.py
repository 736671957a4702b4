"""Each verb of the domain: what it changes, whom it tells, and that it does all or nothing."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

import pytest
from pymongo.errors import OperationFailure

from quartapp import clock
from quartapp.db.mongo import Database
from quartapp.models.accounts.account import Taken
from quartapp.models.accounts.administrators import LastAdministrator
from quartapp.models.accounts.credential import fingerprint
from quartapp.models.accounts.one_time_token import (
    TokenSpent,
    issue_setup,
    make_first_administrator,
    setup_is_open,
)
from quartapp.models.accounts.registration import register as register_account
from quartapp.models.accounts.user import PasswordMoved, User
from quartapp.models.audit import activity
from quartapp.models.audit.event import Event, Verb
from quartapp.models.base.actor import NOBODY, Actor
from quartapp.models.notifications.notice import Notice
from quartapp.models.posts.comment import Comment
from quartapp.models.posts.post import Post
from quartapp.models.privacy import personal_data
from quartapp.models.roles.role import BuiltInRole, Role, RoleGone, RoleTaken
from quartapp.models.sessions.reason import Reason
from quartapp.models.sessions.session import Session
from quartapp.policy import Permission
from tests.models.stories import (
    NOTHING,
    accepting,
    acting,
    again,
    dump,
    names_of_roles,
    register,
    role,
    sign_in,
    some,
    why_over,
)


@dataclass
class Cast:
    """Root, who acts, and Ada, whom it happens to, with two devices; Bob, whom it does not."""

    root: User
    ada: User
    bob: User
    editor: Role
    laptop: Session
    tokens: tuple[str, str]
    of_bob: str

    async def ended(self, reason: Reason, *, by: User | None) -> None:
        """Both of Ada's sessions are over, and say so; Bob's lives."""
        for session in await Session.find({"user.$id": self.ada.id}).to_list():
            assert session.ended_at is not None
            assert session.ended_reason == reason
            assert (session.ended_by and session.ended_by.ref.id) == (by and by.id)
        for token in self.tokens:
            assert await why_over(token) is reason
        assert await why_over(self.of_bob) is None

    async def go_on(self) -> None:
        for token in self.tokens:
            assert await why_over(token) is None

    async def recorded(self, verb: Verb, *, subject: User | None, **details: Any) -> None:
        """The newest line of the record."""
        event = await Event.find({}, sort="-_id").first_or_none()
        assert event is not None
        assert event.verb == verb
        assert event.actor is not None
        assert event.actor.ref.id == self.root.id
        assert event.ip == "192.0.2.7"
        assert (event.subject and event.subject.ref.id) == (subject and subject.id)
        assert event.details == details

    async def told(self, text: str) -> None:
        """Ada's newest notice. Bob has none but his welcome."""
        notice = (await Notice.page(self.ada.id, limit=1))[0]
        assert notice.text == text
        assert notice.seq == (await again(self.ada)).notice_seq
        assert len(await Notice.page(self.bob.id)) == 1


@pytest.fixture
async def cast(db: Database) -> Cast:
    root = await register("root", "admin")
    editor = await Role.add("editor", "", [Permission.POSTS_MODERATE], by=acting(root))
    ada, bob = await register("ada", "member", "editor"), await register("bob", "member")
    (laptop, first), (_, second), (_, of_bob) = (
        await sign_in(ada),
        await sign_in(ada),
        await sign_in(bob),
    )
    return Cast(root, ada, bob, editor, laptop, (first, second), of_bob)


@pytest.mark.parametrize("address", ["192.0.2.9", None])
async def test_registering_makes_an_account_a_line_in_the_record_and_a_welcome(
    db: Database, address: str | None
) -> None:
    by = Actor(ip=address)
    ada = await register_account("Ada", "Ada@B.org", "hash", roles=[await role("member")], by=by)
    found = await again(ada)
    assert (found.username, found.email, found.password_hash) == ("Ada", "Ada@B.org", "hash")
    assert await names_of_roles(ada) == {"member"}
    event = await Event.find_one({})
    assert event is not None
    assert event.verb == Verb.USER_REGISTERED
    # Visitors come with an address and register themselves; an operator does it for others.
    assert (event.actor and event.actor.ref.id) == (ada.id if address else None)
    assert (event.ip, event.details) == (address, {"roles": ["member"]})
    (welcome,) = await Notice.after(ada.id, 0)
    assert welcome.text.startswith("Welcome, Ada.")
    assert found.notice_seq == welcome.seq == 1


@pytest.mark.parametrize("login", ["Ada", "ada", "ADA", "ada@b.org", "ADA@B.ORG"])
async def test_people_are_found_in_any_case(db: Database, login: str) -> None:
    ada = await register_account("Ada", "Ada@B.org", "hash", roles=[], by=NOBODY)
    found = await User.by_login(login)
    assert found is not None
    assert found.id == ada.id


@pytest.mark.parametrize("login", ["", "ad", "ada2", "ad@b.org", ".*", "$ne", "(", "@"])
async def test_nobody_is_found_by_less_than_a_name(db: Database, login: str) -> None:
    await register_account("Ada", "Ada@B.org", "hash", roles=[], by=NOBODY)
    assert await User.by_login(login) is None


async def test_a_role_is_granted_in_place(cast: Cast) -> None:
    version = cast.ada.authz_version
    moderator = await role("moderator")
    assert await cast.ada.grant(moderator, by=acting(cast.root))
    assert await names_of_roles(cast.ada) == {"member", "editor", "moderator"}
    assert (await again(cast.ada)).authz_version == version + 1
    await cast.recorded(Verb.ROLE_GRANTED, subject=cast.ada, role="moderator")
    await cast.told("root gave you the role moderator.")
    await cast.go_on()


async def test_a_revoked_role_ends_the_sessions(cast: Cast) -> None:
    version = cast.ada.authz_version
    assert await cast.ada.revoke(cast.editor, by=acting(cast.root))
    assert await names_of_roles(cast.ada) == {"member"}
    assert (await again(cast.ada)).authz_version == version + 1
    await cast.ended(Reason.ROLE_REVOKED, by=cast.root)
    await cast.recorded(Verb.ROLE_REVOKED, subject=cast.ada, role="editor")
    await cast.told("root took the role editor from you.")


async def test_a_disabled_account_loses_its_sessions_and_gets_none_of_them_back(
    cast: Cast,
) -> None:
    version = cast.ada.authz_version
    assert await cast.ada.disable(by=acting(cast.root))
    assert (await again(cast.ada)).disabled_at is not None
    assert (await again(cast.ada)).authz_version == version + 1
    await cast.ended(Reason.ACCOUNT_DISABLED, by=cast.root)
    await cast.recorded(Verb.USER_DISABLED, subject=cast.ada)
    await cast.told("root disabled your account.")

    assert await cast.ada.enable(by=acting(cast.root))
    assert (await again(cast.ada)).disabled_at is None
    assert (await again(cast.ada)).authz_version == version + 2
    await cast.recorded(Verb.USER_ENABLED, subject=cast.ada)
    await cast.told("root enabled your account again.")
    await cast.ended(Reason.ACCOUNT_DISABLED, by=cast.root)


async def test_sessions_ended_by_an_administrator(cast: Cast) -> None:
    event = some(await cast.ada.end_sessions(Reason.ENDED_BY_ADMIN, by=acting(cast.root)))
    assert event.details["count"] == 2
    await cast.ended(Reason.ENDED_BY_ADMIN, by=cast.root)
    await cast.recorded(Verb.SESSIONS_ENDED, subject=cast.ada, reason="ended_by_admin", count=2)
    await cast.told("root ended your sessions.")


async def test_ending_the_others_keeps_this_one(cast: Cast) -> None:
    told = (await again(cast.ada)).notice_seq
    ended = await cast.ada.end_sessions(
        Reason.ENDED_BY_USER, by=acting(cast.ada), keep=cast.laptop.id
    )
    assert some(ended).details["count"] == 1
    assert [await why_over(token) for token in cast.tokens] == [None, Reason.ENDED_BY_USER]
    assert (await again(cast.ada)).notice_seq == told


async def test_one_session_is_ended_once(cast: Cast) -> None:
    assert await cast.laptop.end(Reason.ENDED_BY_ADMIN, by=acting(cast.root))
    told = {"reason": "ended_by_admin", "device": "Firefox", "count": 1}
    await cast.recorded(Verb.SESSION_ENDED, subject=cast.ada, **told)
    lines = await Event.find({}).count()
    assert not await cast.laptop.end(Reason.SIGNED_OUT, by=acting(cast.ada))
    assert [await why_over(token) for token in cast.tokens] == [Reason.ENDED_BY_ADMIN, None]
    assert await Event.find({}).count() == lines


async def test_a_changed_password_ends_the_others_and_renews_the_one_that_is_kept(
    cast: Cast,
) -> None:
    renewed = await cast.ada.change_password("new", by=acting(cast.root), keep=cast.laptop.id)
    assert renewed is not None
    assert (await again(cast.ada)).password_hash == "new"
    assert (await again(cast.ada)).password_changed_at > cast.ada.password_changed_at
    assert await why_over(renewed) is None
    stale, other = cast.tokens
    assert await why_over(other) is Reason.PASSWORD_CHANGED
    with pytest.raises(AssertionError):
        await why_over(stale)  # the cookie from before leads nowhere
    await cast.recorded(Verb.PASSWORD_CHANGED, subject=cast.ada)
    await cast.told("Your password was changed. Any other session has ended.")
    assert await why_over(cast.of_bob) is None


async def test_a_changed_password_without_a_session_to_keep_ends_all(cast: Cast) -> None:
    assert await cast.ada.change_password("new", by=acting(cast.root)) is None
    await cast.ended(Reason.PASSWORD_CHANGED, by=cast.root)


async def test_a_session_that_is_over_is_not_revived_by_a_new_password(cast: Cast) -> None:
    await cast.laptop.end(Reason.ENDED_BY_ADMIN, by=acting(cast.root))
    assert await cast.ada.change_password("new", by=acting(cast.ada), keep=cast.laptop.id) is None
    assert await why_over(cast.tokens[0]) is Reason.ENDED_BY_ADMIN


async def test_somebody_elses_session_cannot_be_kept(cast: Cast) -> None:
    of_bob = await Session.find_one({"user.$id": cast.bob.id})
    assert of_bob is not None
    await cast.ada.change_password("new", by=acting(cast.ada), keep=of_bob.id)
    await cast.ended(Reason.PASSWORD_CHANGED, by=cast.ada)


async def test_a_password_that_moved_meanwhile_is_not_overwritten(cast: Cast) -> None:
    await (await again(cast.ada)).change_password("theirs", by=acting(cast.root))
    with pytest.raises(PasswordMoved):
        await cast.ada.change_password("mine", by=acting(cast.ada))
    await cast.ada.upgrade_hash("upgraded")
    assert (await again(cast.ada)).password_hash == "theirs"
    assert cast.ada.password_hash == "hash of ada"


async def test_a_hash_made_anew_ends_nothing_and_tells_nobody(cast: Cast) -> None:
    lines, told = await Event.find({}).count(), (await again(cast.ada)).notice_seq
    await cast.ada.upgrade_hash("upgraded")
    assert (await again(cast.ada)).password_hash == cast.ada.password_hash == "upgraded"
    await cast.go_on()
    _, third = await sign_in(cast.ada)
    assert await why_over(third) is None
    assert await Event.find({"verb": {"$ne": Verb.SESSION_STARTED}}).count() == lines - 3
    assert (await again(cast.ada)).notice_seq == told


async def test_of_two_sign_ins_that_upgrade_the_hash_both_stay(cast: Cast) -> None:
    slower = await again(cast.ada)
    await cast.ada.upgrade_hash("upgraded")
    await slower.upgrade_hash("upgraded, too")
    _, token = await sign_in(slower)
    assert await why_over(token) is None
    await (await again(cast.ada)).upgrade_hash("and once more")
    assert await why_over(token) is None


async def test_a_hash_written_by_hand_ends_sessions_also_after_an_upgrade(cast: Cast) -> None:
    await cast.ada.upgrade_hash("upgraded")
    _, token = await sign_in(await again(cast.ada))
    await User.change({"_id": cast.ada.id}, {"$set": {"password_hash": "by hand"}})
    assert await why_over(token) is Reason.PASSWORD_CHANGED


async def test_a_hash_made_anew_revives_no_session_of_an_older_password(cast: Cast) -> None:
    stale = await sign_in(cast.ada)
    await Session.change({"_id": stale[0].id}, {"$set": {"credential": fingerprint("older")}})
    await cast.ada.upgrade_hash("upgraded")
    assert await why_over(stale[1]) is Reason.PASSWORD_CHANGED


async def test_a_role_is_added_edited_and_removed(cast: Cast) -> None:
    version = cast.ada.authz_version
    of_bob = (await again(cast.bob)).authz_version
    write, moderate = Permission.POSTS_WRITE, Permission.POSTS_MODERATE
    await cast.editor.edit(
        name="Editor", description="Edits.", permissions=[write], by=acting(cast.root)
    )
    found = await role("editor")
    assert (found.name, found.description, found.permissions) == ("Editor", "Edits.", [write])
    assert (await again(cast.ada)).authz_version == version + 1
    await cast.recorded(
        Verb.ROLE_EDITED, subject=None, role="Editor", allowed=[write], forbidden=[moderate]
    )
    await cast.go_on()

    assert some(await found.remove(by=acting(cast.root))).details["holders"] == 1
    assert await Role.named("editor") is None
    assert await names_of_roles(cast.ada) == {"member"}
    assert (await again(cast.ada)).authz_version == version + 2
    assert (await again(cast.bob)).authz_version == of_bob
    await cast.ended(Reason.ROLE_DELETED, by=cast.root)
    await cast.recorded(Verb.ROLE_DELETED, subject=None, role="Editor", holders=1)
    await cast.told("root deleted the role Editor, which you held.")


async def test_each_holder_of_a_deleted_role_finds_that_among_what_has_happened(cast: Cast) -> None:
    ben = await register("ben", "editor")
    deleted = some(await cast.editor.remove(by=acting(cast.root)))
    for user, concerned in ((cast.ada, True), (ben, True), (cast.bob, False)):
        events = await activity.page(user.id, before=None, limit=10)
        texts = [activity.text(event) for event in events if event.id == deleted.id]
        assert texts == ["The role editor, which you held, was deleted"] * concerned
        assert await activity.page(user.id, before=deleted.id, limit=10)
        shown = json.loads(
            "".join([piece async for piece in personal_data.export(await again(user))])
        )
        found = [each for each in shown["events"] if each["verb"] == "role.deleted"]
        assert [(each["by"], each["to"], each["details"]["role"]) for each in found] == [
            ("somebody else", "you", "editor")
        ] * concerned


async def test_two_roles_cannot_have_one_name(cast: Cast) -> None:
    with pytest.raises(RoleTaken):
        await Role.add("EDITOR", "", [], by=acting(cast.root))
    before = await dump_of_roles()
    with pytest.raises(RoleTaken):
        await cast.editor.edit(name="Member", description="", permissions=[], by=NOBODY)
    assert await dump_of_roles() == before


async def dump_of_roles() -> list[tuple[str, str]]:
    return [(found.name, found.description) for found in await Role.everyone()]


@pytest.mark.parametrize("name", ["admin", "moderator", "member"])
async def test_built_in_roles_stay(db: Database, name: str) -> None:
    built_in = await role(name)
    with pytest.raises(BuiltInRole):
        await built_in.remove(by=NOBODY)
    with pytest.raises(BuiltInRole):
        await built_in.edit(name="other", description="", permissions=[], by=NOBODY)
    assert (await role(name)).permissions == built_in.permissions


async def test_the_role_that_may_do_everything_cannot_be_made_to_do_less(db: Database) -> None:
    with pytest.raises(BuiltInRole):
        await (await role("admin")).edit(name="admin", description="", permissions=[], by=NOBODY)
    assert set((await role("admin")).permissions) == set(Permission)


@pytest.mark.parametrize("verb", ["revoke", "disable"])
async def test_the_last_administrator_stays(cast: Cast, db: Database, verb: str) -> None:
    admin = await role("admin")
    closed = await register("closed", "admin")
    assert await closed.disable(by=acting(cast.root))
    _, token = await sign_in(cast.root)
    before = await dump(db)
    with pytest.raises(LastAdministrator):
        await (
            cast.root.disable(by=NOBODY)
            if verb == "disable"
            else cast.root.revoke(admin, by=NOBODY)
        )
    assert await dump(db) == before
    assert await why_over(token) is None


async def test_nothing_is_done_twice(cast: Cast, db: Database) -> None:
    moderator, by = await role("moderator"), acting(cast.root)
    await cast.ada.disable(by=by)
    await cast.ada.revoke(cast.editor, by=by)
    await cast.bob.grant(moderator, by=by)
    gone = await Role.add("gone", "", [], by=by)
    await gone.remove(by=by)
    before = await dump(db)
    assert not await cast.ada.disable(by=by)
    assert not await cast.ada.revoke(cast.editor, by=by)
    assert not await cast.bob.grant(moderator, by=by)
    assert not await cast.bob.enable(by=by)
    assert not await cast.bob.revoke(cast.editor, by=by)
    assert not await cast.ada.end_sessions(Reason.ENDED_BY_ADMIN, by=by)
    assert not await gone.remove(by=by)
    with pytest.raises(RoleGone):
        await cast.bob.grant(gone, by=by)
    after = await dump(db)
    # Each attempt writes the guard and the documents of the users concerned, so that it and a
    # change of their permissions exclude each other. Ending sessions forgets the known browsers of
    # users who have no session, too.
    for dumped in (before, after):
        dumped["guards"] = []
        for user in dumped["users"]:
            user.pop("acts", None)
            user.pop("browsers_forgotten")
    assert after == before


# ---- the first administrator


async def test_the_setup_link_makes_one_administrator_and_is_spent(db: Database) -> None:
    first, second = await issue_setup(), await issue_setup()
    assert first is not None
    assert second is not None
    assert not await setup_is_open(first), "a fresh link takes the place of all before it"
    assert await setup_is_open(second)
    root = await make_first_administrator(second, "root", "r@b.org", "hash", by=NOBODY)
    assert await names_of_roles(root) == {"admin", "member"}
    assert not await setup_is_open(second)
    assert await issue_setup() is None
    with pytest.raises(TokenSpent):
        await make_first_administrator(second, "eve", "e@b.org", "hash", by=NOBODY)


async def test_a_taken_name_leaves_the_setup_link_as_good_as_before(db: Database) -> None:
    await register("ada", "member")
    token = await issue_setup()
    assert token is not None
    with pytest.raises(Taken):
        await make_first_administrator(token, "Ada", "x@b.org", "hash", by=NOBODY)
    assert await setup_is_open(token)
    await make_first_administrator(token, "root", "x@b.org", "hash", by=NOBODY)


@pytest.mark.parametrize("change", ["expires_at", "used_at", "purpose", "token", "promoted"])
async def test_a_link_that_is_too_old_or_not_ours_leads_nowhere(db: Database, change: str) -> None:
    token = await issue_setup()
    assert token is not None
    match change:
        case "expires_at" | "used_at":
            await db["tokens"].update_one({}, {"$set": {change: clock.now()}})
        case "purpose":
            await db["tokens"].update_one({}, {"$set": {"purpose": "other"}})
        case "token":
            token = token[::-1]
        case _:
            await register("root", "admin")
    assert not await setup_is_open(token)
    with pytest.raises(TokenSpent):
        await make_first_administrator(token, "eve", "e@b.org", "hash", by=NOBODY)
    assert await User.by_username("eve") is None


# ---- all or nothing (P2)

Act = Callable[[Cast], Awaitable[object]]


async def _removed_post(cast: Cast) -> None:
    post = await Post.find_one({})
    assert post is not None
    await post.remove(by=acting(cast.root))


async def _written_comment(cast: Cast) -> None:
    post = await Post.find_one({})
    assert post is not None
    await Comment.write(post, "hm", by=acting(cast.root))


async def _removed_comment(cast: Cast) -> None:
    comment = await Comment.find_one({})
    assert comment is not None
    await comment.remove(by=acting(cast.root))


VERBS: dict[str, tuple[Act, set[str]]] = {
    "register": (
        lambda c: register_account("eve", "e@b.org", "hash", roles=[c.editor], by=NOBODY),
        {"users", "events", "notices"},
    ),
    "grant": (
        lambda c: c.bob.grant(c.editor, by=acting(c.root)),
        {"users", "roles", "events", "notices"},
    ),
    "revoke": (
        lambda c: c.ada.revoke(c.editor, by=acting(c.root)),
        {"users", "sessions", "events", "notices", "barriers"},
    ),
    "disable": (
        lambda c: c.ada.disable(by=acting(c.root)),
        {"users", "sessions", "events", "notices", "guards", "barriers"},
    ),
    "enable": (lambda c: c.bob.enable(by=acting(c.root)), {"users", "events", "notices"}),
    "end sessions": (
        lambda c: c.ada.end_sessions(Reason.ENDED_BY_ADMIN, by=acting(c.root)),
        {"users", "sessions", "events", "notices", "barriers"},
    ),
    "end one session": (
        lambda c: c.laptop.end(Reason.ENDED_BY_ADMIN, by=acting(c.root)),
        {"sessions", "events", "barriers"},
    ),
    "start a session": (lambda c: sign_in(c.ada), {"sessions", "events"}),
    "change the password": (
        lambda c: c.ada.change_password("new", by=acting(c.ada), keep=c.laptop.id),
        {"users", "sessions", "events", "notices", "outbox", "mailboxes"},
    ),
    "upgrade the hash": (lambda c: c.ada.upgrade_hash("new"), {"users"}),
    "add a role": (lambda c: Role.add("new", "", [], by=acting(c.root)), {"roles", "events"}),
    "edit a role": (
        lambda c: c.editor.edit(name="new", description="", permissions=[], by=acting(c.root)),
        {"roles", "users", "events"},
    ),
    "remove a role": (
        lambda c: c.editor.remove(by=acting(c.root)),
        {"roles", "users", "sessions", "events", "notices", "barriers"},
    ),
    "comment": (_written_comment, {"posts", "comments", "users", "notices"}),
    "remove a comment": (_removed_comment, {"posts", "comments", "users", "events", "notices"}),
    "remove a post": (_removed_post, {"posts", "comments", "users", "events", "notices"}),
}
# A deletion is refused by no validator, so for these collections another write must fail.
DELETES = {"remove a role": {"roles"}, "remove a comment": {"comments"}} | {
    "remove a post": {"posts", "comments"}
}


@pytest.mark.parametrize("verb", VERBS)
async def test_a_verb_whose_writes_fail_anywhere_has_done_nothing(
    cast: Cast, db: Database, verb: str
) -> None:
    act, writes = VERBS[verb]
    if verb == "enable":
        await cast.bob.disable(by=NOBODY)
    post = await Post.write("On engines", "…", by=acting(cast.ada))
    await Comment.write(post, "first", by=acting(cast.bob))
    before = await dump(db)
    failures: list[tuple[str, Mapping[str, Any]]] = [
        (collection, NOTHING) for collection in writes - DELETES.get(verb, set())
    ]
    if "notices" in writes and verb != "register":
        # The last of the writes of a user's document: the number of the notice.
        failures.append(("users", _untold(before)))
    for collection, accepted in failures:
        async with accepting(db, collection, accepted):
            with pytest.raises(OperationFailure, match="failed validation"):
                await act(cast)
        assert await dump(db) == before, f"a failing write of {collection} left something behind"
    await act(cast)
    after = await dump(db)
    assert {name for name in after if after[name] != before[name]} == writes


def _untold(before: dict[str, list[dict[str, Any]]]) -> Mapping[str, Any]:
    """Users as they are, but for their number of notices."""
    return {
        "$or": [{"_id": user["_id"], "notice_seq": user["notice_seq"]} for user in before["users"]]
    }
