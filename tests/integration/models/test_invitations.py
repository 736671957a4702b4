"""Invitations: whether they are valid is decided when they are accepted."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import timedelta

import pytest

from quartapp import clock
from quartapp.activities import (
    ACCOUNT_CREATED,
    INVITATION_ACCEPTED,
    INVITATION_WITHDRAWN,
    USER_INVITED,
)
from quartapp.db.mongo import Database
from quartapp.jobs import role_deletions
from quartapp.models import Invitation, Mail
from quartapp.models.accounts import account_expiry
from quartapp.models.accounts.account import Taken
from quartapp.models.accounts.registration import register as register_account
from quartapp.models.accounts.user import User
from quartapp.models.audit.event import Event
from quartapp.models.base.actor import SYSTEM, Actor
from quartapp.models.base.references import ref
from quartapp.models.invitations import invitation
from quartapp.models.invitations.invitation import (
    InvitationGone,
    InvitationState,
    InvitedAlready,
    TooManyInvitations,
)
from quartapp.models.notifications.notice import Notice
from quartapp.models.roles.role import Role
from quartapp.policy import Permission
from tests.integration.models.helpers import (
    NOTHING,
    acting,
    concurrently,
    dump,
    not_none,
    only_accepting,
    race,
    register,
    reloaded,
    role,
    role_names,
    version_of,
)

BOB = "bob@example.org"
VISITOR = Actor(ip="192.0.2.9")


async def sent() -> str:
    """Issue the newest email in the outbox and return its token."""
    mail = (await Mail.find({}, sort="-_id").to_list())[0]
    return not_none(await invitation.issue(mail))["token"]


async def accept(token: str, name: str = "bob") -> User:
    return await Invitation.accept(token, name, f"hash of {name}", by=VISITOR)


async def why_not(token: str) -> InvitationState | None:
    """Return the reason for which the invitation of the token cannot be accepted."""
    with pytest.raises(InvitationGone) as gone:
        await accept(token)
    assert await User.by_username("bob") is None or gone.value.state is InvitationState.ACCEPTED
    return gone.value.state


@pytest.fixture
async def root(db: Database) -> User:
    return await register("root", "admin")


async def test_accepting_an_invitation_creates_an_account_with_a_verified_address(
    db: Database, root: User
) -> None:
    written = await Invitation.write(BOB, await role("moderator"), by=acting(root))
    letter = not_none(await Mail.find_one({}))
    assert (letter.to, letter.user, letter.data) == (BOB, None, {"invitation": str(written.id)})
    words = not_none(await invitation.issue(letter))
    assert (words["inviter"], words["roles"]) == ("root", "member and moderator")
    token = await sent()
    assert token not in str(await dump(db)), "the database has no token in clear"
    await letter.remove()
    bob = await accept(token)
    assert (bob.email, bob.email_verified_at) == (BOB, bob.created_at)
    assert await role_names(bob) == {"member", "moderator"}
    assert await Mail.find_one({}) is None, "the address needs no verification"
    assert (await reloaded(bob)).letters_asked == []
    events = await Event.find({"verb": {"$ne": ACCOUNT_CREATED.audit}}, sort="_id").to_list()
    assert [(e.verb, not_none(e.actor).ref.id, e.ip) for e in events] == [  # type: ignore[union-attr]
        (USER_INVITED.audit, root.id, "192.0.2.7"),
        (INVITATION_ACCEPTED.audit, bob.id, "192.0.2.9"),
    ]
    assert events[0].details == {"email": BOB, "role": "moderator"}
    (told,) = await Notice.after(root.id, 1)
    assert told.text == f"bob accepted your invitation to {BOB}."
    assert await why_not(token) is InvitationState.ACCEPTED
    ((kept, state),) = await Invitation.page()
    assert (kept.inviter, kept.gives, state) == ("root", "moderator", InvitationState.ACCEPTED)


async def test_an_invitation_with_the_member_role_stores_no_extra_role(
    db: Database, root: User
) -> None:
    written = await Invitation.write(BOB, await role("member"), by=SYSTEM)
    assert written.role is None
    words = not_none(await invitation.issue(not_none(await Mail.find_one({}))))
    assert (words["inviter"], words["roles"]) == ("An operator", "member")


@pytest.mark.parametrize("names", ["one", "many"])
@race(4, short=1)
async def test_concurrent_acceptances_of_one_invitation_create_one_account(
    db: Database, root: User, names: str, rounds: range
) -> None:
    for number in rounds:
        await Invitation.write(f"{number}{BOB}", None, by=acting(root))
        token = await sent()
        made = await concurrently(
            *(
                accept(token, f"bob{number}" if names == "one" else f"bob{number}-{i}")
                for i in range(8)
            ),
            unless=InvitationGone,
        )
        assert len(made) == 1
    assert await User.find({}).count() == 1 + len(rounds)
    assert await Event.find({"verb": INVITATION_ACCEPTED.audit}).count() == len(rounds)
    assert (await reloaded(root)).notice_seq == 1 + len(rounds)


async def test_accepting_with_a_taken_name_or_address_changes_nothing(
    db: Database, root: User
) -> None:
    await Invitation.write(BOB, await role("moderator"), by=acting(root))
    token = await sent()
    before = await dump(db)
    with pytest.raises(Taken) as taken:
        await accept(token, "ROOT")
    assert taken.value.field == "username"
    assert await dump(db) == before
    await register_account("bobby", BOB.upper(), "hash", roles=[], by=SYSTEM)
    with pytest.raises(Taken) as taken:
        await accept(token)
    assert taken.value.field == "email"
    with pytest.raises(Taken):
        await Invitation.write(BOB, None, by=acting(root))


Loss = Callable[[User, Role, Invitation], Awaitable[object]]
LOSSES: dict[str, tuple[Loss, InvitationState]] = {
    "disabled": (lambda user, role, _: user.disable(by=SYSTEM), InvitationState.VOID),
    "expired account": (
        lambda user, role, _: User.change({"_id": user.id}, {"$set": {"closes_at": clock.now()}}),
        InvitationState.VOID,
    ),
    "role revoked": (lambda user, role, _: user.revoke(role, by=SYSTEM), InvitationState.VOID),
    "role deleted": (lambda user, role, _: role.remove(by=SYSTEM), InvitationState.VOID),
    "permission removed": (
        lambda user, role, _: role.edit(
            name=role.name, description="", permissions=MODERATING, by=SYSTEM
        ),
        InvitationState.VOID,
    ),
    "permission to grant removed": (
        lambda user, role, _: role.edit(
            name=role.name, description="", permissions=[Permission.USERS_MANAGE], by=SYSTEM
        ),
        InvitationState.VOID,
    ),
    "factor required": (
        lambda user, role, _: role.edit(
            name=role.name,
            description="",
            permissions=[Permission.USERS_MANAGE, *MODERATING],
            requires_factor=True,
            by=SYSTEM,
        ),
        InvitationState.VOID,
    ),
    "deleted": (lambda user, role, _: User.erase(user.id), InvitationState.VOID),
    "withdrawn": (lambda user, role, found: found.withdraw(by=SYSTEM), InvitationState.WITHDRAWN),
    "expired": (
        lambda user, role, found: Invitation.change(
            {"_id": found.id}, {"$set": {"expires_at": clock.now()}}
        ),
        InvitationState.EXPIRED,
    ),
}


MODERATING = [Permission.POSTS_WRITE, Permission.POSTS_MODERATE, Permission.USERS_READ]


async def host(name: str) -> tuple[User, Role]:
    """A user who may invite moderators by a role of their own."""
    permissions = [Permission.USERS_MANAGE, *MODERATING]
    hosts = await Role.add(f"host-{name}", "", permissions, by=SYSTEM)
    return await register(name, hosts.name), hosts


@pytest.mark.parametrize("loss", LOSSES)
async def test_an_invitation_is_void_once_its_inviter_loses_the_authority(
    db: Database, loss: str
) -> None:
    lose, state = LOSSES[loss]
    await register("root", "admin")
    eve, hosts = await host("eve")
    written = await Invitation.write(BOB, await role("moderator"), by=acting(eve))
    token = await sent()
    await lose(eve, hosts, written)
    before = await dump(db)
    assert await why_not(token) is state
    assert await dump(db) == before
    ((_, shown),) = await Invitation.page()
    assert shown is state
    assert await invitation.issue(not_none(await Mail.find_one({}))) is None, "no email is sent"


async def test_an_invitation_is_valid_again_once_its_inviter_regains_authority(
    db: Database,
) -> None:
    eve, hosts = await host("eve")
    await Invitation.write(BOB, None, by=acting(eve))
    token = await sent()
    await eve.revoke(hosts, by=SYSTEM)
    assert await why_not(token) is InvitationState.VOID
    await eve.grant(hosts, by=SYSTEM)
    await Role.change({"_id": hosts.id}, {"$set": {"requires_factor": True}})
    assert await why_not(token) is InvitationState.VOID
    await User.change({"_id": eve.id}, {"$set": {"passkeys": [ref("passkeys", eve.id)]}})
    assert await role_names(await accept(token)) == {"member"}


@pytest.mark.parametrize("loss", ["disabled", "role revoked", "permission removed", "withdrawn"])
@race(10, short=3)
async def test_accepting_an_invitation_and_a_revocation_are_serialized(
    db: Database, loss: str, rounds: range
) -> None:
    """If the account is created, the inviter is notified before the loss."""
    lose, state = LOSSES[loss]
    await register("root", "admin")
    for number in rounds:
        eve, hosts = await host(f"eve{number}")
        written = await Invitation.write(f"{number}{BOB}", None, by=acting(eve))
        token = await sent()
        before = await version_of(eve)
        made = await concurrently(
            lose(eve, hosts, written), accept(token, f"bob{number}"), unless=InvitationGone
        )
        bob = await User.by_username(f"bob{number}")
        found = not_none(await Invitation.get(written.id))
        assert (bob is not None) == (found.accepted_at is not None)
        if bob is not None:
            assert (found.withdrawn_at, len(made)) == (None, 2)
        if state is InvitationState.VOID:
            assert await version_of(eve) == before + 1


async def test_an_acceptance_is_not_committed_after_the_inviter_lost_the_role(
    db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The inviter loses the role between the check and the creation of the account."""
    eve, hosts = await host("eve")
    await Invitation.write(BOB, None, by=acting(eve))
    token = await sent()
    add, lost = invitation.add_user, []

    async def slow(*args: object, **options: object) -> User:
        if not lost:
            lost.append(await eve.revoke(hosts, by=SYSTEM))
        return await add(*args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(invitation, "add_user", slow)
    assert await why_not(token) is InvitationState.VOID
    assert lost


async def test_an_invitation_with_a_deleted_role_grants_only_member(
    db: Database, root: User
) -> None:
    editor = await Role.add("editor", "", [Permission.POSTS_MODERATE], by=SYSTEM)
    await Invitation.write(BOB, editor, by=acting(root))
    token = await sent()
    await editor.remove(by=SYSTEM)
    await Role.add("editor", "another one", [Permission.USERS_MANAGE], by=SYSTEM)
    assert not_none(await Invitation.by_token(token)).gives is None
    assert await role_names(await accept(token)) == {"member"}


@race(10, short=3)
async def test_a_role_deleted_during_an_acceptance_has_no_holders(
    db: Database, root: User, rounds: range
) -> None:
    for number in rounds:
        editor = await Role.add(f"editor{number}", "", [], by=SYSTEM)
        await Invitation.write(f"{number}{BOB}", editor, by=acting(root))
        token = await sent()
        await concurrently(accept(token, f"bob{number}"), editor.remove(by=SYSTEM))
        await role_deletions.complete_all()
        assert await db["users"].count_documents({"roles.$id": editor.id}) == 0
    assert await User.find({}).count() == 1 + len(rounds)


async def test_resending_voids_older_links_and_makes_the_sender_the_inviter(
    db: Database, root: User
) -> None:
    eve, _ = await host("eve")
    written = await Invitation.write(BOB, await role("moderator"), by=acting(eve))
    old, first = await sent(), not_none(await Mail.find_one({}))
    await Mail.change({"_id": first.id}, {"$set": {"created_at": clock.now() - timedelta(days=1)}})
    await eve.disable(by=SYSTEM)
    assert await written.send_again(by=acting(root))
    assert await why_not(old) is None, "the old link is void"
    assert await invitation.issue(not_none(await Mail.get(first.id))) is None
    new = await sent()
    assert await sent() != new, "an email that is retried has another token"
    assert await why_not(new) is None
    ((kept, state),) = await Invitation.page()
    assert (kept.inviter, state) == ("root", InvitationState.OPEN)
    assert await role_names(await accept(await sent())) == {"member", "moderator"}


async def test_an_accepted_or_withdrawn_invitation_cannot_change(db: Database, root: User) -> None:
    by = acting(root)
    written = await Invitation.write(BOB, None, by=by)
    assert await written.withdraw(by=by)
    assert not await written.withdraw(by=by)
    assert not await written.send_again(by=by)
    other = await Invitation.write(BOB, None, by=by)
    await accept(await sent())
    assert not await other.withdraw(by=by)
    with pytest.raises(Taken):
        await other.send_again(by=by)
    verbs = [event.verb for event in await Event.find({}, sort="_id").to_list()]
    assert verbs.count(INVITATION_WITHDRAWN.audit_name) == 1
    assert [state for _, state in await Invitation.page()] == [
        InvitationState.ACCEPTED,
        InvitationState.WITHDRAWN,
    ]


async def test_an_expired_invitation_can_be_sent_again(db: Database, root: User) -> None:
    written = await Invitation.write(BOB, None, by=acting(root))
    # The week begins when the email is sent, which may be long after it was queued.
    tomorrow = {"expires_at": clock.now() + timedelta(days=1)}
    await Invitation.change({"_id": written.id}, {"$set": tomorrow})
    token = await sent()
    kept = not_none(await Invitation.get(written.id))
    left = kept.expires_at - clock.now()
    assert timedelta(days=6, hours=23) < left <= timedelta(days=7)
    past = {"expires_at": clock.now(), "asked_at": clock.now() - timedelta(days=8)}
    await Invitation.change({"_id": written.id}, {"$set": past})
    assert await why_not(token) is InvitationState.EXPIRED
    assert await written.send_again(by=acting(root))
    assert (await accept(await sent())).email == BOB


@race(4, short=1)
async def test_concurrent_resends_to_one_address_reopen_one_invitation(
    db: Database, root: User, rounds: range
) -> None:
    past = clock.now() - timedelta(days=8)
    for number in rounds:
        email = f"{number}{BOB}"
        expired = [
            await Invitation(email=email, created_at=past, asked_at=past, expires_at=past).insert()
            for _ in range(6)
        ]
        sent = (each.send_again(by=acting(root)) for each in expired)
        assert await concurrently(*sent, unless=InvitedAlready) == [True]
        open_still = {"email": email, "expires_at": {"$gt": clock.now()}}
        assert await Invitation.find(open_still).count() == 1


async def test_a_void_invitation_does_not_block_a_new_one(db: Database, root: User) -> None:
    grace = await register("grace", "admin")
    await Invitation.write(BOB, None, by=acting(grace))
    with pytest.raises(InvitedAlready):
        await Invitation.write(BOB, None, by=acting(root))
    await grace.disable(by=SYSTEM)
    assert await Invitation.write(BOB, None, by=acting(root))
    with pytest.raises(InvitedAlready):
        await Invitation.write(BOB, None, by=acting(root))


async def test_open_invitations_are_limited_per_address_and_per_inviter(
    db: Database, root: User
) -> None:
    grace = await register("grace", "admin")
    at_once_to_bob = [
        Invitation.write(("b" if i % 2 else "B") + BOB[1:], None, by=acting(user), at_most=3)
        for i, user in enumerate([root, grace] * 5)
    ]
    assert len(await concurrently(*at_once_to_bob, unless=InvitedAlready)) == 1
    (first,) = await Invitation.find({}).to_list()
    await first.withdraw(by=SYSTEM)
    many = [Invitation.write(f"{i}{BOB}", None, by=acting(root), at_most=3) for i in range(8)]
    made = await concurrently(*many, unless=TooManyInvitations)
    assert len(made) == 3
    with pytest.raises(TooManyInvitations, match="3 pending"):
        await Invitation.write(BOB, None, by=acting(root), at_most=3)
    assert await made[0].send_again(by=acting(root), at_most=3), (
        "resending an own invitation does not count"
    )
    hers = await Invitation.write(BOB, None, by=acting(grace), at_most=3)
    with pytest.raises(TooManyInvitations):
        await hers.send_again(by=acting(root), at_most=3)
    await made[0].withdraw(by=SYSTEM)
    assert await hers.send_again(by=acting(root), at_most=3)
    assert await Invitation.write(f"x{BOB}", None, by=SYSTEM), "an operator has no limit"


async def test_inviting_and_accepting_are_atomic(db: Database, root: User) -> None:
    for collection in ("outbox", "events", "invitations"):
        before = await dump(db)
        async with only_accepting(db, collection, NOTHING):
            with pytest.raises(Exception, match="validation"):
                await Invitation.write(BOB, None, by=acting(root))
        assert await dump(db) == before
    await Invitation.write(BOB, await role("moderator"), by=acting(root))
    token = await sent()
    before = await dump(db)
    for collection in ("users", "invitations", "events", "notices", "roles"):
        async with only_accepting(db, collection, NOTHING):
            with pytest.raises(Exception, match="validation"):
                await accept(token)
        assert await dump(db) == before
    assert await accept(token)


async def test_an_inviter_whose_account_expires_later_may_invite(db: Database, root: User) -> None:
    eve, _ = await host("eve")
    await account_expiry.set_expiry(eve, clock.now().date(), by=SYSTEM)
    await Invitation.write(BOB, None, by=acting(eve))
    assert await accept(await sent())
