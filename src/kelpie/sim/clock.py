"""Clocks of simulated machines, and the clock port over one of them.

A machine's clocks follow the world's virtual time at a rate of their own, and jump when told to.
All arithmetic is on integer nanoseconds.

Invariants: a monotonic clock never goes back; the same orders give the same readings.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

NANOSECONDS_PER_SECOND: Final = 1_000_000_000
NANOSECONDS_PER_MS: Final = 1_000_000
EPOCH_NS: Final = 1_767_225_600 * NANOSECONDS_PER_SECOND  # 2026-01-01 UTC: simulated time begins
RATE_PPM_MAX: Final = 500_000  # a clock that runs half as fast again as the world's
_MILLION: Final = 1_000_000


class MachineClock:
    """The wall clock and the monotonic clock of one simulated machine.

    Attributes:
        rate_ppm: How much faster than the world both clocks run, in parts per million.
        changes: How often somebody changed the rate or made a clock jump.
    """

    __slots__ = ("_base_ns", "_now_ns", "_shown_ns", "_wall_ns", "changes", "rate_ppm")

    def __init__(self, now_ns: Callable[[], int], *, rate_ppm: int = 0) -> None:
        assert abs(rate_ppm) <= RATE_PPM_MAX, "a clock runs forward, near the world's rate"
        self._now_ns = now_ns
        self._base_ns = now_ns()  # the world's time at the last change
        self._shown_ns = self._base_ns  # what the monotonic clock showed then
        self._wall_ns = EPOCH_NS  # wall time when the monotonic clock shows 0
        self.rate_ppm = rate_ppm
        self.changes = 0

    def monotonic_ns(self) -> int:
        """Return nanoseconds on the machine's monotonic clock, which counts while suspended."""
        passed_ns = self._now_ns() - self._base_ns
        return self._shown_ns + passed_ns * (_MILLION + self.rate_ppm) // _MILLION

    def wall_ns(self) -> int:
        """Return the machine's wall time in nanoseconds since 1970 UTC."""
        return self._wall_ns + self.monotonic_ns()

    def world_ns(self, monotonic_ns: int) -> int:
        """Return the first world time at which the monotonic clock shows ``monotonic_ns``."""
        ahead_ns = monotonic_ns - self._shown_ns
        rate = _MILLION + self.rate_ppm
        return self._base_ns - (-ahead_ns * _MILLION // rate)

    @property
    def wall_error_ns(self) -> int:
        """How far the wall clock is ahead of the world's time."""
        return self.wall_ns() - (EPOCH_NS + self._now_ns())

    def set_rate(self, rate_ppm: int) -> None:
        """Let both clocks run at another rate from now on."""
        assert abs(rate_ppm) <= RATE_PPM_MAX, "a clock runs forward, near the world's rate"
        before_ns = self.monotonic_ns()
        self._rebase(before_ns)
        self.rate_ppm = rate_ppm
        assert self.monotonic_ns() == before_ns, "a new rate changes no reading"

    def jump_wall(self, delta_ns: int) -> None:
        """Move the wall clock alone, either way."""
        before_ns = self.wall_ns()
        self._wall_ns += delta_ns
        self.changes += 1
        assert self.wall_ns() == before_ns + delta_ns
        assert self.wall_ns() > 0, "a wall clock stays after 1970"

    def jump_forward(self, delta_ns: int) -> None:
        """Move both clocks ahead, as after a suspended machine wakes."""
        assert delta_ns >= 0, "a monotonic clock never goes back"
        before_ns = self.monotonic_ns()
        self._rebase(before_ns + delta_ns)
        assert self.monotonic_ns() == before_ns + delta_ns

    def _rebase(self, shown_ns: int) -> None:
        assert shown_ns >= self.monotonic_ns(), "a monotonic clock never goes back"
        self._base_ns = self._now_ns()
        self._shown_ns = shown_ns
        self.changes += 1


class SimulatedClock:
    """The clock port of the programs of one machine. Implements `Clock`.

    Attributes:
        skew_ms: How far this port's wall time is ahead of the machine's.
    """

    def __init__(self, machine: MachineClock | None = None) -> None:
        """Make the port over ``machine``; over the running loop's own time when None."""
        self.skew_ms = 0
        loop = asyncio.get_running_loop() if machine is None else None
        self._machine = machine or MachineClock(
            lambda: round(loop.time() * NANOSECONDS_PER_SECOND) if loop is not None else 0
        )

    def now_ms(self) -> int:
        """Return the machine's wall time."""
        return self._machine.wall_ns() // NANOSECONDS_PER_MS + self.skew_ms

    def boot_ns(self) -> int:
        """Return the machine's monotonic time."""
        return self._machine.monotonic_ns()

    async def sleep(self, seconds: float) -> None:
        """Let the machine's monotonic time pass."""
        await asyncio.sleep(seconds)
