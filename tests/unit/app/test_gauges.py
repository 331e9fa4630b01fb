"""The node's pulse: gauges once a second, and how late the loop was."""

from __future__ import annotations

import asyncio

import pytest

from kelpie.app.gauges import report_gauges
from kelpie.sim.clock import SimulatedClock
from kelpie.sim.loop import SimulatedLoop
from kelpie.sim.telemetry import RecordedTelemetry


class Pulse(RecordedTelemetry):
    """Keeps the values as well."""

    def __init__(self) -> None:
        super().__init__()
        self.lags: list[float] = []
        self.gauges: dict[str, float] = {}

    def observe(self, name: str, value: float, **labels: str) -> None:
        assert name == "kelpie.loop.lag.duration"
        self.lags.append(value)

    def gauge(self, name: str, value: float, **labels: str) -> None:
        self.gauges[name] = value


class HeldUpClock(SimulatedClock):
    """A clock whose third second takes one and a half."""

    looks = 0

    def boot_ns(self) -> int:
        self.looks += 1
        return super().boot_ns() + (500_000_000 if self.looks >= 6 else 0)


@pytest.mark.requirement("ACTOR-LOOP-LAG")
def test_the_lag_of_the_loop_is_observed_every_second_and_gauges_are_set() -> None:
    async def main() -> Pulse:
        pulse = Pulse()
        work = report_gauges(lambda: {"kelpie.x": 7.0}, clock=HeldUpClock(), telemetry=pulse)
        task = asyncio.ensure_future(work)
        await asyncio.sleep(5.5)
        task.cancel()
        return pulse

    loop = SimulatedLoop()
    pulse = loop.run_until_complete(main())
    loop.abandon()
    assert pulse.lags == pytest.approx([0, 0, 0.5, 0, 0])
    assert pulse.gauges == {"kelpie.x": 7.0}
