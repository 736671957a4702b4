"""Compare quartapp with the same job in three other stacks, one worker each.

`python -m bench.peers` first installs bench/peers/requirements.txt into an environment of its own.
Then it measures, in short alternating rounds with 16 users over as many connections, how many
requests per second each stack answers: "who is signed in" as JSON, and a page with the same
template. All use the same mongod and the same client, which checks each answer. Last, it measures
the sign-ins of quartapp (see `bench.peers.sign_ins`). The exit status is 1 if a goal is missed.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from operator import truediv

import uvloop

from bench.crowd import House, house, this_machine
from bench.peers import environment, sign_ins, stacks
from bench.peers.load import Connection, get, rate
from bench.peers.stacks import PAGE, WHO, Stack

# The least ratio of quartapp's rate to that of another stack.
GOALS = {
    WHO: {"fastapi-users": 2.5, "classic": 4.0},
    PAGE: {"fastapi-users": 1.5, "classic": 2.0},
}


async def main(options: argparse.Namespace) -> bool:
    """Run both comparisons, or the one that was named. Return whether all goals were met."""
    met = True
    async with house(1, **sign_ins.SETTINGS) as running:
        if options.only != "sign-ins":
            async with _all_stacks(running) as (ours, *others):
                await _check_answers(ours, others)
                for path in (WHO, PAGE):
                    met &= await compare(path, ours, others, options.seconds, options.rounds)
        if options.only != "requests":
            met &= await sign_ins.measure(running, options.sign_in_seconds, options.sign_in_rounds)
    return met


@asynccontextmanager
async def _all_stacks(running: House) -> AsyncIterator[list[Stack]]:
    """Start the other stacks beside quartapp, which is the first in the list."""
    others = stacks.classic, stacks.flask_security, stacks.fastapi_users
    data = running.server.data
    async with AsyncExitStack() as exits:
        yield [
            await stacks.quartapp(running),
            *[await exits.enter_async_context(start(data)) for start in others],
        ]


async def _check_answers(ours: Stack, others: list[Stack]) -> None:
    """Check that all stacks give the same answers. Raises AssertionError."""
    connection = await Connection.open(ours.url)
    page = await connection.ask(get(ours.url, PAGE, ours.cookies[0]))
    connection.close()
    for stack in (ours, *others):
        await stack.check_all(page.body.decode())


async def compare(path: str, ours: Stack, others: list[Stack], seconds: float, rounds: int) -> bool:
    """Measure all stacks in turns, print the results, and return whether the goals were met.

    The ratio is the median of those within one round, because the speed of a shared machine
    varies. The CPU time is that of the server alone, without the database and the client.
    """
    everyone = [ours, *others]
    rates: dict[str, list[float]] = {stack.name: [] for stack in everyone}
    used = dict.fromkeys(rates, 0.0)
    answered = dict.fromkeys(rates, 0)
    for number in range(rounds + 1):
        # Another stack begins each round.
        first = number % len(everyone)
        for stack in everyone[first:] + everyone[:first]:
            before = stack.cpu_seconds()
            result, count = await rate(stack.url, stack.requests(path), stack.check, seconds)
            # The first round warms up.
            if number:
                rates[stack.name].append(result)
                used[stack.name] += stack.cpu_seconds() - before
                answered[stack.name] += count
    print(f"\nGET {path}, one worker each")
    met = True
    for name, each in rates.items():
        cpu = used[name] / answered[name]
        line = f"  {name:15}{statistics.median(each):7.0f}/s {1e6 * cpu:6.0f} µs of CPU time"
        if name != ours.name:
            ratios = [*map(truediv, rates[ours.name], each)]
            low, middle, high = statistics.quantiles(ratios, n=4)
            in_time = cpu / (used[ours.name] / answered[ours.name] or 1)
            line += f"   ratio {middle:5.2f} (half of the rounds {low:.2f} to {high:.2f}), "
            line += f"of CPU time {in_time:.2f}"
            if goal := GOALS[path].get(name):
                met &= middle >= goal
                line += f"   {sign_ins.verdict(middle >= goal)} {goal}"
            line += "   quartapp is slower" * (middle < 1)
        print(line, flush=True)
    return met


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=0.4, help="for each stack in each round")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--sign-in-seconds", type=float, default=8, help="for each measurement")
    parser.add_argument("--sign-in-rounds", type=int, default=4)
    parser.add_argument("--only", choices=("requests", "sign-ins"))
    options = parser.parse_args()
    if options.only != "sign-ins":
        environment.install()
    with this_machine():
        met = uvloop.run(main(options))
    sys.exit(not met)
