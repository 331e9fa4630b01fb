"""A usurper: a second session takes a store over while the first one still serves from it.

Somebody removes the lock file, or the file system forgets the lock. Whoever claimed the shards last
owns them: what the earlier session writes afterwards is refused, and its clients are not told
anything that is not durable. Then the earlier program is killed and starts again.
"""

from __future__ import annotations

import asyncio
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Final

from kelpie.sim.client import insist
from kelpie.sim.host import SimulatedHost
from kelpie.sim.scenarios.counters import COUNTERS, SimCounter
from kelpie.sim.scenarios.heal import settle
from kelpie.sim.world import SimulatedWorld

PAUSE_S_MAX: Final = 0.5
REIGN_S: Final = 2.0
MOMENT_S: Final = 0.001


class UsurperScenario:
    """Counters on one machine whose store is taken over."""

    name = "usurper"

    def __init__(self) -> None:
        self._acknowledged = 0

    async def run(self, world: SimulatedWorld) -> None:
        """Count, take over, go back, count."""
        host = world.add_host("n1", actors=(SimCounter,))
        await world.unleash()
        async with asyncio.TaskGroup() as people:
            people.create_task(self._usurp(world, host), name="usurper")
            for number in range(world.config.clients):
                people.create_task(self._count(world, host, number), name=f"client-{number}")
        await settle(world)
        total = 0
        for counter in range(COUNTERS):
            target = f"/v1/actors/{SimCounter.actor_type}/c{counter}/show"
            answer = await insist(host, "POST", target, {}, key=f"show-{counter}")
            total += answer.json()["result"][0]
        assert total == self._acknowledged, f"{self._acknowledged} acknowledged, {total} counted"

    async def _count(self, world: SimulatedWorld, host: SimulatedHost, number: int) -> None:
        rng = world.stream(f"client:{number}")
        for turn in range(2 * world.config.operations):
            await asyncio.sleep(rng.random() * PAUSE_S_MAX)
            target = f"/v1/actors/{SimCounter.actor_type}/c{rng.randrange(COUNTERS)}/add"
            key = f"client-{number}-{turn}"
            answer = await insist(host, "POST", target, {"amount": 1}, key=key)
            assert answer.status == 200, answer.body
            self._acknowledged += 1

    async def _usurp(self, world: SimulatedWorld, host: SimulatedHost) -> None:
        rng = world.stream("usurper")
        await asyncio.sleep(rng.random() * PAUSE_S_MAX * world.config.operations)
        while host.is_writing:  # noqa: ASYNC110  a file is looked at between two commits
            await asyncio.sleep(MOMENT_S)
        if host.is_serving and not host.has_failed:
            claim_shards(host.settings().store.path)
            host.look(is_rest=False)
            world.sometimes("a store that is served was taken over")
            await asyncio.sleep(REIGN_S)
        host.crash()


def claim_shards(path: Path) -> None:
    """Own every shard of the store at ``path``, as whoever opens it does first."""
    assert path.is_file(), "only a store that exists is taken over"
    with closing(sqlite3.connect(path, timeout=0, isolation_level=None)) as connection:
        query = "UPDATE shards SET epoch = epoch + 1, session = 'usurper'"
        claimed = connection.execute(query).rowcount
    assert claimed > 0, "a store has shards"
