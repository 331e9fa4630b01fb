"""Telemetry that stays in memory, for checkers to read."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

from kelpie.ports.telemetry import Attribute, Level


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

    def traceparent(self) -> str:
        """Return nothing: spans are not followed in simulations."""
        return ""

    @contextmanager
    def within(self, traceparent: str) -> Generator[None]:
        """Run the enclosed work."""
        assert isinstance(traceparent, str), "a trace is named by a text"
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
