"""Names the code that held the event loop, and nobody who merely ran when something else did.

A step of a handler that took long is compared with what its thread used meanwhile: it computed, it
waited, the garbage collector ran, or the machine ran something else. The first two are the
handler's; the others are reported without a name.
"""

from __future__ import annotations

from typing import Final, Literal

from kelpie.actors.commands import Message
from kelpie.core.ids import ActorId
from kelpie.core.limits import BLOCKING_MS_MAX
from kelpie.ports.clock import Clock
from kelpie.ports.meter import Meter, ThreadUse
from kelpie.ports.telemetry import Telemetry

Cause = Literal["computing", "waiting", "collector", "machine"]

NANOSECONDS_PER_MS: Final = 1_000_000
BLOCKING_NS_MAX: Final = BLOCKING_MS_MAX * NANOSECONDS_PER_MS
# Reading the meter at every step would cost more than most steps. So a step may be compared with a
# reading that is this much older than it.
READING_AGE_NS_MAX: Final = BLOCKING_NS_MAX // 5

_NO_USE: Final = ThreadUse(0, 0, 0, 0)
_HINTS: Final[dict[Cause, str]] = {
    "computing": "move the work into an effect, or do less of it in one step",
    "waiting": "await what waits, or move it into an effect",
}


def find_cause(elapsed_ns: int, before: ThreadUse, after: ThreadUse) -> Cause:
    """Return why a step took ``elapsed_ns``, by what the thread used between two readings."""
    assert elapsed_ns > 0, "a step takes time"
    collected_ns = after.collecting_ns - before.collecting_ns
    # A collection counts as the collector's, whichever thread it ran on.
    computed_ns = max(0, after.cpu_ns - before.cpu_ns - collected_ns)
    if computed_ns >= BLOCKING_NS_MAX:
        return "computing"
    queued_ns = max(0, after.queued_ns - before.queued_ns)
    asleep_ns = elapsed_ns - computed_ns - collected_ns - queued_ns
    if asleep_ns >= BLOCKING_NS_MAX and after.waits > before.waits:
        return "waiting"
    return "collector" if collected_ns >= elapsed_ns // 2 else "machine"


class BlockingWatch:
    """Times the steps of user code on the event loop."""

    __slots__ = ("_meter", "_now_ns", "_read_ns", "_reading", "_telemetry")

    def __init__(self, *, clock: Clock, telemetry: Telemetry, meter: Meter | None) -> None:
        self._now_ns = clock.boot_ns
        self._telemetry = telemetry
        self._meter = meter
        self._reading = _NO_USE
        self._read_ns = -READING_AGE_NS_MAX

    def begin(self) -> int:
        """Return the moment at which a step begins, for `end`."""
        now_ns = self._now_ns()
        if self._meter is not None and now_ns - self._read_ns >= READING_AGE_NS_MAX:
            assert now_ns >= self._read_ns, "boot time never goes back"
            self._reading = self._meter.read()
            self._read_ns = now_ns
            assert self._reading.cpu_ns >= 0, "a thread uses time, and gives none"
        return now_ns

    def end(self, began_ns: int, actor: ActorId, message: Message) -> int:
        """Return how long the step took; report it if that is too long."""
        elapsed_ns = self._now_ns() - began_ns
        if elapsed_ns > BLOCKING_NS_MAX:
            self._report(elapsed_ns, actor, message)
        return elapsed_ns

    def _report(self, elapsed_ns: int, actor: ActorId, message: Message) -> None:
        cause: Cause = "computing"  # without a meter the handler is all there is to name
        used = _NO_USE
        if self._meter is not None:
            used = self._meter.read()
            cause = find_cause(elapsed_ns, self._reading, used)
        duration_ms = elapsed_ns // NANOSECONDS_PER_MS
        if cause not in _HINTS:
            self._telemetry.count("kelpie.loop.stalls", cause=cause)
            self._telemetry.log("warning", "loop.stalled", duration_ms=duration_ms, cause=cause)
            return
        self._telemetry.count("kelpie.turn.blocking", type=actor.type)
        self._telemetry.log(
            "warning",
            "turn.blocked_loop",
            actor=str(actor),
            method=str(type(message).__struct_config__.tag),
            duration_ms=duration_ms,
            cause=cause,
            cpu_ms=max(0, used.cpu_ns - self._reading.cpu_ns) // NANOSECONDS_PER_MS,
            hint=_HINTS[cause],
        )
