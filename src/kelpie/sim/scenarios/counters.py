"""Counters: several clients add to a few actors with idempotency keys, while servers die.

Every addition is asked for until it is answered, and some are asked for again under their key. At
the end each counter holds every acknowledged amount exactly once.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Final

from kelpie.actors.api.definition import Actor
from kelpie.actors.api.method import command, query
from kelpie.actors.api.upcast import State
from kelpie.sim.client import insist
from kelpie.sim.host import SimulatedHost
from kelpie.sim.invariants.basic import basic_invariants
from kelpie.sim.scenarios.heal import settle
from kelpie.sim.world import SimulatedWorld

COUNTERS: Final = 3
AMOUNT_MAX: Final = 9
PAUSE_S_MAX: Final = 2.0


class SimTally(State):
    """What a counter remembers."""

    total: int = 0
    additions: int = 0


class SimCounter(Actor[SimTally]):
    """Counts, and counts how often."""

    actor_type = "sim-counter"

    @command
    def add(self, amount: int) -> int:
        """Add ``amount`` and return the new total."""
        self.state.total += amount
        self.state.additions += 1
        return self.state.total

    @query
    def show(self) -> tuple[int, int]:
        """Return the total and the number of additions."""
        return self.state.total, self.state.additions


class CountersScenario:
    """Counters on one or more machines, each with a store of its own."""

    name: Final = "counters"

    def __init__(self) -> None:
        self._totals: Counter[tuple[str, str]] = Counter()
        self._additions: Counter[tuple[str, str]] = Counter()

    async def run(self, world: SimulatedWorld) -> None:
        """Count, heal, compare."""
        world.invariants.extend(basic_invariants())
        for index in range(world.config.hosts):
            world.add_host(f"n{index + 1}", actors=(SimCounter,))
        await world.unleash()
        async with asyncio.TaskGroup() as clients:
            for number in range(world.config.clients):
                clients.create_task(self._count(world, number), name=f"client-{number}")
        await settle(world)
        for host in world.hosts.values():
            for counter in range(COUNTERS):
                await self._compare(host, f"c{counter}")

    async def _count(self, world: SimulatedWorld, number: int) -> None:
        rng = world.stream(f"client:{number}")
        hosts = list(world.hosts.values())
        for turn in range(world.config.operations):
            await asyncio.sleep(rng.random() * PAUSE_S_MAX)
            host, counter = rng.choice(hosts), f"c{rng.randrange(COUNTERS)}"
            amount = rng.randrange(1, AMOUNT_MAX + 1)
            target = f"/v1/actors/{SimCounter.actor_type}/{counter}/add"
            key = f"client-{number}-{turn}"
            answer = await insist(host, "POST", target, {"amount": amount}, key=key)
            assert answer.status == 200, answer.body
            self._totals[host.name, counter] += amount
            self._additions[host.name, counter] += 1
            if rng.random() < 0.3:
                again = await insist(host, "POST", target, {"amount": amount}, key=key)
                assert again.body == answer.body, f"{again.body!r} after {answer.body!r}"
                world.sometimes("a key was used again")

    async def _compare(self, host: SimulatedHost, counter: str) -> None:
        target = f"/v1/actors/{SimCounter.actor_type}/{counter}/show"
        answer = await insist(host, "POST", target, {}, key=f"show-{counter}")
        place = (host.name, counter)
        expected = [self._totals[place], self._additions[place]]
        found = answer.json()["result"]
        assert found == expected, f"{place} holds {found}, acknowledged were {expected}"
