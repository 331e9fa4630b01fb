"""Time as a port."""

from __future__ import annotations

from typing import Protocol


class Clock(Protocol):
    """The world's clocks and its only way to wait."""

    def now_ms(self) -> int:
        """Return wall time in milliseconds since 1970 UTC; may jump either way."""
        ...

    def boot_ns(self) -> int:
        """Return nanoseconds on a clock that never goes back and counts while suspended."""
        ...

    async def sleep(self, seconds: float) -> None:
        """Return after at least ``seconds`` (>= 0) of this world's time."""
        ...
