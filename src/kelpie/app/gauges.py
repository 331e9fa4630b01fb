"""The node's own pulse: how much it holds, and how late its loop is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from kelpie.ports.clock import Clock
from kelpie.ports.telemetry import Telemetry

INTERVAL_S: Final = 1.0


async def report_gauges(
    read: Callable[[], Mapping[str, float]], *, clock: Clock, telemetry: Telemetry
) -> None:
    """Set the gauges that ``read`` returns once a second, for ever, and observe the loop's lag.

    The lag is how late the sleep of one second ended.
    """
    while True:
        began_ns = clock.boot_ns()
        await clock.sleep(INTERVAL_S)
        lag_s = max(0.0, (clock.boot_ns() - began_ns) / 1e9 - INTERVAL_S)
        telemetry.observe("kelpie.loop.lag.duration", lag_s)
        for name, value in read().items():
            telemetry.gauge(name, value)
