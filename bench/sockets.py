"""Measure the cost of thousands of open pages: memory, handshakes, broadcasts and reconnects.

`python -m bench.sockets` starts `quartapp serve` on a temporary folder. Memory is the resident
memory of all workers together, as the operating system reports it, without that of the clients.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics

from bench.crowd import PER_PERSON, Crowd, House, Someone, house, this_machine
from bench.tabs import now
from quartapp.activities import ROLE_GRANTED
from quartapp.db.mongo import Tx, transaction
from quartapp.models import Role, User
from quartapp.models.base.actor import SYSTEM
from quartapp.policy import Permission

KIB, MIB = 1024, 1024**2
MEMORY_GOAL = 64 * KIB
GROWTH_GOAL = 0.05
FEW = 200


async def measure(sockets: int, rounds: int, workers: int, processes: int) -> None:
    print(f"{sockets} sockets over {workers} workers, from {processes} client processes\n")
    async with house(workers) as home, home.crowd(processes) as crowd:
        role = await Role.add("crew", "", [Permission.POSTS_WRITE], by=SYSTEM)
        people = await home.people("p", -(-sockets // PER_PERSON), role=role, sessions=PER_PERSON)
        cookies = [cookie for person in people for cookie in person.cookies][:sockets]

        # A few sockets connect and leave first, so that what a worker loads once is not counted.
        await crowd.open(cookies[:FEW])
        await crowd.leave()
        await home.emptied()
        alone = home.resident()
        rates = [await come(crowd, cookies)]
        each = (home.resident() - alone) / sockets
        line(
            "idle and signed in", f"{each / KIB:.1f} KiB each", goal(each <= MEMORY_GOAL, "64 KiB")
        )
        told("permissions.changed", await edit_role(home, crowd))
        told("a notification", await notify(crowd, people))
        await crowd.leave()
        await home.emptied()

        empty = [home.resident()]
        for _ in range(rounds):
            rates.append(await come(crowd, cookies))
            await crowd.leave()
            await home.emptied()
            empty.append(home.resident())
        growth = empty[-1] / empty[0] - 1
        line("handshakes", f"{statistics.median(rates):.0f} a second")
        line(f"{rounds} rounds", f"{growth:+.1%} memory", goal(growth <= GROWTH_GOAL, "5 %"))
        print("MiB with all gone, before the first round and after each:")
        print("  ", *(f"{size / MIB:.0f}" for size in empty))


async def come(crowd: Crowd, cookies: list[str]) -> float:
    """Open a socket per cookie; return the handshakes per second, each up to its `hello`."""
    began = now()
    returned = await crowd.open(cookies)
    seconds = now() - began
    if returned:
        print(f"{returned} were refused at first because the server was overloaded")
    return len(cookies) / seconds


async def edit_role(home: House, crowd: Crowd) -> list[float]:
    """Change the permissions of all users by editing their role.

    Returns for each tab the seconds from sending the request until `permissions.changed` arrived.
    """
    await crowd.forget()
    async with home.caller(home.root) as root:
        token = await root.csrf_token()
        wanted = [Permission.POSTS_WRITE.value, Permission.USERS_READ.value]
        fields = {"csrf_token": token, "name": "crew", "description": "", "permissions": wanted}
        sent = now()
        status, page = await root.post("/admin/roles/crew", fields)
        assert status == 303, page
    return [moment - sent for moment in await crowd.told("permissions.changed")]


async def notify(crowd: Crowd, people: list[Someone]) -> list[float]:
    """Send a notification to every user, in one transaction.

    Returns for each tab the seconds from the commit until the notification arrived.
    """
    users = [await User.get(person.user_id) for person in people]

    async def work(tx: Tx) -> None:
        for user in users:
            assert user is not None
            await user.notify(ROLE_GRANTED, tx, by="root", role="crew")

    await crowd.forget()
    await transaction(work)
    committed = now()
    return [moment - committed for moment in await crowd.told("notice")]


def told(what: str, seconds: list[float]) -> None:
    middle = f"{statistics.median(seconds) * 1000:.0f} ms the median"
    line(what, f"{max(seconds) * 1000:.0f} ms to the last", middle)


def line(what: str, figure: str, remark: str = "") -> None:
    print(f"{what:22}{figure:>20}  {remark}")


def goal(met: bool, text: str) -> str:
    return f"goal {text}: {'met' if met else 'MISSED'}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sockets", type=int, default=5000)
    parser.add_argument("--rounds", type=int, default=10, help="of connecting and leaving")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--processes", type=int, default=2, help="that run the clients")
    options = parser.parse_args()
    with this_machine():
        asyncio.run(measure(options.sockets, options.rounds, options.workers, options.processes))


if __name__ == "__main__":
    main()
