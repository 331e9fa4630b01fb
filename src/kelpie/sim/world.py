"""Simulated ports: clock, randomness, telemetry. One world, one seed.

A world outlives the simulated processes in it: its files, its model and its clock go on across a
crash, as the real ones do.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Generator
from contextlib import contextmanager
from typing import Final

from kelpie.ports.telemetry import Attribute, Level

EPOCH_MS: Final = 1_767_225_600_000  # 2026-01-01 UTC, where simulated wall time begins


class SimulatedClock:
    """Wall and boot time of one world, driven by its loop's virtual time."""

    def __init__(self) -> None:
        self.skew_ms = 0
        self._loop = asyncio.get_running_loop()

    def now_ms(self) -> int:
        """Return simulated wall time."""
        return EPOCH_MS + int(self._loop.time() * 1000) + self.skew_ms

    def boot_ns(self) -> int:
        """Return virtual nanoseconds."""
        return int(self._loop.time() * 1e9)

    async def sleep(self, seconds: float) -> None:
        """Let virtual time pass."""
        await asyncio.sleep(seconds)


class SimulatedRng:
    """Seeded randomness."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)

    def bytes(self, count: int) -> bytes:
        """Return ``count`` seeded bytes."""
        return self._random.randbytes(count)

    def fraction(self) -> float:
        """Return a seeded number in [0, 1)."""
        return self._random.random()

    def below(self, bound: int) -> int:
        """Return a seeded integer in ``range(bound)``."""
        return self._random.randrange(bound)


class RecordedTelemetry:
    """Keeps logs and counters in memory, for checkers to read."""

    def __init__(self) -> None:
        self.logs: list[tuple[Level, str, dict[str, Attribute | None]]] = []
        self.counts: dict[str, int] = {}

    def log(self, level: Level, event: str, **fields: Attribute | None) -> None:
        """Keep one record."""
        self.logs.append((level, event, fields))

    @contextmanager
    def span(self, name: str, **attributes: Attribute) -> Generator[None]:
        """Count the span by name."""
        del attributes
        self.count(f"span.{name}")
        yield

    def count(self, name: str, amount: int = 1, **labels: str) -> None:
        """Add to a counter, whatever its labels."""
        del labels
        self.counts[name] = self.counts.get(name, 0) + amount

    def observe(self, name: str, value: float, **labels: str) -> None:
        """Count the observation."""
        del value, labels
        self.count(name)

    def gauge(self, name: str, value: float, **labels: str) -> None:
        """Count that the gauge was set."""
        del value, labels
        self.count(name)
