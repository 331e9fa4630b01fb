"""Waits for answers that end in time: one timer for each length of wait, none for each wait.

Nearly every wait ends by its answer, and nearly all are of one length. Waits of one length end in
the order in which they began, so the oldest alone needs a timer.

Invariants: no wait outlasts its length by more than a turn of the loop; an ended wait is forgotten.
"""

from __future__ import annotations

import asyncio
from typing import Any, Final

import msgspec

from kelpie.core.errors import DeadlineError
from kelpie.core.ids import ActorId

LANES_KEPT_MAX: Final = 16  # lengths that keep their timer while nobody waits

_EARLY_S: Final = 1e-6  # a timer comes when the clock has nearly shown its time, in floats


class _Wait(msgspec.Struct, frozen=True, gc=False):
    """For whom, and until when (the loop's time)."""

    actor: ActorId
    ends: float


class _Lane:
    """The waits of one length, oldest first."""

    __slots__ = ("timer", "waits")

    def __init__(self) -> None:
        self.waits: dict[asyncio.Future[Any], _Wait] = {}
        self.timer: asyncio.TimerHandle | None = None


class Deadlines:
    """The waits of one event loop."""

    __slots__ = ("_lanes",)

    def __init__(self) -> None:
        self._lanes: dict[int, _Lane] = {}

    async def wait(self, future: asyncio.Future[Any], actor: ActorId, timeout_ms: int) -> Any:
        """Return the future's result.

        Raises:
            DeadlineError: It did not come within ``timeout_ms``; names ``actor``.
        """
        assert timeout_ms > 0, "a deadline lies in the future"
        lane = self._lanes.get(timeout_ms)
        if lane is None:
            lane = self._lanes[timeout_ms] = _Lane()
        assert future not in lane.waits, "one caller waits for one future"
        ends = future.get_loop().time() + timeout_ms / 1_000
        lane.waits[future] = _Wait(actor, ends)
        if lane.timer is None:
            self._set_timer(lane, timeout_ms, ends)
        try:
            return await future
        finally:
            lane.waits.pop(future, None)
            if not lane.waits and len(self._lanes) > LANES_KEPT_MAX:
                self._close(timeout_ms)

    def _set_timer(self, lane: _Lane, timeout_ms: int, ends: float) -> None:
        loop = asyncio.get_running_loop()
        lane.timer = loop.call_at(ends, self._look, timeout_ms)

    def _close(self, timeout_ms: int) -> None:
        lane = self._lanes.pop(timeout_ms, None)
        if lane is not None and lane.timer is not None:
            lane.timer.cancel()

    def _look(self, timeout_ms: int) -> None:
        """End what is due, and look again when the next one is."""
        lane = self._lanes[timeout_ms]
        lane.timer = None
        now = asyncio.get_running_loop().time()
        while lane.waits:
            future, wait = next(iter(lane.waits.items()))
            if wait.ends > now + _EARLY_S:
                self._set_timer(lane, timeout_ms, wait.ends)
                return
            del lane.waits[future]
            if not future.done():
                future.set_exception(_late(wait.actor, timeout_ms))
        self._close(timeout_ms)


def _late(actor: ActorId, timeout_ms: int) -> DeadlineError:
    message = f"{actor} did not answer within {timeout_ms:,} ms; its outcome may still follow"
    return DeadlineError(message, actor=str(actor), timeout_ms=timeout_ms)


def too_late(actor: ActorId) -> DeadlineError:
    """Return the error of a call whose deadline passed before its turn began."""
    return DeadlineError(
        f"{actor} was busy until the deadline of this call; nothing happened", actor=str(actor)
    )
