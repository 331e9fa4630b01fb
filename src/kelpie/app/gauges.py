"""The node's own pulse: how much it holds, and how late its loop is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from kelpie.app.wiring import Node

INTERVAL_S: Final = 1.0


async def report_gauges(node: Node) -> None:
    """Set the gauges once a second, for ever; the lag is how late the sleep ended."""
    clock, telemetry = node.world.clock, node.world.telemetry
    while True:
        began_ns = clock.boot_ns()
        await clock.sleep(INTERVAL_S)
        lag_s = max(0.0, (clock.boot_ns() - began_ns) / 1e9 - INTERVAL_S)
        telemetry.observe("kelpie.loop.lag", lag_s)
        telemetry.gauge("kelpie.actors.resident", node.runtime.resident_count)
        telemetry.gauge("kelpie.effects.running", node.dispatcher.running_count)
        telemetry.gauge("kelpie.outbox.backlog", node.outbox.backlog)
        telemetry.gauge("kelpie.tasks", node.supervisor.task_count)
