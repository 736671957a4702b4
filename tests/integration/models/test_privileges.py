"""Users cannot grant more than they hold, nor manage a user who holds more."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from datetime import timedelta

import pytest
from beanie import PydanticObjectId

from quartapp import clock, models
from quartapp.activities import ROLE_EDITED
from quartapp.authority import session_rule, session_states
from quartapp.db.mongo import Database, Tx
from quartapp.models import Invitation, Role, Session, User
from quartapp.models.accounts import account_expiry
from quartapp.models.audit.event import Event
from quartapp.models.authorization import privileges, transaction
from quartapp.models.authorization.privileges import MissingPermission, require_to_manage
from quartapp.models.authorization.transaction import RightsChanged, SessionOver
from quartapp.models.base.actor import SYSTEM, Actor
from quartapp.models.base.references import ref
from quartapp.models.base.tokens import digest_of
from quartapp.models.factors import enrolment
from quartapp.models.factors.factor import Factor
from quartapp.models.roles.refusals import ManagementByDefault
from quartapp.models.sessions.reason import Reason
from quartapp.policy import ADMIN, MANAGEMENT_PERMISSIONS, MEMBER, Permission
from tests.integration.models.helpers import (
    acting,
    dump,
    end_reason,
    not_none,
    register,
    reloaded,
    role,
    sign_in,
    version_of,
)

ALL = set(Permission)
USERS, ROLES = Permission.USERS_MANAGE, Permission.ROLES_MANAGE
WRITE, READ, EVENTS = Permission.POSTS_WRITE, Permission.USERS_READ, Permission.EVENTS_READ


async def holder(name: str, *permissions: Permission, requires_factor: bool = False) -> User:
    await Role.add(f"role-of-{name}", "", permissions, requires_factor=requires_factor, by=SYSTEM)
    return await register(name, f"role-of-{name}")


async def in_session(user: User) -> Actor:
    """Return the user as the actor of a request in a new session."""
    _, token = await sign_in(user)
    who = await session_states.state_by_digest(digest_of(token))
    assert isinstance(who, session_rule.Principal)
    return Actor(
        who.user_id, who.username, "192.0.2.7", who.session_id, who.version, who.permissions
    )


async def refused(db: Database, work: Awaitable[object], *missing: str) -> str:
    """Return the text of the refusal. The refused work must not have written anything."""
    before = await dump(db)
    with pytest.raises(MissingPermission) as caught:
        await work
    assert set(caught.value.missing) == set(missing)
    assert all(permission in str(caught.value) for permission in missing)
    assert await dump(db) == before
    return str(caught.value)


# ---- granting


async def test_granting_a_role_requires_all_its_permissions(db: Database) -> None:
    helper = await holder("helper", USERS, WRITE)
    ada = await register("ada", MEMBER)
    for target in (ada, helper):
        sentence = await refused(
            db, target.grant(await role("moderator"), by=acting(helper)), READ, "posts.moderate"
        )
        assert sentence.startswith("You cannot grant the role moderator.")
        await refused(
            db, target.grant(await role(ADMIN), by=acting(helper)), *(ALL - {USERS, WRITE})
        )
    await Role.add("writer", "", [WRITE], by=SYSTEM)
    assert await ada.grant(await role("writer"), by=acting(helper))
    assert await ada.grant(await role(ADMIN), by=SYSTEM), "the operator is not limited"


async def test_withheld_permissions_cannot_be_granted(
    db: Database,
) -> None:
    helper = await holder("helper", USERS, WRITE)
    strict = await Role.add("strict", "", [EVENTS], requires_factor=True, by=SYSTEM)
    await helper.grant(strict, by=SYSTEM)
    ada = await register("ada", MEMBER)
    by = await in_session(await reloaded(helper))
    await refused(db, ada.grant(strict, by=by), EVENTS)
    await refused(db, Role.add("new", "", [EVENTS], by=by), EVENTS)
    await User.change({"_id": helper.id}, {"$set": {"passkeys": [ref("passkeys", helper.id)]}})
    await Session.change({"_id": by.session_id}, {"$set": {"factor": Factor.PASSKEY}})
    assert await ada.grant(strict, by=by)


async def test_inviting_requires_all_permissions_of_the_role(db: Database) -> None:
    helper = await holder("helper", USERS)
    moderator = await role("moderator")
    missing = set(moderator.permissions)
    await refused(db, Invitation.write("a@b.org", moderator, by=acting(helper)), *missing)
    assert await Invitation.write("a@b.org", None, by=acting(helper)), "as a plain member"
    strong = await Invitation.write("c@d.org", moderator, by=SYSTEM)
    await refused(db, strong.send_again(by=acting(helper)), *missing)
    await refused(db, strong.withdraw(by=acting(helper)), *missing)
    assert await strong.withdraw(by=acting(await register("root", ADMIN)))


async def test_a_role_allows_no_more_than_its_creator_or_editor_holds(db: Database) -> None:
    keeper = await holder("keeper", ROLES, WRITE)
    by = acting(keeper)
    await refused(db, Role.add("new", "", [USERS], by=by), USERS)
    mine = await role("role-of-keeper")
    for target in (mine, await Role.add("empty", "", [], by=by)):
        edit = target.edit(name=target.name, description="", permissions=[ROLES, USERS], by=by)
        assert "You cannot add users.manage" in await refused(db, edit, USERS)
        await target.edit(name=target.name, description="", permissions=[ROLES], by=by)
        assert (await role(target.name)).permissions == [ROLES]


@pytest.mark.parametrize("change", ["name", "permissions", "requires_factor", "delete"])
async def test_a_role_with_more_permissions_cannot_be_changed(db: Database, change: str) -> None:
    by = acting(await holder("keeper", ROLES))
    for waits in (False, True):
        strong = await Role.add(f"strong-{waits}", "", [EVENTS], requires_factor=waits, by=SYSTEM)
        kept = {"name": strong.name, "description": "", "permissions": [EVENTS]}
        if change == "delete":
            await refused(db, strong.remove(by=by), EVENTS)
            continue
        new = {"name": "renamed", "permissions": [], "requires_factor": not waits}[change]
        await refused(db, strong.edit(**{**kept, change: new}, by=by), EVENTS)
    admin = await role(ADMIN)
    edit = {"name": ADMIN, "description": admin.description, "permissions": admin.known}
    await refused(db, admin.edit(**edit, requires_factor=True, by=by), *(ALL - {ROLES}))


async def test_deleting_a_role_requires_the_permissions_of_its_holders(db: Database) -> None:
    by = acting(await holder("keeper", ROLES))
    empty = await Role.add("empty", "", [], by=SYSTEM)
    ada = await holder("ada", EVENTS)
    await ada.grant(empty, by=SYSTEM)
    await refused(db, empty.remove(by=by), EVENTS)
    await ada.revoke(empty, by=SYSTEM)
    assert await empty.remove(by=by)


# ---- managing

Manage = Callable[[User, Actor], Awaitable[object]]
VERBS: dict[str, Manage] = {
    "grant": lambda user, by: _grant(user, by),
    "revoke": lambda user, by: _revoke(user, by),
    "disable": lambda user, by: user.disable(by=by),
    "enable": lambda user, by: user.enable(by=by),
    "end sessions": lambda user, by: user.end_sessions(Reason.ENDED_BY_ADMIN, by=by),
    "end one session": lambda user, by: _end_one(user, by),
    "close": lambda user, by: user.deactivate(by=by),
    "delete": lambda user, by: user.deactivate(by=by, deletes_at=clock.now() + timedelta(days=1)),
    "restore": lambda user, by: user.restore(by=by),
    "set expiry": lambda user, by: account_expiry.set_expiry(user, clock.now().date(), by=by),
    "lift expiry": lambda user, by: account_expiry.remove_expiry(user, by=by),
    "reset factors": lambda user, by: enrolment.reset(user, by=by),
    "set a password": lambda user, by: user.change_password("new", by=by),
}


async def _grant(user: User, by: Actor) -> object:
    return await user.grant(await Role.named("plain") or await role(MEMBER), by=by)


async def _revoke(user: User, by: Actor) -> object:
    return await user.revoke(await role(f"role-of-{user.username}"), by=by)


async def _end_one(user: User, by: Actor) -> object:
    return await not_none(await Session.find_one({"user.$id": user.id})).end(
        Reason.ENDED_BY_ADMIN, by=by
    )


@pytest.mark.parametrize("verb", VERBS)
async def test_a_user_who_holds_more_cannot_be_managed(db: Database, verb: str) -> None:
    helper = await holder("helper", USERS, WRITE)
    await Role.add("plain", "", [], by=SYSTEM)
    strong = await holder("strong", EVENTS)
    # What a second factor would give counts for the target, although it is withheld now.
    waiting = await holder("waiting", EVENTS, requires_factor=True)
    for target in (strong, waiting):
        await sign_in(target)
        sentence = await refused(db, VERBS[verb](target, acting(helper)), EVENTS)
        assert sentence.startswith(f"You cannot manage {target.username}")
    equal = await holder("equal", USERS, WRITE)
    await sign_in(equal)
    await VERBS[verb](equal, acting(helper))
    await sign_in(await reloaded(helper))
    await VERBS[verb](await reloaded(helper), acting(helper))
    root = await register("root", ADMIN)
    if verb not in ("end sessions", "end one session"):
        # The operator is not limited.
        await VERBS[verb](strong, SYSTEM)
    await register("other", ADMIN)
    await VERBS[verb](waiting, acting(root))


# ---- changes during a transaction


@pytest.mark.parametrize(
    ("act", "loss"),
    [
        ("grant", "role edited"),
        ("invite", "role edited"),
        ("create a role", "role edited"),
        ("disable", "role edited"),
        ("edit a role", "role edited"),
        ("delete a role", "role edited"),
        ("grant", "role deleted"),
        ("edit a role", "role deleted"),
        ("grant", "factor required"),
        ("grant", "role revoked"),
    ],
)
async def test_a_permission_lost_meanwhile_is_not_used(
    db: Database, monkeypatch: pytest.MonkeyPatch, act: str, loss: str
) -> None:
    """The actor loses it after the transaction has taken its snapshot, and before the check."""
    eve = await holder("eve", USERS, EVENTS, ROLES, WRITE)
    hers = await role("role-of-eve")
    auditor = await Role.add("auditor", "", [EVENTS], by=SYSTEM)
    ada = await register("ada", "auditor" if act == "disable" else MEMBER)
    by = await in_session(eve) if loss == "role edited" else acting(eve)
    real, lost = privileges._claimed, []

    async def late(user_id: PydanticObjectId, tx: Tx) -> Mapping[str, object]:
        if not lost:
            lost.append(True)
            assert await User.get(user_id, session=tx), "this read takes the snapshot"
            if loss == "role revoked":
                await eve.revoke(hers, by=SYSTEM)
            elif loss == "role deleted":
                await hers.remove(by=SYSTEM)
            else:
                kept = [USERS, WRITE] if loss == "role edited" else [USERS, EVENTS, ROLES, WRITE]
                await hers.edit(
                    name=hers.name,
                    description="",
                    permissions=kept,
                    requires_factor=loss == "factor required",
                    by=SYSTEM,
                )
        return await real(user_id, tx)

    monkeypatch.setattr(privileges, "_claimed", late)
    works = {
        "grant": lambda: ada.grant(auditor, by=by),
        "invite": lambda: Invitation.write("a@b.org", auditor, by=by),
        "create a role": lambda: Role.add("new", "", [EVENTS], by=by),
        "disable": lambda: ada.disable(by=by),
        "edit a role": lambda: auditor.edit(name="lost", description="", permissions=[], by=by),
        "delete a role": lambda: auditor.remove(by=by),
    }
    with pytest.raises((MissingPermission, RightsChanged, SessionOver)):
        await works[act]()
    assert lost
    assert await Role.named("new") is None
    assert (await role("auditor")).permissions == [EVENTS]
    assert await Invitation.find({}).count() == 0
    left = await reloaded(ada)
    assert (left.authz_version, left.disabled) == (ada.authz_version, False)


async def test_two_users_who_edit_the_role_of_each_other_do_not_both_succeed(
    db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second edits after the transaction of the first has taken its snapshot."""
    ada, bob = await holder("ada", ROLES, EVENTS), await holder("bob", ROLES, EVENTS)
    of_ada, of_bob = await role("role-of-ada"), await role("role-of-bob")
    real, edited = privileges.holdings_of, []

    async def late(by: Actor, tx: Tx) -> privileges.Holdings:
        if not edited:
            edited.append(True)
            assert await Role.get(of_ada.id, session=tx), "this read takes the snapshot"
            await of_ada.edit(name="a", description="", permissions=[], by=acting(bob))
        return await real(by, tx)

    monkeypatch.setattr("quartapp.models.roles.role.holdings_of", late)
    with pytest.raises(MissingPermission):
        await of_bob.edit(name="b", description="", permissions=[], by=acting(ada))
    assert (await role("role-of-bob")).permissions == sorted([ROLES, EVENTS])


async def test_a_role_is_not_deleted_if_its_user_gains_more_meanwhile(
    db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The user gains it after the transaction has taken its snapshot, from the command line."""
    keeper = await holder("keeper", ROLES)
    plain = await Role.add("plain", "", [], by=SYSTEM)
    strong = await Role.add("strong", "", [EVENTS], by=SYSTEM)
    ada = await register("ada", "plain")
    real, gained = privileges.holdings_of, []

    async def late(by: Actor, tx: Tx) -> privileges.Holdings:
        if not gained:
            assert await Role.get(plain.id, session=tx), "this read takes the snapshot"
            gained.append(await ada.grant(strong, by=SYSTEM))
        return await real(by, tx)

    monkeypatch.setattr("quartapp.models.roles.role.holdings_of", late)
    with pytest.raises(MissingPermission, match=EVENTS):
        await plain.remove(by=acting(keeper))
    assert gained
    assert await Role.named("plain")


@pytest.mark.parametrize("verb", ["grant", "disable", "end one session", "reset factors"])
async def test_a_user_who_gains_a_permission_meanwhile_is_not_managed(
    db: Database, monkeypatch: pytest.MonkeyPatch, verb: str
) -> None:
    """The target gains it after the transaction has taken its snapshot, and before the check."""
    await Role.add("plain", "", [], by=SYSTEM)
    helper, ada = await holder("helper", USERS, WRITE), await holder("ada", WRITE)
    strong = await Role.add("strong", "", [EVENTS], by=SYSTEM)
    _, token = await sign_in(ada)
    gained: list[Event | None] = []

    async def late(
        by: Actor, session: Mapping[str, object], user_id: PydanticObjectId, tx: Tx
    ) -> None:
        if not gained and by is not SYSTEM:
            assert await User.get(user_id, session=tx), "this read takes the snapshot"
            gained.append(None)
            gained.append(await ada.grant(strong, by=SYSTEM))
        await require_to_manage(by, session, user_id, tx)

    monkeypatch.setattr(transaction, "require_to_manage", late)
    with pytest.raises(MissingPermission, match=EVENTS):
        await VERBS[verb](ada, acting(helper))
    assert len(gained) == 2
    assert await end_reason(token) is None
    assert (await reloaded(ada)).authz_version == ada.authz_version + 1, "only the grant"


# ---- default roles


@pytest.mark.parametrize("by_operator", [True, False])
async def test_default_roles_never_have_management_permissions(
    db: Database, by_operator: bool
) -> None:
    by = SYSTEM if by_operator else acting(await register("root", ADMIN))
    member = await role(MEMBER)
    before = await dump(db)
    for permission in MANAGEMENT_PERMISSIONS:
        with pytest.raises(ManagementByDefault, match=permission):
            await member.edit(name=MEMBER, description="", permissions=[WRITE, permission], by=by)
    assert await dump(db) == before
    await db["roles"].delete_one({"_id": member.id})
    for number, name in enumerate((MEMBER, "Member")):
        with pytest.raises(ManagementByDefault):
            await Role.add(name, "", [USERS], by=by)
        other = await Role.add(f"other-{number}", "", [READ], by=by)
        with pytest.raises(ManagementByDefault):
            await other.edit(name=name, description="", permissions=[READ], by=by)


def test_every_permission_is_classified() -> None:
    assert {WRITE} == ALL - MANAGEMENT_PERMISSIONS


async def test_preparing_removes_management_from_default_roles(db: Database) -> None:
    ada = await register("ada", MEMBER)
    version = await version_of(ada)
    words = ["moon.land", "users.manage", "posts.write"]
    await db["roles"].update_one({"name": MEMBER}, {"$set": {"permissions": words}})
    await models.prepare()
    assert (await role(MEMBER)).permissions == ["posts.write", "moon.land"]
    assert await version_of(ada) == version + 1
    edited = not_none(await Event.find_one({"verb": ROLE_EDITED.audit}))
    assert edited.details["forbidden"] == ["users.manage"]


# ---- unknown permissions


async def test_an_edit_keeps_permissions_that_this_version_does_not_know(db: Database) -> None:
    keeper = acting(await holder("keeper", ROLES, WRITE, READ))
    new = await Role.add("new", "", [WRITE], by=SYSTEM)
    await Role.change({"_id": new.id}, {"$push": {"permissions": "moon.land"}})
    await new.edit(name="new", description="x", permissions=[READ], by=keeper)
    assert (await role("new")).permissions == ["users.read", "moon.land"]
    edited = not_none(await Event.find_one({"verb": ROLE_EDITED.audit}))
    assert (edited.details["allowed"], edited.details["forbidden"]) == (
        ["users.read"],
        ["posts.write"],
    )
    _, token = await sign_in(await register("ada", "new"))
    who = await session_states.state_by_digest(digest_of(token))
    assert isinstance(who, session_rule.Principal)
    assert who.permissions == {"users.read"}, "it allows nothing"
    # A newer version that knows it may serve beside this one.
    await refused(db, new.remove(by=keeper), "moon.land")
    assert await new.remove(by=acting(await register("root", ADMIN)))
