"""Each operation on accounts, roles and sessions: what it changes, records and notifies."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

import pytest
from pymongo.errors import OperationFailure

from quartapp import clock
from quartapp.activities import (
    ACCOUNT_CREATED,
    ACCOUNT_DISABLED,
    ACCOUNT_ENABLED,
    PASSWORD_CHANGED,
    ROLE_DELETED,
    ROLE_EDITED,
    ROLE_GRANTED,
    ROLE_REVOKED,
    SESSION_ENDED,
    SESSIONS_ENDED,
    SIGNED_IN,
    Activity,
)
from quartapp.db.mongo import Database, transaction
from quartapp.jobs import role_deletions
from quartapp.models.accounts.account import Taken
from quartapp.models.accounts.administrators import LastAdministrator
from quartapp.models.accounts.credential import fingerprint
from quartapp.models.accounts.one_time_token import (
    TokenSpent,
    issue_setup,
    make_first_administrator,
    setup_is_open,
)
from quartapp.models.accounts.registration import create_for
from quartapp.models.accounts.registration import register as register_account
from quartapp.models.accounts.user import PasswordMoved, User
from quartapp.models.audit import activity
from quartapp.models.audit.event import Event
from quartapp.models.base.actor import SYSTEM, Actor
from quartapp.models.invitations.invitation import Invitation
from quartapp.models.notifications.notice import Notice
from quartapp.models.posts.comment import Comment
from quartapp.models.posts.post import Post
from quartapp.models.privacy import data_export
from quartapp.models.roles import role as roles
from quartapp.models.roles.deletion import RoleDeletion
from quartapp.models.roles.refusals import BuiltInRole, RoleGone, RoleTaken
from quartapp.models.roles.role import Role
from quartapp.models.sessions.reason import Reason
from quartapp.models.sessions.session import Session
from quartapp.policy import Permission
from tests.integration.models.helpers import (
    NOTHING,
    acting,
    dump,
    end_reason,
    not_none,
    only_accepting,
    register,
    reloaded,
    role,
    role_names,
    sign_in,
    stored,
    version_of,
)


@dataclass
class Cast:
    """Root, who acts; Ada, the user concerned, with two sessions; and Bob, who is not concerned."""

    root: User
    ada: User
    bob: User
    editor: Role
    laptop: Session
    tokens: tuple[str, str]
    of_bob: str

    async def ended(self, reason: Reason, *, by: User | None) -> None:
        """Check that both sessions of Ada have ended with this reason, and that Bob's is active."""
        for session in await Session.find({"user.$id": self.ada.id}).to_list():
            assert session.ended_at is not None
            assert session.ended_reason == reason
            assert (session.ended_by and session.ended_by.ref.id) == (by and by.id)
        for token in self.tokens:
            assert await end_reason(token) is reason
        assert await end_reason(self.of_bob) is None

    async def sessions_are_active(self) -> None:
        for token in self.tokens:
            assert await end_reason(token) is None

    async def recorded(self, activity: Activity, *, subject: User | None, **details: Any) -> None:
        """Check the newest audit event."""
        event = await Event.find({}, sort="-_id").first_or_none()
        assert event is not None
        assert event.verb == activity.audit
        assert event.actor is not None
        assert event.actor.ref.id == self.root.id
        assert event.ip == "192.0.2.7"
        assert (event.subject and event.subject.ref.id) == (subject and subject.id)
        assert event.details == details

    async def told(self, text: str) -> None:
        """Check Ada's newest notification. Bob has only his welcome."""
        notice = (await Notice.page(self.ada.id, limit=1))[0]
        assert notice.text == text
        assert notice.seq == (await reloaded(self.ada)).notice_seq
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
async def test_registering_creates_account_audit_event_and_notification(
    db: Database, address: str | None
) -> None:
    by = Actor(ip=address)
    ada = await register_account("Ada", "Ada@B.org", "hash", roles=[await role("member")], by=by)
    found = await reloaded(ada)
    assert (found.username, found.email, found.password_hash) == ("Ada", "Ada@B.org", "hash")
    assert await role_names(ada) == {"member"}
    event = await Event.find_one({})
    assert event is not None
    assert event.verb == ACCOUNT_CREATED.audit
    # Visitors have an IP address and register themselves; an operator registers others.
    assert (event.actor and event.actor.ref.id) == (ada.id if address else None)
    assert (event.ip, event.details) == (address, {"roles": ["member"]})
    (welcome,) = await Notice.after(ada.id, 0)
    assert welcome.text.startswith("Welcome, Ada.")
    assert found.notice_seq == welcome.seq == 1


@pytest.mark.parametrize("login", ["Ada", "ada", "ADA", "ada@b.org", "ADA@B.ORG"])
async def test_users_are_found_in_any_case(db: Database, login: str) -> None:
    ada = await register_account("Ada", "Ada@B.org", "hash", roles=[], by=SYSTEM)
    found = await User.by_login(login)
    assert found is not None
    assert found.id == ada.id


@pytest.mark.parametrize("login", ["", "ad", "ada2", "ad@b.org", ".*", "$ne", "(", "@"])
async def test_partial_names_and_patterns_match_no_user(db: Database, login: str) -> None:
    await register_account("Ada", "Ada@B.org", "hash", roles=[], by=SYSTEM)
    assert await User.by_login(login) is None


async def test_granting_a_role_ends_no_session(cast: Cast) -> None:
    version = cast.ada.authz_version
    moderator = await role("moderator")
    assert await cast.ada.grant(moderator, by=acting(cast.root))
    assert await role_names(cast.ada) == {"member", "editor", "moderator"}
    assert (await reloaded(cast.ada)).authz_version == version + 1
    await cast.recorded(ROLE_GRANTED, subject=cast.ada, role="moderator")
    await cast.told("root gave you the role moderator.")
    await cast.sessions_are_active()


async def test_revoking_a_role_ends_the_sessions(cast: Cast) -> None:
    version = cast.ada.authz_version
    assert await cast.ada.revoke(cast.editor, by=acting(cast.root))
    assert await role_names(cast.ada) == {"member"}
    assert (await reloaded(cast.ada)).authz_version == version + 1
    await cast.ended(Reason.ROLE_REVOKED, by=cast.root)
    await cast.recorded(ROLE_REVOKED, subject=cast.ada, role="editor")
    await cast.told("root removed the role editor from you.")


async def test_disabling_an_account_ends_its_sessions_permanently(
    cast: Cast,
) -> None:
    version = cast.ada.authz_version
    assert await cast.ada.disable(by=acting(cast.root))
    assert (await reloaded(cast.ada)).disabled_at is not None
    assert (await reloaded(cast.ada)).authz_version == version + 1
    await cast.ended(Reason.ACCOUNT_DISABLED, by=cast.root)
    await cast.recorded(ACCOUNT_DISABLED, subject=cast.ada)
    await cast.told("root disabled your account.")

    assert await cast.ada.enable(by=acting(cast.root))
    assert (await reloaded(cast.ada)).disabled_at is None
    assert (await reloaded(cast.ada)).authz_version == version + 2
    await cast.recorded(ACCOUNT_ENABLED, subject=cast.ada)
    await cast.told("root enabled your account again.")
    await cast.ended(Reason.ACCOUNT_DISABLED, by=cast.root)


async def test_an_administrator_ends_all_sessions_of_a_user(cast: Cast) -> None:
    event = not_none(await cast.ada.end_sessions(Reason.ENDED_BY_ADMIN, by=acting(cast.root)))
    assert event.details["count"] == 2
    await cast.ended(Reason.ENDED_BY_ADMIN, by=cast.root)
    await cast.recorded(SESSIONS_ENDED, subject=cast.ada, reason="ended_by_admin", count=2)
    await cast.told("root ended your sessions.")


async def test_ending_the_other_sessions_keeps_this_one(cast: Cast) -> None:
    told = (await reloaded(cast.ada)).notice_seq
    ended = await cast.ada.end_sessions(
        Reason.ENDED_BY_USER, by=acting(cast.ada), keep=cast.laptop.id
    )
    assert not_none(ended).details["count"] == 1
    assert [await end_reason(token) for token in cast.tokens] == [None, Reason.ENDED_BY_USER]
    assert (await reloaded(cast.ada)).notice_seq == told


async def test_a_session_is_ended_once(cast: Cast) -> None:
    assert await cast.laptop.end(Reason.ENDED_BY_ADMIN, by=acting(cast.root))
    told = {"reason": "ended_by_admin", "device": "Firefox", "count": 1}
    await cast.recorded(SESSION_ENDED, subject=cast.ada, **told)
    lines = await Event.find({}).count()
    assert not await cast.laptop.end(Reason.SIGNED_OUT, by=acting(cast.ada))
    assert [await end_reason(token) for token in cast.tokens] == [Reason.ENDED_BY_ADMIN, None]
    assert await Event.find({}).count() == lines


async def test_a_password_change_ends_other_sessions_and_renews_this_one(
    cast: Cast,
) -> None:
    renewed = await cast.ada.change_password("new", by=acting(cast.root), keep=cast.laptop.id)
    assert renewed is not None
    assert (await reloaded(cast.ada)).password_hash == "new"
    assert (await reloaded(cast.ada)).password_changed_at > cast.ada.password_changed_at
    assert await end_reason(renewed) is None
    stale, other = cast.tokens
    assert await end_reason(other) is Reason.PASSWORD_CHANGED
    with pytest.raises(AssertionError):
        await end_reason(stale)  # The old cookie is void.
    await cast.recorded(PASSWORD_CHANGED, subject=cast.ada)
    await cast.told("Your password was changed. All other sessions were ended.")
    assert await end_reason(cast.of_bob) is None


async def test_a_password_change_without_a_session_to_keep_ends_all(cast: Cast) -> None:
    assert await cast.ada.change_password("new", by=acting(cast.root)) is None
    await cast.ended(Reason.PASSWORD_CHANGED, by=cast.root)


async def test_a_password_change_does_not_revive_an_ended_session(cast: Cast) -> None:
    await cast.laptop.end(Reason.ENDED_BY_ADMIN, by=acting(cast.root))
    assert await cast.ada.change_password("new", by=acting(cast.ada), keep=cast.laptop.id) is None
    assert await end_reason(cast.tokens[0]) is Reason.ENDED_BY_ADMIN


async def test_a_session_of_another_user_cannot_be_kept(cast: Cast) -> None:
    of_bob = await Session.find_one({"user.$id": cast.bob.id})
    assert of_bob is not None
    await cast.ada.change_password("new", by=acting(cast.ada), keep=of_bob.id)
    await cast.ended(Reason.PASSWORD_CHANGED, by=cast.ada)


async def test_a_password_changed_meanwhile_is_not_overwritten(cast: Cast) -> None:
    await (await reloaded(cast.ada)).change_password("theirs", by=acting(cast.root))
    with pytest.raises(PasswordMoved):
        await cast.ada.change_password("mine", by=acting(cast.ada))
    await cast.ada.upgrade_hash("upgraded")
    assert (await reloaded(cast.ada)).password_hash == "theirs"
    assert cast.ada.password_hash == "hash of ada"


async def test_a_hash_upgrade_ends_no_session_and_sends_no_notification(cast: Cast) -> None:
    lines, told = await Event.find({}).count(), (await reloaded(cast.ada)).notice_seq
    await cast.ada.upgrade_hash("upgraded")
    assert (await reloaded(cast.ada)).password_hash == cast.ada.password_hash == "upgraded"
    await cast.sessions_are_active()
    _, third = await sign_in(cast.ada)
    assert await end_reason(third) is None
    assert await Event.find({"verb": {"$ne": SIGNED_IN.audit}}).count() == lines - 3
    assert (await reloaded(cast.ada)).notice_seq == told


async def test_sessions_of_two_sign_ins_that_upgrade_the_hash_stay_active(cast: Cast) -> None:
    slower = await reloaded(cast.ada)
    await cast.ada.upgrade_hash("upgraded")
    await slower.upgrade_hash("upgraded, too")
    _, token = await sign_in(slower)
    assert await end_reason(token) is None
    await (await reloaded(cast.ada)).upgrade_hash("and once more")
    assert await end_reason(token) is None


async def test_a_raw_write_of_the_hash_ends_sessions_after_an_upgrade(cast: Cast) -> None:
    await cast.ada.upgrade_hash("upgraded")
    _, token = await sign_in(await reloaded(cast.ada))
    await User.change({"_id": cast.ada.id}, {"$set": {"password_hash": "by hand"}})
    assert await end_reason(token) is Reason.PASSWORD_CHANGED


async def test_a_hash_upgrade_revives_no_session_of_an_older_password(cast: Cast) -> None:
    stale = await sign_in(cast.ada)
    await Session.change({"_id": stale[0].id}, {"$set": {"credential": fingerprint("older")}})
    await cast.ada.upgrade_hash("upgraded")
    assert await end_reason(stale[1]) is Reason.PASSWORD_CHANGED


async def test_the_users_of_a_role_are_counted_up_to_a_limit(
    db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(roles, "COUNTED_HOLDERS", 2)
    for name, held in (("ada", ["member", "moderator"]), ("bob", ["member"])):
        await register(name, *held)
    found = {role.name: role for role in await Role.everyone()}

    async def shown() -> dict[str, str]:
        holders = await Role.holders(list(found.values()))
        return {name: str(holders[role.id]) for name, role in found.items()}

    assert await shown() == {"admin": "0", "member": "2", "moderator": "1"}
    await register("eve", "member")
    assert (await shown())["member"] == "2+"


async def test_editing_and_deleting_a_role_changes_its_holders(cast: Cast) -> None:
    version, of_bob = await version_of(cast.ada), await version_of(cast.bob)
    before = await stored(cast.ada)
    write, moderate = Permission.POSTS_WRITE, Permission.POSTS_MODERATE
    await cast.editor.edit(
        name="Editor", description="Edits.", permissions=[write], by=acting(cast.root)
    )
    found = await role("editor")
    assert (found.name, found.description, found.permissions) == ("Editor", "Edits.", [write])
    assert await version_of(cast.ada) == version + 1
    assert await stored(cast.ada) == before, "no document of the users is written"
    await cast.recorded(
        ROLE_EDITED,
        subject=None,
        role="Editor",
        allowed=[write],
        forbidden=[moderate],
        version=found.version,
    )
    await cast.sessions_are_active()

    assert not_none(await found.remove(by=acting(cast.root))).details["holders"] == 1
    assert await Role.named("editor") is None
    assert await stored(cast.ada) == before
    for token in cast.tokens:
        assert await end_reason(token) is Reason.ROLE_DELETED
    await role_deletions.complete_all()
    assert await role_names(cast.ada) == {"member"}
    assert await version_of(cast.ada) == version + 2
    assert await version_of(cast.bob) == of_bob
    await cast.ended(Reason.ROLE_DELETED, by=cast.root)
    await cast.recorded(ROLE_DELETED, subject=None, role="Editor", holders=1)
    await cast.told("root deleted the role Editor, which you held.")


async def test_the_activity_of_each_holder_shows_the_deleted_role(cast: Cast) -> None:
    ben = await register("ben", "editor")
    deleted = not_none(await cast.editor.remove(by=acting(cast.root)))
    await role_deletions.complete_all()
    for user, concerned in ((cast.ada, True), (ben, True), (cast.bob, False)):
        events = await activity.page(user.id, before=None, limit=10)
        texts = [activity.text(event) for event in events if event.id == deleted.id]
        assert texts == ["The role editor, which you held, was deleted"] * concerned
        assert await activity.page(user.id, before=deleted.id, limit=10)
        shown = json.loads(
            "".join([piece async for piece in data_export.export(await reloaded(user))])
        )
        found = [each for each in shown["events"] if each["verb"] == "role.deleted"]
        assert [(each["by"], each["to"], each["details"]["role"]) for each in found] == [
            ("somebody else", "you", "editor")
        ] * concerned


async def test_two_roles_cannot_have_the_same_name(cast: Cast) -> None:
    with pytest.raises(RoleTaken):
        await Role.add("EDITOR", "", [], by=acting(cast.root))
    before = await dump_of_roles()
    with pytest.raises(RoleTaken):
        await cast.editor.edit(name="Member", description="", permissions=[], by=SYSTEM)
    assert await dump_of_roles() == before


async def dump_of_roles() -> list[tuple[str, str]]:
    return [(found.name, found.description) for found in await Role.everyone()]


@pytest.mark.parametrize("name", ["admin", "moderator", "member"])
async def test_built_in_roles_cannot_be_deleted_or_renamed(db: Database, name: str) -> None:
    built_in = await role(name)
    with pytest.raises(BuiltInRole):
        await built_in.remove(by=SYSTEM)
    with pytest.raises(BuiltInRole):
        await built_in.edit(name="other", description="", permissions=[], by=SYSTEM)
    assert (await role(name)).permissions == built_in.permissions


async def test_the_admin_role_cannot_lose_permissions(db: Database) -> None:
    with pytest.raises(BuiltInRole):
        await (await role("admin")).edit(name="admin", description="", permissions=[], by=SYSTEM)
    assert set((await role("admin")).permissions) == set(Permission)


@pytest.mark.parametrize("verb", ["revoke", "disable"])
async def test_the_last_administrator_cannot_be_removed(
    cast: Cast, db: Database, verb: str
) -> None:
    admin = await role("admin")
    closed = await register("closed", "admin")
    assert await closed.disable(by=acting(cast.root))
    _, token = await sign_in(cast.root)
    before = await dump(db)
    with pytest.raises(LastAdministrator):
        await (
            cast.root.disable(by=SYSTEM)
            if verb == "disable"
            else cast.root.revoke(admin, by=SYSTEM)
        )
    assert await dump(db) == before
    assert await end_reason(token) is None


async def test_nothing_is_stored_with_a_role_that_was_deleted(cast: Cast, db: Database) -> None:
    gone = await Role.add("gone", "", [], by=SYSTEM)
    await gone.remove(by=SYSTEM)
    before = await dump(db)
    eve = ("eve", "eve@example.org")
    for operation in (
        register_account(*eve, "hash", roles=[gone], by=SYSTEM, verified=True),
        create_for(*eve, "hash", roles=[gone], by=acting(cast.root)),
        Invitation.write("eve@example.org", gone, by=SYSTEM),
    ):
        with pytest.raises(RoleGone):
            await operation
    assert await dump(db) == before


async def test_a_repeated_operation_changes_nothing(cast: Cast, db: Database) -> None:
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
    # Each operation writes the lock and the documents of the users concerned, so that it and a
    # change of their permissions exclude each other. Ending sessions forgets the known browsers of
    # users who have no session, too.
    for dumped in (before, after):
        dumped["guards"] = []
        for user in dumped["users"]:
            user.pop("acts", None)
            user.pop("browsers_forgotten")
    assert after == before


# ---- the first administrator


async def test_the_setup_link_creates_one_administrator(db: Database) -> None:
    first, second = await issue_setup(), await issue_setup()
    assert first is not None
    assert second is not None
    assert not await setup_is_open(first), "a new link replaces the older ones"
    assert await setup_is_open(second)
    root = await make_first_administrator(second, "root", "r@b.org", "hash", by=SYSTEM)
    assert await role_names(root) == {"admin", "member"}
    assert not await setup_is_open(second)
    assert await issue_setup() is None
    with pytest.raises(TokenSpent):
        await make_first_administrator(second, "eve", "e@b.org", "hash", by=SYSTEM)


async def test_a_taken_name_does_not_use_up_the_setup_link(db: Database) -> None:
    await register("ada", "member")
    token = await issue_setup()
    assert token is not None
    with pytest.raises(Taken):
        await make_first_administrator(token, "Ada", "x@b.org", "hash", by=SYSTEM)
    assert await setup_is_open(token)
    await make_first_administrator(token, "root", "x@b.org", "hash", by=SYSTEM)


@pytest.mark.parametrize("change", ["expires_at", "used_at", "purpose", "token", "promoted"])
async def test_an_invalid_setup_link_is_refused(db: Database, change: str) -> None:
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
        await make_first_administrator(token, "eve", "e@b.org", "hash", by=SYSTEM)
    assert await User.by_username("eve") is None


# ---- atomicity

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


async def _completed(cast: Cast) -> None:
    deletion = not_none(await RoleDeletion.get(cast.editor.id))
    await transaction(lambda tx: deletion.remove_role_from([cast.ada.id, cast.bob.id], tx))


# The collections that an audit event is written to.
AUDITED = ("events", "unsealed")
VERBS: dict[str, tuple[Act, set[str]]] = {
    "register": (
        lambda c: register_account("eve", "e@b.org", "hash", roles=[c.editor], by=SYSTEM),
        {"users", "roles", *AUDITED, "notices"},
    ),
    "grant": (
        lambda c: c.bob.grant(c.editor, by=acting(c.root)),
        {"users", "roles", *AUDITED, "notices"},
    ),
    "revoke": (
        lambda c: c.ada.revoke(c.editor, by=acting(c.root)),
        {"users", "sessions", *AUDITED, "notices", "barriers"},
    ),
    "disable": (
        lambda c: c.ada.disable(by=acting(c.root)),
        {"users", "sessions", *AUDITED, "notices", "guards", "barriers"},
    ),
    "enable": (
        lambda c: c.bob.enable(by=acting(c.root)),
        {"users", *AUDITED, "notices"},
    ),
    "end sessions": (
        lambda c: c.ada.end_sessions(Reason.ENDED_BY_ADMIN, by=acting(c.root)),
        {"users", "sessions", *AUDITED, "notices", "barriers"},
    ),
    "end one session": (
        lambda c: c.laptop.end(Reason.ENDED_BY_ADMIN, by=acting(c.root)),
        {"sessions", *AUDITED, "barriers"},
    ),
    "start a session": (lambda c: sign_in(c.ada), {"sessions", *AUDITED}),
    "change the password": (
        lambda c: c.ada.change_password("new", by=acting(c.ada), keep=c.laptop.id),
        {"users", "sessions", *AUDITED, "notices", "outbox", "mailboxes"},
    ),
    "upgrade the hash": (lambda c: c.ada.upgrade_hash("new"), {"users"}),
    "add a role": (
        lambda c: Role.add("new", "", [], by=acting(c.root)),
        {"roles", *AUDITED},
    ),
    "edit a role": (
        lambda c: c.editor.edit(name="new", description="", permissions=[], by=acting(c.root)),
        {"roles", "guards", *AUDITED},
    ),
    "remove a role": (
        lambda c: c.editor.remove(by=acting(c.root)),
        {"roles", "role_deletions", "guards", *AUDITED, "barriers"},
    ),
    "complete the deletion of a role": (_completed, {"users", "sessions", "notices"}),
    "comment": (_written_comment, {"posts", "comments", "users", "notices"}),
    "remove a comment": (
        _removed_comment,
        {"posts", "comments", "users", *AUDITED, "notices"},
    ),
    "remove a post": (
        _removed_post,
        {"posts", "comments", "users", *AUDITED, "notices"},
    ),
}
# No validator refuses a deletion, so for these collections another write must fail.
DELETES = {"remove a role": {"roles"}, "remove a comment": {"comments"}} | {
    "remove a post": {"posts", "comments"}
}


@pytest.mark.parametrize("verb", VERBS)
async def test_an_operation_whose_write_fails_changes_nothing(
    cast: Cast, db: Database, verb: str
) -> None:
    act, writes = VERBS[verb]
    if verb == "enable":
        await cast.bob.disable(by=SYSTEM)
    post = await Post.write("On engines", "…", by=acting(cast.ada))
    await Comment.write(post, "first", by=acting(cast.bob))
    if verb == "complete the deletion of a role":
        await cast.editor.remove(by=acting(cast.root))
    before = await dump(db)
    failures: list[tuple[str, Mapping[str, Any]]] = [
        (collection, NOTHING) for collection in writes - DELETES.get(verb, set())
    ]
    if "notices" in writes and verb != "register":
        # The number of the notification is the last write of a user's document.
        failures.append(("users", _without_new_notices(before)))
    for collection, accepted in failures:
        async with only_accepting(db, collection, accepted):
            with pytest.raises(OperationFailure, match="failed validation"):
                await act(cast)
        assert await dump(db) == before, f"a failing write of {collection} left something behind"
    await act(cast)
    after = await dump(db)
    assert {name for name in after if after[name] != before[name]} == writes


def _without_new_notices(before: dict[str, list[dict[str, Any]]]) -> Mapping[str, Any]:
    """Return a filter that accepts users whose number of notifications is unchanged."""
    return {
        "$or": [{"_id": user["_id"], "notice_seq": user["notice_seq"]} for user in before["users"]]
    }
