"""Measure whether changing a role takes longer the more users hold it.

`python -m bench.roles` starts `quartapp serve` on a temporary folder. It creates roles that FEW
users hold and roles that `--holders` users hold, and edits and deletes them in turns, through the
administrator's pages. Each time, the users of 1,000 open sockets hold the role. The goals compare
the medians of both kinds of roles.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import sys
from dataclasses import dataclass, field
from typing import Any

from pymongo import WriteConcern

from bench.crowd import PER_PERSON, House, Someone, house, percentile, this_machine
from bench.tabs import now
from quartapp import clock
from quartapp.models import Role, RoleDeletion, User
from quartapp.models.base.actor import SYSTEM
from quartapp.models.base.record import new_id
from quartapp.models.base.references import role_ref
from quartapp.policy import Permission
from tests.people import until

FEW = 1000
BULK = 5000
CACHE, BUILD_CACHE = "256M", "1500M"
EDITS, DELETIONS = 10, 3
RATIO_GOAL = 1.5
CHOICES = [Permission.POSTS_WRITE], [Permission.POSTS_WRITE, Permission.USERS_READ]


@dataclass
class Times:
    """Seconds from sending the request until the answer, and until the last socket was told."""

    answers: list[float] = field(default_factory=list)
    last: list[float] = field(default_factory=list)


async def compare(options: argparse.Namespace) -> bool:
    """Edit and delete roles in turns and print the times; return whether the goals are met."""
    edits, deletions = (Times(), Times()), (Times(), Times())
    async with house(options.workers) as home:
        roles = [
            (await role(f"few-{number}"), await role(f"many-{number}"))
            for number in range(DELETIONS)
        ]
        people = -(-options.sockets // PER_PERSON)
        groups = [
            [
                await home.people(f"{kind[0].name}", people, role=kind[0], sessions=PER_PERSON),
                await home.people(f"{kind[1].name}", people, role=kind[1], sessions=PER_PERSON),
            ]
            for kind in roles
        ]
        began = now()
        await fill([few for few, _ in roles], FEW - people, "others-few")
        await fill([many for _, many in roles], options.holders - people, "others-many")
        print(f"{options.holders + FEW} users written in {now() - began:.0f} s")
        for kind in (0, 1):
            async with home.crowd(options.processes) as crowd:
                await crowd.open(cookies(groups[0][kind]))
                for number in range(EDITS):
                    await crowd.forget()
                    chosen = CHOICES[(number + 1) % 2]
                    changed = {"name": roles[0][kind].name, "permissions": chosen}
                    path = f"/admin/roles/{roles[0][kind].name}"
                    sent = await post(home, path, changed, edits[kind])
                    told = await crowd.told("permissions.changed")
                    edits[kind].last.append(max(told) - sent)
                await crowd.leave()
        for kind in (0, 1):
            for number in range(DELETIONS):
                async with home.crowd(options.processes) as crowd:
                    await crowd.open(cookies(groups[number][kind]))
                    path = f"/admin/roles/{roles[number][kind].name}/delete"
                    sent = await post(home, path, {}, deletions[kind])
                    deletions[kind].last.append(max(await crowd.told("close")) - sent)
        if options.complete:
            began = now()
            await until(all_are_complete, within=3600)
            print(f"all deletions were complete {now() - began:.0f} s after the last deletion")
    print(
        f"{options.sockets} open sockets, {options.workers} workers. Milliseconds since the "
        f"sending: median, and the slowest of {EDITS} edits and {DELETIONS} deletions. The first "
        "deletions are still being completed during the later ones.\n"
    )
    print(f"{'':34}{FEW:>9}{'':>9}{options.holders:>9} users")
    ok = report("edit: answer", *(times.answers for times in edits), goal=True)
    report("edit: last socket is told", *(times.last for times in edits))
    ok &= report("deletion: answer", *(times.answers for times in deletions), goal=True)
    report("deletion: last close", *(times.last for times in deletions))
    return ok


async def all_are_complete() -> bool:
    return not await RoleDeletion.find({"settled_at": None}).count()


async def role(name: str) -> Role:
    return await Role.add(name, "", CHOICES[0], by=SYSTEM)


async def fill(roles: list[Role], count: int, name: str) -> None:
    """Insert this many users who hold all of these roles."""
    links = [role_ref(role.id) for role in roles]
    collection = User.get_motor_collection().with_options(write_concern=WriteConcern(w=1))
    admin = collection.database.client.admin
    cache = "wiredTigerEngineRuntimeConfig"
    # The cache of the embedded database is smaller than the indexes of a million users.
    await admin.command({"setParameter": 1, cache: f"cache_size={BUILD_CACHE}"})
    for start in range(0, count, BULK):
        rows = [
            {
                "_id": new_id(),
                "username": f"{name}-{number}",
                "email": f"{name}-{number}@example.org",
                "canonical_username": f"{name}-{number}",
                "canonical_email": f"{name}-{number}@example.org",
                "password_hash": "no password",
                "roles": links,
                "authz_version": 1,
                "created_at": clock.now(),
                "notice_seq": 0,
            }
            for number in range(start, min(start + BULK, count))
        ]
        await collection.insert_many(rows, ordered=False)
    await admin.command({"setParameter": 1, cache: f"cache_size={CACHE}"})


def cookies(people: list[Someone]) -> list[str]:
    return [cookie for person in people for cookie in person.cookies]


async def post(home: House, path: str, fields: dict[str, Any], times: Times) -> float:
    """Send the form, add the time of the answer, and return when it was sent."""
    async with home.caller(home.root) as root:
        fields = {"csrf_token": await root.csrf_token(), **fields}
        sent = now()
        status, body = await root.post(path, fields)
        times.answers.append(now() - sent)
    assert status == 303, body
    return sent


def report(what: str, few: list[float], many: list[float], *, goal: bool = False) -> bool:
    """Print both kinds of times and their ratio; return whether the goal, if any, is met."""
    ratio = statistics.median(many) / statistics.median(few)
    cells = "".join(
        f"{statistics.median(times) * 1000:9.0f}{percentile(times, 100) * 1000:9.0f}"
        for times in (few, many)
    )
    met = ratio <= RATIO_GOAL
    said = f"  goal {RATIO_GOAL:g}: {'met' if met else 'MISSED'}" if goal else ""
    print(f"{what:34}{cells}  ratio {ratio:4.2f}{said}")
    return met or not goal


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--holders", type=int, default=100_000)
    parser.add_argument("--sockets", type=int, default=1000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--processes", type=int, default=2, help="that run the clients")
    parser.add_argument("--complete", action="store_true", help="also wait until all are complete")
    options = parser.parse_args()
    with this_machine():
        well = asyncio.run(compare(options))
    sys.exit(not well)


if __name__ == "__main__":
    main()
