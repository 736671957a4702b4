"""Further users for `quartapp demo`, as many as wanted, so that lists have pages and filters."""

from __future__ import annotations

import random
import secrets
from collections.abc import Iterator, Mapping
from datetime import datetime, timedelta
from itertools import islice

from quartapp import clock, policy
from quartapp.models import Role, Session, User
from quartapp.models.accounts.credential import fingerprint
from quartapp.models.base.references import role_ref, user_ref
from quartapp.models.base.tokens import new_token

BATCH = 1000
YEAR = timedelta(days=365)
FIRST = (  # noqa: SIM905
    "Amelia Anton Aylin Ben Carla Chidi Clara David Dilek Elif Emil Emma Farah Felix Finn Greta "
    "Hana Ida Ines Jakob Jana Jonas Karim Lea Leo Lina Luis Malik Mara Mei Mia Milan Nadia Noah "
    "Nora Oskar Paul Priya Rosa Samir Selma Sofia Tariq Theo Tilda Vera Yara Yusuf Zoe Zofia"
).split()
LAST = (  # noqa: SIM905
    "Abdi Adler Aydin Bauer Berg Braun Chen Costa Demir Diaz Falk Fischer Fuchs Garcia Graf Gupta "
    "Haas Hahn Ito Jansen Kaya Keller Kim Klein Koch Kowalska Krause Lang Lopez Maier Martin Meyer "
    "Moreau Nagy Nowak Okafor Olsen Park Peters Rossi Roth Sato Schmidt Silva Sommer Tran Vogel "
    "Wagner Weber Yilmaz"
).split()
DEVICES = (
    "Firefox on Windows",
    "Chrome on Android",
    "Safari on iOS",
    "Chrome on macOS",
    "Edge on Windows",
    "Firefox on Linux",
)


async def add_people(count: int, password_hash: str, roles: Mapping[str, Role]) -> None:
    """Insert this many users with made-up names, and a session for every third.

    Their documents are inserted directly, so they have no audit events. Some are unverified,
    disabled, about to expire or about to be deleted; some have a further role. Two calls with the
    same count create the same names.
    """
    chance = random.Random(count)  # noqa: S311
    people = (_person(number, chance, password_hash, roles) for number in range(count))
    while batch := list(islice(people, BATCH)):
        await User.insert_many(batch)
        sessions = list(_sessions(batch, chance))
        if sessions:
            await Session.insert_many(sessions)


def _person(
    number: int, chance: random.Random, password_hash: str, roles: Mapping[str, Role]
) -> User:
    """Return a user, not stored yet, with a made-up name, state and roles. The number makes the
    name unique."""
    now = clock.now()
    first, last = chance.choice(FIRST), chance.choice(LAST)
    username = f"{first}.{last}{number}".casefold()
    created = now - YEAR * chance.random()
    held = [policy.MEMBER, *(name for name in ("moderator", "editor") if chance.random() < 0.02)]
    fate = chance.random()
    unverified, closing = fate < 0.04, 0.04 <= fate < 0.05
    return User(
        username=username,
        email=f"{username}@example.org",
        password_hash=password_hash,
        display_name=f"{first} {last}" if chance.random() < 0.7 else "",
        roles=[role_ref(roles[name].id) for name in held[: 1 if unverified else None]],
        created_at=created,
        password_changed_at=created,
        email_verified_at=None if unverified else created,
        seen_at=created + (now - created) * chance.random() ** 0.2,
        disabled_at=now if 0.05 <= fate < 0.08 else None,
        closes_at=now + timedelta(days=30) if 0.08 <= fate < 0.09 else None,
        closed_at=now if closing else None,
        deletes_at=now + timedelta(days=30) if closing else None,
    )


def _sessions(people: list[User], chance: random.Random) -> Iterator[Session]:
    """Yield a session for every third of the users who can sign in."""
    for user in people:
        if user.is_active and chance.random() < 1 / 3:
            yield _session(user, user.seen_at or user.created_at, chance)


def _session(user: User, seen: datetime, chance: random.Random) -> Session:
    """Return a session of the user, which nobody can use, because its token is thrown away."""
    return Session(
        digest=new_token()[1],
        user=user_ref(user.id),
        device=chance.choice(DEVICES),
        browser=secrets.token_hex(16),
        ip=f"192.0.2.{chance.randrange(1, 255)}",
        created_at=seen,
        seen_at=seen,
        expires_at=clock.now() + timedelta(days=30),
        idle_seconds=int(timedelta(days=30).total_seconds()),
        remembered=True,
        confirmed_at=seen,
        credential=fingerprint(user.password_hash),
        roles=user.roles,
    )
