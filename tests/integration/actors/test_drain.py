"""The end of a runtime whose handlers do not end by themselves, in virtual time."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from kelpie import Actor, State, command, query
from kelpie.core.errors import KelpieError
from kelpie.core.limits import DRAIN_TIMEOUT_MS, STOP_TIMEOUT_MS
from kelpie.sim.loop import SimulatedLoop
from tests.integration.actors.simulated import World, simulate

LONGER_S = 3_600.0


class Sum(State):
    total: int = 0


class Guest(Actor[Sum]):
    """Stays, politely or not."""

    @command
    def add(self) -> int:
        self.state.total += 1
        return self.state.total

    @command
    async def stay(self) -> None:
        self.state.total += 100
        await asyncio.sleep(LONGER_S)

    @command
    async def insist(self, cancellations: int) -> None:
        self.state.total += 100
        while cancellations:
            try:
                await asyncio.sleep(LONGER_S)
            except asyncio.CancelledError:
                cancellations -= 1

    @query
    def total(self) -> int:
        return self.state.total


@pytest.mark.requirement("DRAIN-BOUNDED")
@pytest.mark.parametrize(("cancellations", "stopped_after_s"), [(0, 0.0), (2, 5.0), (9, 5.0)])
def test_a_drain_stops_what_does_not_end_and_keeps_what_was_acknowledged(
    tmp_path: Path, cancellations: int, stopped_after_s: float
) -> None:
    async def main() -> tuple[float, int]:
        world = World()
        loop = asyncio.get_running_loop()
        async with world.opened(tmp_path, Guest) as runtime:
            guest = runtime.ref(Guest, "a", timeout_s=LONGER_S)
            assert await guest.add() == 1
            work = guest.insist(cancellations) if cancellations else guest.stay()
            asked = asyncio.ensure_future(work)
            await asyncio.sleep(0.1)
            began_s = loop.time()
            await runtime.engine.drain()
            took_s = loop.time() - began_s
            await runtime.engine.drain()  # the second has nothing to wait for
            assert loop.time() - began_s == took_s
        with pytest.raises(KelpieError):
            await asked
        async with world.opened(tmp_path, Guest) as runtime:
            return took_s, await runtime.ref(Guest, "a").total()

    took_s, total = simulate(main, loop=SimulatedLoop())
    assert STOP_TIMEOUT_MS == 5_000
    assert took_s == pytest.approx(DRAIN_TIMEOUT_MS / 1_000 + stopped_after_s, abs=0.01)
    assert total == 1, "what was acknowledged is there, and nothing of what was stopped"
