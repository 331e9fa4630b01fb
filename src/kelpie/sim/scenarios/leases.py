"""Leases: machines that renew each other's by messages, and commit every renewal.

Each machine runs the shipped store and actor runtime over a store of its own. Every few seconds it
sends its renewal to each of the others over the simulated network; the receiver's lease actor
commits it and tells how many it has had. Without faults none is missed.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from functools import partial
from typing import Final

import msgspec

from kelpie.actors.api.definition import Actor
from kelpie.actors.api.method import command
from kelpie.actors.api.upcast import State
from kelpie.app.hosting import HostedActors, host_actors
from kelpie.app.wiring import open_node
from kelpie.core.ids import TENANT_DEFAULT, ActorId
from kelpie.sim.host import SimulatedHost
from kelpie.sim.world import SimulatedWorld

RENEW_EVERY_S: Final = 5.0
OVER_S: Final = 2_500.0
CALL_TIMEOUT_MS: Final = 1_500


class Renewals(State):
    """How often a lease was renewed."""

    count: int = 0


class Lease(Actor[Renewals]):
    """One machine's lease, as another keeps it."""

    actor_type = "sim-lease"

    @command
    def renew(self) -> int:
        """Take one renewal; return how many there were."""
        self.state.count += 1
        return self.state.count


class LeasesScenario:
    """Machines that renew each other's leases.

    Attributes:
        counts: The newest count of each lease, by holder and keeper.
    """

    name = "leases"

    def __init__(self) -> None:
        self.counts: dict[tuple[str, str], int] = {}

    async def run(self, world: SimulatedWorld) -> None:
        """Renew for a while, and see that nothing was lost."""
        for index in range(world.config.hosts):
            world.add_host(f"n{index + 1}", program=_run_leases)
        await world.unleash()
        async with asyncio.TaskGroup() as pulses:
            for host in world.hosts.values():
                pulses.create_task(self._pulse(world, host), name=f"pulse:{host.name}")
        await world.heal()
        expected = int(OVER_S / RENEW_EVERY_S)
        if world.config.is_fault_free:
            late = {pair: count for pair, count in self.counts.items() if count != expected}
            assert not late, f"of {expected} renewals some were lost: {late}"

    async def _pulse(self, world: SimulatedWorld, host: SimulatedHost) -> None:
        others = [each for each in world.hosts.values() if each is not host]
        for _ in range(int(OVER_S / RENEW_EVERY_S)):
            await asyncio.sleep(RENEW_EVERY_S)
            for other in others:
                arrive = partial(self._deliver, world, host, other)
                world.links.post(host.name, other.name, arrive)
        await asyncio.sleep(RENEW_EVERY_S)

    def _deliver(self, world: SimulatedWorld, sender: SimulatedHost, keeper: SimulatedHost) -> None:
        """A renewal has arrived: the keeper's program takes it, if one runs."""
        if keeper.is_serving:
            keeper.run_in_program("lease", self._renew(sender, keeper))
        else:
            world.sometimes("a renewal met a dead machine")

    async def _renew(self, sender: SimulatedHost, keeper: SimulatedHost) -> None:
        hosted: HostedActors = keeper.service
        actor = ActorId(TENANT_DEFAULT, Lease.actor_type, sender.name)
        answer = await hosted.call(
            actor,
            "renew",
            b"{}",
            principal=f"node:{sender.name}",
            key=None,
            timeout_ms=CALL_TIMEOUT_MS,
        )
        self.counts[sender.name, keeper.name] = msgspec.json.decode(answer, type=int)


@asynccontextmanager
async def _run_leases(host: SimulatedHost) -> AsyncGenerator[HostedActors]:
    async with open_node(host.settings(), world=host.ports()) as node:
        hosted = host_actors(node, (Lease,))
        await node.drive()
        yield hosted
