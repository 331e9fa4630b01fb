"""The host's clocks. Owns no state."""

from __future__ import annotations

import asyncio
import time
from functools import partial
from time import time_ns
from typing import Final

_NANOSECONDS_PER_MILLISECOND: Final = 1_000_000


class HostClock:
    """Implements the clock port on the kernel's clocks.

    Attributes:
        boot_ns: Returns nanoseconds since boot, time spent suspended included. Every turn asks
            twice, so it is the system's function itself and no method around it.
    """

    def __init__(self) -> None:
        self.boot_ns = partial(time.clock_gettime_ns, time.CLOCK_BOOTTIME)

    def now_ms(self) -> int:
        """Return wall time in milliseconds since 1970 UTC; may jump either way."""
        return time_ns() // _NANOSECONDS_PER_MILLISECOND

    async def sleep(self, seconds: float) -> None:
        """Return after at least ``seconds`` (>= 0)."""
        assert seconds >= 0, "a wait is never negative"
        await asyncio.sleep(seconds)
