"""Invitations: judged when they are taken up, by one of many, with the authority of that moment."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import timedelta

import pytest

from quartapp import clock
from quartapp.db.mongo import Database
from quartapp.models import Invitation, Mail
from quartapp.models.accounts import account_expiry
from quartapp.models.accounts.account import Taken
from quartapp.models.accounts.registration import register as register_account
from quartapp.models.accounts.user import User
from quartapp.models.audit.event import Event, Verb
from quartapp.models.base.actor import NOBODY, Actor
from quartapp.models.base.references import ref
from quartapp.models.invitations import invitation
from quartapp.models.invitations.invitation import (
    EnoughInvitations,
    Fate,
    InvitationGone,
    InvitedAlready,
)
from quartapp.models.notifications.notice import Notice
from quartapp.models.roles.role import Role
from quartapp.policy import Permission
from tests.models.stories import (
    NOTHING,
    accepting,
    acting,
    again,
    at_once,
    dump,
    names_of_roles,
    race,
    register,
    role,
    some,
)

BOB = "bob@example.org"
VISITOR = Actor(ip="192.0.2.9")


async def sent() -> str:
    """Sends the newest letter that waits; the token in it."""
    mail = (await Mail.find({}, sort="-_id").to_list())[0]
    return some(await invitation.issue(mail))["token"]


async def take_up(token: str, name: str = "bob") -> User:
    return await Invitation.take_up(token, name, f"hash of {name}", by=VISITOR)


async def why_not(token: str) -> Fate | None:
    """Why nobody can take it up; nothing is written by trying."""
    with pytest.raises(InvitationGone) as gone:
        await take_up(token)
    assert await User.by_username("bob") is None or gone.value.fate is Fate.ACCEPTED
    return gone.value.fate


@pytest.fixture
async def root(db: Database) -> User:
    return await register("root", "admin")


async def test_an_invitation_makes_an_account_whose_address_is_confirmed(
    db: Database, root: User
) -> None:
    written = await Invitation.write(BOB, await role("moderator"), by=acting(root))
    letter = some(await Mail.find_one({}))
    assert (letter.to, letter.user, letter.data) == (BOB, None, {"invitation": str(written.id)})
    words = some(await invitation.issue(letter))
    assert (words["inviter"], words["roles"]) == ("root", "member and moderator")
    token = await sent()
    assert token not in str(await dump(db)), "what is stored opens nothing"
    await letter.done()
    bob = await take_up(token)
    assert (bob.email, bob.email_verified_at) == (BOB, bob.created_at)
    assert await names_of_roles(bob) == {"member", "moderator"}
    assert await Mail.find_one({}) is None, "there is nothing to confirm"
    assert (await again(bob)).letters_asked == []
    events = await Event.find({"verb": {"$ne": Verb.USER_REGISTERED}}, sort="_id").to_list()
    assert [(e.verb, some(e.actor).ref.id, e.ip) for e in events] == [  # type: ignore[union-attr]
        (Verb.USER_INVITED, root.id, "192.0.2.7"),
        (Verb.INVITATION_ACCEPTED, bob.id, "192.0.2.9"),
    ]
    assert events[0].details == {"email": BOB, "role": "moderator"}
    (told,) = await Notice.after(root.id, 1)
    assert told.text == f"bob took up your invitation to {BOB}."
    assert await why_not(token) is Fate.ACCEPTED
    ((kept, fate),) = await Invitation.page()
    assert (kept.inviter, kept.gives, fate) == ("root", "moderator", Fate.ACCEPTED)


async def test_member_is_no_role_beside_member(db: Database, root: User) -> None:
    written = await Invitation.write(BOB, await role("member"), by=NOBODY)
    assert written.role is None
    words = some(await invitation.issue(some(await Mail.find_one({}))))
    assert (words["inviter"], words["roles"]) == ("An operator", "member")


@pytest.mark.parametrize("names", ["one", "many"])
@race(4, short=1)
async def test_of_many_who_take_one_up_at_once_one_gets_the_account(
    db: Database, root: User, names: str, rounds: range
) -> None:
    for number in rounds:
        await Invitation.write(f"{number}{BOB}", None, by=acting(root))
        token = await sent()
        made = await at_once(
            *(
                take_up(token, f"bob{number}" if names == "one" else f"bob{number}-{i}")
                for i in range(8)
            ),
            unless=InvitationGone,
        )
        assert len(made) == 1
    assert await User.find({}).count() == 1 + len(rounds)
    assert await Event.find({"verb": Verb.INVITATION_ACCEPTED}).count() == len(rounds)
    assert (await again(root)).notice_seq == 1 + len(rounds)


async def test_a_name_or_an_address_that_is_taken_leaves_it_as_it_was(
    db: Database, root: User
) -> None:
    await Invitation.write(BOB, await role("moderator"), by=acting(root))
    token = await sent()
    before = await dump(db)
    with pytest.raises(Taken) as taken:
        await take_up(token, "ROOT")
    assert taken.value.field == "username"
    assert await dump(db) == before
    await register_account("bobby", BOB.upper(), "hash", roles=[], by=NOBODY)
    with pytest.raises(Taken) as taken:
        await take_up(token)
    assert taken.value.field == "email"
    with pytest.raises(Taken):
        await Invitation.write(BOB, None, by=acting(root))


Loss = Callable[[User, Role, Invitation], Awaitable[object]]
LOSSES: dict[str, tuple[Loss, Fate]] = {
    "disabled": (lambda user, role, _: user.disable(by=NOBODY), Fate.VOID),
    "past the last day": (
        lambda user, role, _: User.change({"_id": user.id}, {"$set": {"closes_at": clock.now()}}),
        Fate.VOID,
    ),
    "role revoked": (lambda user, role, _: user.revoke(role, by=NOBODY), Fate.VOID),
    "role deleted": (lambda user, role, _: role.remove(by=NOBODY), Fate.VOID),
    "permission taken": (
        lambda user, role, _: role.edit(
            name=role.name, description="", permissions=MODERATING, by=NOBODY
        ),
        Fate.VOID,
    ),
    "a permission to give taken": (
        lambda user, role, _: role.edit(
            name=role.name, description="", permissions=[Permission.USERS_MANAGE], by=NOBODY
        ),
        Fate.VOID,
    ),
    "a factor asked for": (
        lambda user, role, _: role.edit(
            name=role.name,
            description="",
            permissions=[Permission.USERS_MANAGE, *MODERATING],
            requires_factor=True,
            by=NOBODY,
        ),
        Fate.VOID,
    ),
    "deleted": (lambda user, role, _: User.erase(user.id), Fate.VOID),
    "withdrawn": (lambda user, role, found: found.withdraw(by=NOBODY), Fate.WITHDRAWN),
    "too old": (
        lambda user, role, found: Invitation.change(
            {"_id": found.id}, {"$set": {"expires_at": clock.now()}}
        ),
        Fate.EXPIRED,
    ),
}


MODERATING = [Permission.POSTS_WRITE, Permission.POSTS_MODERATE, Permission.USERS_READ]


async def host(name: str) -> tuple[User, Role]:
    """A user who may invite moderators by a role of their own."""
    permissions = [Permission.USERS_MANAGE, *MODERATING]
    hosts = await Role.add(f"host-{name}", "", permissions, by=NOBODY)
    return await register(name, hosts.name), hosts


@pytest.mark.parametrize("loss", LOSSES)
async def test_what_its_inviter_may_no_longer_give_is_not_given(db: Database, loss: str) -> None:
    lose, fate = LOSSES[loss]
    await register("root", "admin")
    eve, hosts = await host("eve")
    written = await Invitation.write(BOB, await role("moderator"), by=acting(eve))
    token = await sent()
    await lose(eve, hosts, written)
    before = await dump(db)
    assert await why_not(token) is fate
    assert await dump(db) == before
    ((_, shown),) = await Invitation.page()
    assert shown is fate
    assert await invitation.issue(some(await Mail.find_one({}))) is None, "nor is a letter sent"


async def test_who_may_invite_again_has_invited_all_along(db: Database) -> None:
    eve, hosts = await host("eve")
    await Invitation.write(BOB, None, by=acting(eve))
    token = await sent()
    await eve.revoke(hosts, by=NOBODY)
    assert await why_not(token) is Fate.VOID
    await eve.grant(hosts, by=NOBODY)
    await Role.change({"_id": hosts.id}, {"$set": {"requires_factor": True}})
    assert await why_not(token) is Fate.VOID
    await User.change({"_id": eve.id}, {"$set": {"passkeys": [ref("passkeys", eve.id)]}})
    assert await names_of_roles(await take_up(token)) == {"member"}


@pytest.mark.parametrize("loss", ["disabled", "role revoked", "permission taken", "withdrawn"])
@race(10, short=3)
async def test_what_is_taken_away_at_that_instant_comes_before_or_after_but_never_between(
    db: Database, loss: str, rounds: range
) -> None:
    """The notice to the inviter of an account that was made stands before the loss."""
    lose, fate = LOSSES[loss]
    await register("root", "admin")
    for number in rounds:
        eve, hosts = await host(f"eve{number}")
        written = await Invitation.write(f"{number}{BOB}", None, by=acting(eve))
        token = await sent()
        before = (await again(eve)).authz_version
        made = await at_once(
            lose(eve, hosts, written), take_up(token, f"bob{number}"), unless=InvitationGone
        )
        bob = await User.by_username(f"bob{number}")
        found = some(await Invitation.get(written.id))
        assert (bob is not None) == (found.accepted_at is not None)
        if bob is not None:
            assert (found.withdrawn_at, len(made)) == (None, 2)
        if fate is Fate.VOID:
            assert (await again(eve)).authz_version == before + 1


async def test_a_transaction_of_before_the_loss_is_not_committed_after_it(
    db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The inviter was looked at, then loses the role, and only then the account is made."""
    eve, hosts = await host("eve")
    await Invitation.write(BOB, None, by=acting(eve))
    token = await sent()
    add, lost = invitation.add_user, []

    async def slow(*args: object, **options: object) -> User:
        if not lost:
            lost.append(await eve.revoke(hosts, by=NOBODY))
        return await add(*args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(invitation, "add_user", slow)
    assert await why_not(token) is Fate.VOID
    assert lost


async def test_a_role_that_is_gone_gives_nothing(db: Database, root: User) -> None:
    editor = await Role.add("editor", "", [Permission.POSTS_MODERATE], by=NOBODY)
    await Invitation.write(BOB, editor, by=acting(root))
    token = await sent()
    await editor.remove(by=NOBODY)
    await Role.add("editor", "another one", [Permission.USERS_MANAGE], by=NOBODY)
    assert some(await Invitation.by_token(token)).gives is None
    assert await names_of_roles(await take_up(token)) == {"member"}


@race(10, short=3)
async def test_a_role_that_is_deleted_at_that_instant_is_held_by_nobody(
    db: Database, root: User, rounds: range
) -> None:
    for number in rounds:
        editor = await Role.add(f"editor{number}", "", [], by=NOBODY)
        await Invitation.write(f"{number}{BOB}", editor, by=acting(root))
        token = await sent()
        await at_once(take_up(token, f"bob{number}"), editor.remove(by=NOBODY))
        assert await db["users"].count_documents({"roles.$id": editor.id}) == 0
    assert await User.find({}).count() == 1 + len(rounds)


async def test_a_newer_letter_voids_the_older_ones_and_whoever_sends_it_answers_for_it(
    db: Database, root: User
) -> None:
    eve, _ = await host("eve")
    written = await Invitation.write(BOB, await role("moderator"), by=acting(eve))
    old, first = await sent(), some(await Mail.find_one({}))
    await Mail.change({"_id": first.id}, {"$set": {"created_at": clock.now() - timedelta(days=1)}})
    await eve.disable(by=NOBODY)
    assert await written.send_again(by=acting(root))
    assert await why_not(old) is None, "no such link any more"
    assert await invitation.issue(some(await Mail.get(first.id))) is None
    new = await sent()
    assert await sent() != new, "a letter that is tried again has another"
    assert await why_not(new) is None
    ((kept, fate),) = await Invitation.page()
    assert (kept.inviter, fate) == ("root", Fate.OPEN)
    assert await names_of_roles(await take_up(await sent())) == {"member", "moderator"}


async def test_what_was_taken_up_or_withdrawn_stays_so(db: Database, root: User) -> None:
    by = acting(root)
    written = await Invitation.write(BOB, None, by=by)
    assert await written.withdraw(by=by)
    assert not await written.withdraw(by=by)
    assert not await written.send_again(by=by)
    other = await Invitation.write(BOB, None, by=by)
    await take_up(await sent())
    assert not await other.withdraw(by=by)
    with pytest.raises(Taken):
        await other.send_again(by=by)
    verbs = [event.verb for event in await Event.find({}, sort="_id").to_list()]
    assert verbs.count(Verb.INVITATION_WITHDRAWN) == 1
    assert [fate for _, fate in await Invitation.page()] == [Fate.ACCEPTED, Fate.WITHDRAWN]


async def test_one_that_is_too_old_can_be_sent_again(db: Database, root: User) -> None:
    written = await Invitation.write(BOB, None, by=acting(root))
    # The week begins when the letter leaves, which may be long after it was written.
    tomorrow = {"expires_at": clock.now() + timedelta(days=1)}
    await Invitation.change({"_id": written.id}, {"$set": tomorrow})
    token = await sent()
    kept = some(await Invitation.get(written.id))
    left = kept.expires_at - clock.now()
    assert timedelta(days=6, hours=23) < left <= timedelta(days=7)
    past = {"expires_at": clock.now(), "asked_at": clock.now() - timedelta(days=8)}
    await Invitation.change({"_id": written.id}, {"$set": past})
    assert await why_not(token) is Fate.EXPIRED
    assert await written.send_again(by=acting(root))
    assert (await take_up(await sent())).email == BOB


@race(4, short=1)
async def test_of_many_to_one_address_that_are_sent_again_at_once_one_is(
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
        assert await at_once(*sent, unless=InvitedAlready) == [True]
        open_still = {"email": email, "expires_at": {"$gt": clock.now()}}
        assert await Invitation.find(open_still).count() == 1


async def test_a_void_invitation_is_in_nobodys_way(db: Database, root: User) -> None:
    grace = await register("grace", "admin")
    await Invitation.write(BOB, None, by=acting(grace))
    with pytest.raises(InvitedAlready):
        await Invitation.write(BOB, None, by=acting(root))
    await grace.disable(by=NOBODY)
    assert await Invitation.write(BOB, None, by=acting(root))
    with pytest.raises(InvitedAlready):
        await Invitation.write(BOB, None, by=acting(root))


async def test_one_address_has_one_open_invitation_and_one_inviter_so_many(
    db: Database, root: User
) -> None:
    grace = await register("grace", "admin")
    at_once_to_bob = [
        Invitation.write(("b" if i % 2 else "B") + BOB[1:], None, by=acting(user), at_most=3)
        for i, user in enumerate([root, grace] * 5)
    ]
    assert len(await at_once(*at_once_to_bob, unless=InvitedAlready)) == 1
    (first,) = await Invitation.find({}).to_list()
    await first.withdraw(by=NOBODY)
    many = [Invitation.write(f"{i}{BOB}", None, by=acting(root), at_most=3) for i in range(8)]
    made = await at_once(*many, unless=EnoughInvitations)
    assert len(made) == 3
    with pytest.raises(EnoughInvitations, match="3 of your"):
        await Invitation.write(BOB, None, by=acting(root), at_most=3)
    assert await made[0].send_again(by=acting(root), at_most=3), "one of one's own is no more"
    hers = await Invitation.write(BOB, None, by=acting(grace), at_most=3)
    with pytest.raises(EnoughInvitations):
        await hers.send_again(by=acting(root), at_most=3)
    await made[0].withdraw(by=NOBODY)
    assert await hers.send_again(by=acting(root), at_most=3)
    assert await Invitation.write(f"x{BOB}", None, by=NOBODY), "an operator has no such bound"


async def test_the_letter_and_the_account_stand_or_fall_with_what_is_written(
    db: Database, root: User
) -> None:
    for collection in ("outbox", "events", "invitations"):
        before = await dump(db)
        async with accepting(db, collection, NOTHING):
            with pytest.raises(Exception, match="validation"):
                await Invitation.write(BOB, None, by=acting(root))
        assert await dump(db) == before
    await Invitation.write(BOB, await role("moderator"), by=acting(root))
    token = await sent()
    before = await dump(db)
    for collection in ("users", "invitations", "events", "notices", "roles"):
        async with accepting(db, collection, NOTHING):
            with pytest.raises(Exception, match="validation"):
                await take_up(token)
        assert await dump(db) == before
    assert await take_up(token)


async def test_an_inviter_with_a_last_day_may_invite_until_then(db: Database, root: User) -> None:
    eve, _ = await host("eve")
    await account_expiry.appoint(eve, clock.now().date(), by=NOBODY)
    await Invitation.write(BOB, None, by=acting(eve))
    assert await take_up(await sent())
