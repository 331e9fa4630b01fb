"""Drains: somebody stops the program again and again, as a rolling restart does, while it works.

Clients count; every count that was acknowledged must be there at the end, once. Some handlers
swallow their cancellation: the program ends in its bound all the same.
"""

from __future__ import annotations

import asyncio
from typing import Final

from kelpie.actors.api.definition import Actor
from kelpie.actors.api.method import command, query
from kelpie.actors.api.upcast import State
from kelpie.ports.network import NetworkError
from kelpie.sim.client import insist
from kelpie.sim.host import SimulatedHost
from kelpie.sim.scenarios.heal import settle
from kelpie.sim.world import SimulatedWorld

COUNTERS: Final = 3
PAUSE_S_MAX: Final = 4.0
STOPS_EVERY_S_MAX: Final = 20.0
LINGERS: Final = 0.15
LINGER_S: Final = 200.0
SWALLOWS_MAX: Final = 4
END_WITHIN_S: Final = 120.0
"""Longer than a drain with all that it waits for, and a pause of the machine on top."""


class Sum(State):
    """What was counted."""

    total: int = 0


class SimTally(Actor[Sum]):
    """Counts, and lingers."""

    actor_type = "sim-tally"

    @command
    async def add(self, pause_s: float) -> int:
        """Count after a while; return the sum."""
        await asyncio.sleep(pause_s)
        self.state.total += 1
        assert self.state.total >= 1, "a sum grows"
        return self.state.total

    @command
    async def linger(self) -> None:
        """Stay for a while, whoever asks it to leave."""
        for _ in range(SWALLOWS_MAX):
            try:
                await asyncio.sleep(LINGER_S)
            except asyncio.CancelledError:
                continue
            return

    @query
    def total(self) -> int:
        """Return the sum."""
        return self.state.total


class DrainsScenario:
    """Counters on one machine whose program is stopped and started."""

    name = "drains"

    def __init__(self) -> None:
        self._acknowledged = [0] * COUNTERS

    async def run(self, world: SimulatedWorld) -> None:
        """Count, stop, start; heal; compare."""
        host = world.add_host("n1", actors=(SimTally,))
        await world.unleash()
        operator = asyncio.create_task(self._operate(world, host), name="operator")
        async with asyncio.TaskGroup() as clients:
            for number in range(world.config.clients):
                clients.create_task(self._work(world, host, number), name=f"client-{number}")
        operator.cancel()
        await asyncio.wait([operator])
        if not operator.cancelled():
            operator.result()
        await settle(world)
        for counter, expected in enumerate(self._acknowledged):
            answer = await insist(host, "POST", _target(f"t{counter}", "total"), {}, key="look")
            found = answer.json()["result"]
            assert found == expected, f"t{counter} counted {found}, acknowledged were {expected}"

    async def _operate(self, world: SimulatedWorld, host: SimulatedHost) -> None:
        rng = world.stream("operator")
        while True:
            await asyncio.sleep(rng.random() * STOPS_EVERY_S_MAX)
            if not host.is_serving:
                continue
            began_ns = world.loop.now_ns
            try:
                async with asyncio.timeout(END_WITHIN_S):
                    await host.stop()
            except TimeoutError:
                raise AssertionError(f"SIGTERM did not end it in {END_WITHIN_S:.0f} s") from None
            took_s = (world.loop.now_ns - began_ns) / 1e9
            world.sometimes("a program was stopped")
            world.sometimes("a stop took its whole time", took_s > 20)

    async def _work(self, world: SimulatedWorld, host: SimulatedHost, number: int) -> None:
        rng = world.stream(f"client:{number}")
        for turn in range(world.config.operations):
            await asyncio.sleep(rng.random() * PAUSE_S_MAX)
            if rng.random() < LINGERS:
                await self._linger(host, number)
                continue
            counter, pause_s = rng.randrange(COUNTERS), rng.random() * PAUSE_S_MAX
            key, body = f"client-{number}-{turn}", {"pause_s": pause_s}
            answer = await insist(host, "POST", _target(f"t{counter}", "add"), body, key=key)
            assert answer.status == 200, answer.body
            self._acknowledged[counter] += 1

    async def _linger(self, host: SimulatedHost, number: int) -> None:
        """Begin to linger, and hang up."""
        target = _target(f"mule-{number}", "linger")
        try:
            async with asyncio.timeout(PAUSE_S_MAX):
                await host.request("POST", target, {}, key=None, headers={})
        except (NetworkError, TimeoutError):
            return


def _target(key: str, method: str) -> str:
    return f"/v1/actors/{SimTally.actor_type}/{key}/{method}"
