"""The host's clocks. Owns no state."""

from __future__ import annotations

import asyncio
import time
from typing import Final

_NANOSECONDS_PER_MILLISECOND: Final = 1_000_000


class HostClock:
    """Implements the clock port on the kernel's clocks."""

    def now_ms(self) -> int:
        """Return wall time in milliseconds since 1970 UTC; may jump either way."""
        return time.time_ns() // _NANOSECONDS_PER_MILLISECOND

    def boot_ns(self) -> int:
        """Return nanoseconds since boot, time spent suspended included."""
        return time.clock_gettime_ns(time.CLOCK_BOOTTIME)

    async def sleep(self, seconds: float) -> None:
        """Return after at least ``seconds`` (>= 0)."""
        assert seconds >= 0, "a wait is never negative"
        await asyncio.sleep(seconds)
