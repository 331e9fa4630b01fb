"""A crowd: many clients want the same few counters at the same moment, while the server dies.

Turns of one counter then stand in one batch behind each other, and queries run between turns that
are not durable yet. In some seeds more clients call than a mailbox takes while its actor is paused;
each is answered, with its result or with a refusal.
"""

from __future__ import annotations

import asyncio
import random
from typing import Final

from kelpie.app.opened import App
from kelpie.core.ids import TENANT_DEFAULT, ActorId
from kelpie.core.limits import MAILBOX_DEPTH_MAX
from kelpie.sim.client import insist
from kelpie.sim.history import History
from kelpie.sim.host import SimulatedHost
from kelpie.sim.invariants.turns import CrowdSeen
from kelpie.sim.linearizability import Judgement, check_linearizability
from kelpie.sim.scenarios.counters import SimCounter
from kelpie.sim.scenarios.heal import settle
from kelpie.sim.specifications import CounterSpecification
from kelpie.sim.world import SimulatedWorld

COUNTERS: Final = 2
CALLERS: Final = 12
ROUNDS: Final = 4
READ_SHARE: Final = 0.4
REST_S_MAX: Final = 1.5
FLOOD_SEEDS: Final = 16  # one seed of so many
FLOOD_EXTRA: Final = 40
REFUSED: Final = 429


class CrowdScenario:
    """Callers on one machine."""

    name = "crowd"

    def __init__(self) -> None:
        self._history = History()

    async def run(self, world: SimulatedWorld) -> None:
        """Crowd, heal, read, judge."""
        host = world.add_host("n1", actors=(SimCounter,))
        await world.unleash()
        rng = world.stream("crowd")
        for number in range(ROUNDS):
            async with asyncio.TaskGroup() as callers:
                for caller in range(CALLERS):
                    work = self._call(world, host, rng, f"{caller}", f"{caller}-{number}")
                    callers.create_task(work, name=f"caller-{caller}")
            await asyncio.sleep(rng.random() * REST_S_MAX)
        await settle(world)
        for counter in range(COUNTERS):
            await self._read(world, host, f"c{counter}", "reader", f"read-{counter}")
        found = check_linearizability(self._history.operations(), CounterSpecification())
        if found.judgement is Judgement.VIOLATION:
            world.fail("answers-are-linearizable", str(found))
        if world.seed % FLOOD_SEEDS == 1:
            await self._flood(world, host)

    async def _call(
        self, world: SimulatedWorld, host: SimulatedHost, rng: random.Random, client: str, key: str
    ) -> None:
        counter = f"c{rng.randrange(COUNTERS)}"
        if rng.random() < READ_SHARE:
            await self._read(world, host, counter, client, key)
            return
        amount = rng.randrange(1, 9)
        token = self._history.call(client, counter, "add", amount, at_ns=world.loop.now_ns)
        target = f"/v1/actors/{SimCounter.actor_type}/{counter}/add"
        answer = await insist(host, "POST", target, {"amount": amount}, key=key)
        assert answer.status == 200, answer.body
        self._history.returned(token, answer.json()["result"], at_ns=world.loop.now_ns)

    async def _read(
        self, world: SimulatedWorld, host: SimulatedHost, counter: str, client: str, key: str
    ) -> None:
        token = self._history.call(client, counter, "get", at_ns=world.loop.now_ns)
        target = f"/v1/actors/{SimCounter.actor_type}/{counter}/show"
        answer = await insist(host, "POST", target, {}, key=key)
        assert answer.status == 200, answer.body
        self._history.returned(token, answer.json()["result"][0], at_ns=world.loop.now_ns)

    async def _flood(self, world: SimulatedWorld, host: SimulatedHost) -> None:
        """Call more often than a paused actor's mailbox takes."""
        app: App = host.service
        actor = ActorId(TENANT_DEFAULT, SimCounter.actor_type, "c0")
        app.node.runtime.pause(actor)
        target = f"/v1/actors/{SimCounter.actor_type}/c0/add"
        asked = MAILBOX_DEPTH_MAX + FLOOD_EXTRA
        calls = [
            world.loop.create_task(host.request("POST", target, {"amount": 1}), name="flood")
            for _ in range(asked)
        ]
        await asyncio.sleep(1)
        app.node.runtime.resume(actor)
        statuses = [(await call).status for call in calls]
        crowd = CrowdSeen(asked, statuses.count(200), statuses.count(REFUSED))
        world.view.said.setdefault("crowds", []).append(crowd)
        world.sometimes("a mailbox was full", crowd.refused > 0)
        world.check()
