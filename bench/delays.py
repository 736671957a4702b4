"""Measure a revocation when tabs are behind slow or broken networks.

`python -m bench.delays` disables one user after the other. Each user has two tabs: one with a
direct connection to the server, and one behind a simulated network that delays or drops packets.
The script prints the milliseconds from sending the request until each tab receives `session.ended`
and until the administrator gets the answer; what the answer says about the tabs; and what the audit
log says in the end.
"""

from __future__ import annotations

import argparse
import asyncio
import re
from dataclasses import dataclass

from bench.crowd import House, Someone, house, this_machine
from bench.tabs import Tab, now
from quartapp.activities import ACCOUNT_DISABLED
from quartapp.models import Event, Role
from quartapp.models.base.actor import SYSTEM
from quartapp.policy import Permission
from tests.networks import network
from tests.people import Person

DELAYS: list[float | None] = [0.0, 0.16, 0.4, 0.8, None]
FINAL_SECONDS = 40


@dataclass
class Row:
    """The results for one network. `near`, `far`, `answer` and `after` are seconds since the
    request was sent; `far` is None for a network that drops everything."""

    name: str
    near: float
    far: float | None
    answer: float
    said: str
    final: str
    after: float


async def measure(home: House, victim: Someone, delay: float | None) -> Row:
    """Disable the user and return what was measured. A delay of None drops all packets."""
    async with network(home.server.url, delay=delay or 0.0) as between:
        near = await Tab.open(home.server.url, victim.cookies[0])
        far = await Tab.open(between.url, victim.cookies[1])
        between.broken = delay is None
        async with Person(home.server.url, "root", "") as root:
            # The page after the redirect shows the answer to the POST. A cookie connects the two.
            name, _, value = home.root.partition("=")
            root.client.cookies.set(name, value)
            fields = {"csrf_token": await root.csrf_token("/")}
            path, origin = f"/admin/users/{victim.username}/disable", {"Origin": root.url}
            sent = now()
            answer = await root.client.post(path, data=fields, headers=origin)
            answered = now()
            assert answer.status_code == 303
            page = (await root.get("/admin/users")).text
        said = re.search(r'data-source="[^"]+"[^>]*>([^<]*)', page)
        told = await near.moments["session.ended"]
        if delay is not None:
            await far.moments["session.ended"]
        event = await final(victim)
        after = now() - sent
        return Row(
            "drops" if delay is None else f"{delay * 1000:.0f} ms each way",
            told - sent,
            None if delay is None else await far.moments["session.ended"] - sent,
            answered - sent,
            said[1].strip() if said else "",
            str(event.reach),
            after,
        )


async def final(victim: Someone) -> Event:
    """Return the audit event once no acknowledgement is pending any more."""
    async with asyncio.timeout(FINAL_SECONDS):
        while True:
            (event,) = await Event.page(subject=victim.user_id, verbs=[ACCOUNT_DISABLED.audit_name])
            if event.receipts and not event.reach.pending:
                return event
            await asyncio.sleep(0.02)


async def run(options: argparse.Namespace) -> None:
    async with house(options.workers) as home:
        role = await Role.add("crew", "", [Permission.POSTS_WRITE], by=SYSTEM)
        victims = await home.people("v", len(DELAYS) + 1, role=role, sessions=2)
        # Warm up, so that the first row does not include what a worker loads once.
        await measure(home, victims[-1], 0.0)
        pairs = zip(victims, DELAYS, strict=False)
        rows = [await measure(home, victim, delay) for victim, delay in pairs]
    print(f"{'':18}{'near tab':>10}{'far tab':>10}{'answer':>10}")
    for row in rows:
        far = "never" if row.far is None else f"{row.far * 1000:.0f}"
        print(f"{row.name:18}{row.near * 1000:10.0f}{far:>10}{row.answer * 1000:10.0f}")
        print(f"    in the answer       {row.said}")
        print(f"    after {row.after:5.1f} s       {row.final}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workers", type=int, default=2)
    with this_machine():
        asyncio.run(run(parser.parse_args()))


if __name__ == "__main__":
    main()
