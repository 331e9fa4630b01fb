"""Logs, spans and metrics as a port.

Names follow OpenTelemetry; model calls follow its GenAI conventions. Prompt text never enters an
attribute unless the setting ``telemetry.capture_content`` is on.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Literal, Protocol

Attribute = str | int | float | bool
Level = Literal["debug", "info", "warning", "error"]


class Telemetry(Protocol):
    """Where a room reports what it does; never raises, never blocks."""

    def log(self, level: Level, event: str, **fields: Attribute | None) -> None:
        """Write one structured record; ``event`` is a stable dotted name."""
        ...

    def span(self, name: str, **attributes: Attribute) -> AbstractContextManager[None]:
        """Trace the enclosed work as one span."""
        ...

    def traceparent(self) -> str:
        """Return the running span's W3C traceparent, for another node; empty without a span."""
        ...

    def within(self, traceparent: str) -> AbstractContextManager[None]:
        """Make spans of the enclosed work children of another node's span."""
        ...

    def count(self, name: str, amount: int = 1, **labels: str) -> None:
        """Add to a counter."""
        ...

    def observe(self, name: str, value: float, **labels: str) -> None:
        """Add ``value`` (seconds, bytes or a count, as the name says) to a histogram."""
        ...

    def gauge(self, name: str, value: float, **labels: str) -> None:
        """Set a gauge."""
        ...
