"""How many answers that are there at once may leave before the loop gets a chance.

Callers of one tick share its budget: once it is spent, each that comes takes a step and rests; the
next tick gives each that rested the same share. The budget grows while ticks are short, because a
step through the loop costs as much as half a turn, and it shrinks to what a tick may always have
when one was long.
"""

from __future__ import annotations

import asyncio

from kelpie.actors.activation import Envelope
from kelpie.actors.blocking import NANOSECONDS_PER_MS
from kelpie.core import limits
from kelpie.ports.clock import Clock


class TickBudget:
    """The answers of one tick of the loop."""

    __slots__ = (
        "_boot_ns",
        "_budget",
        "_left",
        "_quota",
        "_resting",
        "_share",
        "_streak",
        "_tick_ns",
    )

    def __init__(self, clock: Clock) -> None:
        self._boot_ns = clock.boot_ns
        self._streak = 0
        self._quota = self._share = self._left = self._budget = limits.TURNS_PER_TICK_MAX
        self._tick_ns = 0
        self._resting = 0

    def may_go_on(self, envelope: Envelope) -> bool:
        """Return whether the answer is there and its caller may have it within this tick."""
        streak = self._streak + 1
        if streak > self._quota or not envelope.is_answered:
            return False
        self._streak = streak
        assert streak > 0, "answers are counted from one"
        return True

    async def rest(self) -> None:
        """Let the loop go round: answers that are there at once would otherwise never yield."""
        assert self._streak <= max(self._quota, self._budget), "no more answers than the tick has"
        self._left -= self._streak
        self._streak = 0
        self._quota = self._share if self._left >= self._share else limits.TURNS_PER_STEP_MIN
        self._resting += 1
        assert self._resting > 0, "somebody rests"
        assert self._quota >= limits.TURNS_PER_STEP_MIN, "each that rests gets a share"
        if self._resting == 1:
            asyncio.get_running_loop().call_soon(self._begin_tick)
        await asyncio.sleep(0)

    def _begin_tick(self) -> None:
        now_ns = self._boot_ns()
        if now_ns - self._tick_ns > limits.TURNS_MS_PER_TICK_MAX * NANOSECONDS_PER_MS:
            self._budget = limits.TURNS_PER_TICK_MAX
        else:
            self._budget = min(2 * self._budget, limits.TURNS_PER_QUICK_TICK_MAX)
        self._tick_ns = now_ns
        self._left = self._budget
        share = self._budget // self._resting
        self._quota = self._share = max(limits.TURNS_PER_STEP_MIN, share)
        self._resting = 0
