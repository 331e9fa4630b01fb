"""Counters: several clients add to a few actors with idempotency keys, while servers die.

Every addition is asked for until it is answered, and some are asked for again under their key. At
the end each counter holds every acknowledged amount exactly once, and all answers together are
what one counter after the other could have said: by the versions of its commits, and by search.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Final

from kelpie.actors.api.definition import Actor
from kelpie.actors.api.method import command, query
from kelpie.actors.api.upcast import State
from kelpie.sim.client import insist
from kelpie.sim.history import History
from kelpie.sim.host import SimulatedHost
from kelpie.sim.linearizability import Judgement, check_linearizability
from kelpie.sim.scenarios.heal import settle
from kelpie.sim.specifications import CounterSpecification
from kelpie.sim.view import View
from kelpie.sim.witness import check_versions
from kelpie.sim.world import SimulatedWorld

COUNTERS: Final = 3
AMOUNT_MAX: Final = 9
PAUSE_S_MAX: Final = 2.0
LOOK_EVERY_S: Final = 0.5
LOOKS_MAX: Final = 200
READ_SHARE: Final = 0.3


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

    name = "counters"

    def __init__(self) -> None:
        self._history = History()
        self._versions: dict[tuple[str, str, str], int] = {}
        self._commits: dict[str, list[int]] = {}
        self._totals: Counter[tuple[str, str]] = Counter()
        self._additions: Counter[tuple[str, str]] = Counter()

    async def run(self, world: SimulatedWorld) -> None:
        """Count, heal, compare."""
        world.always("commits-are-noted", self._note)
        for index in range(world.config.hosts):
            world.add_host(f"n{index + 1}", actors=(SimCounter,))
        await world.unleash()
        async with asyncio.TaskGroup() as clients:
            for number in range(world.config.clients):
                clients.create_task(self._count(world, number), name=f"client-{number}")
        await settle(world)
        for host in world.hosts.values():
            for counter in range(COUNTERS):
                await self._compare(world, host, f"c{counter}")
        self._judge(world)

    def _note(self, view: View) -> None:
        """Remember which version each addition became."""
        if view.last is None:
            return
        host, commit = view.last.host, view.last.commit
        version = commit.expected_version + 1
        self._commits.setdefault(f"{host}/{commit.actor.key}", []).append(version)
        if commit.reply is not None:
            self._versions[host, commit.actor.key, commit.reply.key] = version

    def _judge(self, world: SimulatedWorld) -> None:
        """Hold every answer against the commits, and against every order that time allows."""
        operations = self._history.operations()
        by_version = check_versions(operations, CounterSpecification(), commits=self._commits)
        if by_version.judgement is not Judgement.LINEARIZABLE:
            world.fail("answers-follow-the-commits", str(by_version))
        by_search = check_linearizability(operations, CounterSpecification())
        if by_search.judgement is Judgement.VIOLATION:
            world.fail("answers-are-linearizable", str(by_search))

    async def _count(self, world: SimulatedWorld, number: int) -> None:
        rng = world.stream(f"client:{number}")
        hosts = list(world.hosts.values())
        for turn in range(world.config.operations):
            await asyncio.sleep(rng.random() * PAUSE_S_MAX)
            host, counter = rng.choice(hosts), f"c{rng.randrange(COUNTERS)}"
            if rng.random() < READ_SHARE:
                key = f"read-{number}-{turn}"
                await self._read(world, host, counter, client=f"client-{number}", key=key)
                continue
            amount = rng.randrange(1, AMOUNT_MAX + 1)
            target = f"/v1/actors/{SimCounter.actor_type}/{counter}/add"
            key = f"client-{number}-{turn}"
            name = f"{host.name}/{counter}"
            token = self._history.call(
                f"client-{number}", name, "add", amount, at_ns=world.loop.now_ns
            )
            answer = await insist(host, "POST", target, {"amount": amount}, key=key)
            assert answer.status == 200, answer.body
            version = await self._version_of(world, host.name, counter, key)
            total = answer.json()["result"]
            self._history.returned(token, total, at_ns=world.loop.now_ns, version=version)
            self._totals[host.name, counter] += amount
            self._additions[host.name, counter] += 1
            if rng.random() < 0.3:
                again = await insist(host, "POST", target, {"amount": amount}, key=key)
                assert again.body == answer.body, f"{again.body!r} after {answer.body!r}"
                world.sometimes("a key was used again")

    async def _version_of(self, world: SimulatedWorld, host: str, name: str, key: str) -> int:
        """Return what an acknowledged addition became.

        One whose outcome the writer did not learn is found by the next life, while its kept reply
        may have been read before.
        """
        for _ in range(LOOKS_MAX):
            version = self._versions.get((host, name, key))
            if version is not None:
                return version
            await asyncio.sleep(LOOK_EVERY_S)
        problem = f"{key} was acknowledged and is not durable"
        world.fail("reply-follows-its-commit", problem)
        return 0

    async def _compare(self, world: SimulatedWorld, host: SimulatedHost, counter: str) -> None:
        found = await self._read(world, host, counter, client="reader", key=f"show-{counter}")
        place = (host.name, counter)
        expected = [self._totals[place], self._additions[place]]
        assert found == expected, f"{place} holds {found}, acknowledged were {expected}"

    async def _read(
        self, world: SimulatedWorld, host: SimulatedHost, counter: str, *, client: str, key: str
    ) -> list[int]:
        """Return a counter's total and how many additions are in it."""
        name = f"{host.name}/{counter}"
        token = self._history.call(client, name, "get", at_ns=world.loop.now_ns)
        target = f"/v1/actors/{SimCounter.actor_type}/{counter}/show"
        answer = await insist(host, "POST", target, {}, key=key)
        assert answer.status == 200, answer.body
        total, additions = answer.json()["result"]
        # Every addition is one commit, so their number is the version that was read.
        self._history.returned(token, total, at_ns=world.loop.now_ns, version=additions)
        return [total, additions]
