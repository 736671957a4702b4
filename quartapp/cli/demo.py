"""`quartapp demo`: fill an empty database with sample data."""

from __future__ import annotations

import secrets
from datetime import timedelta

from quartapp import clock, policy
from quartapp.cli.base import CommandError, echo
from quartapp.cli.demo_people import add_people
from quartapp.models import Comment, Post, Role, User
from quartapp.models.accounts.registration import register as register_account
from quartapp.models.base.actor import SYSTEM, Actor
from quartapp.policy import Permission
from quartapp.security.passwords import PasswordHasher
from quartapp.settings import Settings

PEOPLE = {
    "grace": ["admin"],
    "ada": ["moderator", "editor"],
    "katherine": ["auditor"],
    "dorothy": [],
    "radia": ["moderator"],
    "barbara": ["editor"],
    "frances": [],
    "hedy": [],
    "mary": [],
    "annie": [],
}

ROLES = {
    "editor": ("Edits and moderates posts.", [Permission.POSTS_WRITE, Permission.POSTS_MODERATE]),
    "auditor": ("Reads the audit log.", [Permission.EVENTS_READ, Permission.USERS_READ]),
}

# Author, title, text, and the comments with their authors; oldest first.
POSTS = [
    (
        "grace",
        "House rules, all three of them",
        "Be kind. Be brief. Say what you know and how you know it.\n\n"
        "If you need a role, ask one of us. If you no longer need one, hand it back.",
        [
            ("dorothy", "Handing back is the rule I like best."),
            ("hedy", "Is asking twice allowed?"),
            ("grace", "Asking twice is brief, twice."),
        ],
    ),
    (
        "katherine",
        "Check the numbers by hand",
        "The machine gave us a landing point. Before anybody flies to it I want the same figure "
        "from a pencil.\n\nNot because machines are wrong. Because nobody should have to trust "
        "a figure that only one of us can make.",
        [
            ("mary", "I did rows 40 to 80. They agree to the last place."),
            ("annie", "Rows 1 to 39 as well."),
        ],
    ),
    (
        "ada",
        "What a note should carry",
        "A note to the reader of a program should say what the program cannot: why it is so, what "
        "was tried and given up, and which step will surprise.\n\nWhat the program does, "
        "the program says.",
        [("frances", "And who to ask.")],
    ),
    (
        "radia",
        "On trees",
        "A tree has one way to everywhere, which is why nothing in it goes round for ever, and why "
        "a saw is all it takes.\n\nBuild it out of a graph that has spare edges. Forget the spares "
        "until the day you need one.",
        [
            ("barbara", "The second half should hang in the machine room."),
            ("radia", "It does."),
            ("dorothy", "I came for the trees and stayed for the saw."),
        ],
    ),
    (
        "barbara",
        "One abstraction, please",
        "We had three ways to say who may see the ledger. Now we have one, and it is shorter than "
        "any of the three.\n\nIf you find a fourth, delete it and tell me.",
        [],
    ),
    (
        "hedy",
        "Hopping",
        "If both ends change the channel in step, whoever would jam us has to jam everything.\n\n"
        "The hard part is staying in step when one of us was away for a while. Bring a cursor.",
        [("annie", "A piano roll would do.")],
    ),
]


async def fill(settings: Settings, *, people: int = 0) -> None:
    """Create users, roles, posts and comments, with their audit events, and print how to sign in.

    `people` is the number of further users, who write nothing and have no audit events (see
    `add_people`). All users have one new password. Raises CommandError if the database has a user.
    """
    if await User.find_one({}) is not None:
        raise CommandError("the demo is for an empty database, and this one has users")
    hasher = PasswordHasher.of(settings)
    password = "-".join(secrets.token_hex(2) for _ in range(4))
    password_hash = await hasher.hash(password)
    hasher.close()
    roles = {role.name: role for role in await Role.everyone()}
    for name, (description, permissions) in ROLES.items():
        if name not in roles:
            roles[name] = await Role.add(name, description, permissions, by=SYSTEM)
    authors: dict[str, Actor] = {}
    for name, held in PEOPLE.items():
        person = await register_account(
            name,
            f"{name}@example.org",
            password_hash,
            roles=[roles[role] for role in (policy.MEMBER, *held)],
            by=SYSTEM,
            verified=True,
        )
        authors[name] = Actor(person.id, name)
    await _write_posts(authors)
    await add_people(people, password_hash, roles)
    where = settings.data.resolve() if not settings.mongodb_uri else settings.mongodb_db
    echo(f"Created {len(authors) + people:,} users and {len(POSTS)} posts in {where}.")
    echo("All users have the same password:")
    echo(f"  grace   {password}   (an administrator)")
    echo(f"  ada     {password}   (a moderator)")
    echo(f"  dorothy {password}   (a member)")


async def _write_posts(authors: dict[str, Actor]) -> None:
    """Write POSTS and their comments as their authors, which notifies those whose posts others
    comment on, and then change their dates: the latest post is of yesterday, each other one a day
    older than the next; comments follow their post every eleven minutes."""
    start = clock.now() - timedelta(days=len(POSTS))
    for day, (author, title, body, comments) in enumerate(POSTS):
        post = await Post.write(title, body, by=authors[author])
        at = start + timedelta(days=day, minutes=37 * day)
        await Post.change({"_id": post.id}, {"$set": {"created_at": at}})
        for later, (commenter, text) in enumerate(comments, 1):
            comment = await Comment.write(post, text, by=authors[commenter])
            if comment:
                moment = at + timedelta(minutes=11 * later)
                await Comment.change({"_id": comment.id}, {"$set": {"created_at": moment}})
