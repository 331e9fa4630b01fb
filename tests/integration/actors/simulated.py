"""An embedded runtime over a real store, in virtual time: what is about time or order runs here."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

from kelpie import Actor, Runtime
from kelpie.app.embed import EmbeddedWorld
from kelpie.sim.clock import SimulatedClock
from kelpie.sim.loop import SimulatedLoop
from kelpie.sim.rng import SimulatedRng
from kelpie.sim.telemetry import RecordedTelemetry

T = TypeVar("T")


def simulate(main: Callable[[], Awaitable[T]], *, loop: SimulatedLoop | None = None) -> T:
    """Run ``main`` to its end on a loop of its own, which waits for nothing real."""

    async def run() -> T:
        return await main()

    loop = loop or SimulatedLoop()
    try:
        return loop.run_until_complete(run())
    finally:
        loop.abandon()


class World:
    """The ports of one simulated process; ``clock.skew_ms`` moves its wall clock."""

    def __init__(self) -> None:
        self.clock = SimulatedClock()
        self.rng = SimulatedRng(1)
        self.telemetry = RecordedTelemetry()

    @asynccontextmanager
    async def opened(
        self, path: Path, *kinds: type[Actor[Any]], **options: Any
    ) -> AsyncGenerator[Runtime]:
        """Open a runtime in this world and check its invariants at the end."""
        ports = EmbeddedWorld(clock=self.clock, rng=self.rng, telemetry=self.telemetry)
        path = path if path.suffix else path / "kelpie.db"
        async with Runtime.open(path, actors=kinds, world=ports, **options) as runtime:
            yield runtime
            runtime.engine.check_invariants()

    def events(self, name: str) -> list[dict[str, Any]]:
        """Return the fields of every log record of this name."""
        return [fields for _, event, fields in self.telemetry.logs if event == name]
