"""Who held the event loop: the handler, the collector, or nobody here."""

from __future__ import annotations

from typing import Any

import pytest

from kelpie.actors.blocking import BLOCKING_NS_MAX, READING_AGE_NS_MAX, BlockingWatch, find_cause
from kelpie.core.ids import TENANT_DEFAULT, ActorId
from kelpie.ports.meter import ThreadUse
from kelpie.sim.telemetry import RecordedTelemetry
from tests.integration.actors.counter import Show

MS = 1_000_000
ACTOR = ActorId(TENANT_DEFAULT, "counter", "a")
PAST = ThreadUse(cpu_ns=5_000 * MS, queued_ns=70 * MS, collecting_ns=30 * MS, waits=9)

pytestmark = pytest.mark.requirement("ACTOR-BLOCKING")


def later(*, cpu: int = 0, queued: int = 0, collecting: int = 0, waits: int = 0) -> ThreadUse:
    """The totals after a step that used so many milliseconds of each."""
    return ThreadUse(
        PAST.cpu_ns + cpu * MS,
        PAST.queued_ns + queued * MS,
        PAST.collecting_ns + collecting * MS,
        PAST.waits + waits,
    )


@pytest.mark.parametrize(
    ("use", "cause"),
    [
        (later(cpu=290), "computing"),
        (later(cpu=150, queued=150), "computing"),
        (later(cpu=2, waits=1), "waiting"),
        (later(cpu=290, collecting=280), "collector"),
        (later(cpu=0, collecting=250, waits=1), "collector"),
        (later(cpu=290, collecting=120), "computing"),
        (later(cpu=3, queued=290), "machine"),
        (later(cpu=3), "machine"),
        (later(cpu=60, queued=200, waits=2), "machine"),
    ],
)
def test_the_cause_of_a_long_step_is_what_its_thread_did_meanwhile(
    use: ThreadUse, cause: str
) -> None:
    assert find_cause(300 * MS, PAST, use) == cause


class Machine:
    """A clock and a meter that a test moves; implements both ports as far as a watch needs."""

    def __init__(self) -> None:
        self.boot = 1
        self.use = PAST
        self.readings = 0

    def boot_ns(self) -> int:
        return self.boot

    def now_ms(self) -> int:
        return 0

    async def sleep(self, seconds: float) -> None:
        raise AssertionError("a watch never waits")

    def read(self) -> ThreadUse:
        self.readings += 1
        return self.use


def step(machine: Machine, watch: BlockingWatch, use: ThreadUse, elapsed_ms: int) -> int:
    began_ns = watch.begin()
    machine.use = use
    machine.boot += elapsed_ms * MS
    return watch.end(began_ns, ACTOR, Show())


def reports(telemetry: RecordedTelemetry) -> list[tuple[str, dict[str, Any]]]:
    return [(event, fields) for _, event, fields in telemetry.logs]


def test_a_handler_that_computes_is_named_and_one_that_was_held_up_is_not() -> None:
    machine, telemetry = Machine(), RecordedTelemetry()
    watch = BlockingWatch(clock=machine, telemetry=telemetry, meter=machine)
    assert step(machine, watch, later(cpu=200), 200) == 200 * MS
    ((event, fields),) = reports(telemetry)
    assert event == "turn.blocked_loop"
    assert (fields["actor"], fields["method"]) == ("default/counter/a", "counter.show")
    assert (fields["cause"], fields["duration_ms"], fields["cpu_ms"]) == ("computing", 200, 200)
    telemetry.logs.clear()
    step(machine, watch, later(cpu=203, queued=297), 300)
    ((event, fields),) = reports(telemetry)
    assert (event, fields) == ("loop.stalled", {"duration_ms": 300, "cause": "machine"})
    assert telemetry.counts == {"kelpie.turn.blocking": 1, "kelpie.loop.stalls": 1}


def test_short_steps_are_not_reported_and_share_a_reading() -> None:
    machine, telemetry = Machine(), RecordedTelemetry()
    watch = BlockingWatch(clock=machine, telemetry=telemetry, meter=machine)
    for _ in range(1_000):
        step(machine, watch, PAST, 0)
    assert machine.readings == 1
    for _ in range(20):
        step(machine, watch, PAST, READING_AGE_NS_MAX // MS)
    assert machine.readings == 20
    step(machine, watch, PAST, BLOCKING_NS_MAX // MS)
    assert telemetry.logs == []


def test_without_a_meter_the_handler_is_named_by_time_alone() -> None:
    machine, telemetry = Machine(), RecordedTelemetry()
    watch = BlockingWatch(clock=machine, telemetry=telemetry, meter=None)
    step(machine, watch, PAST, 101)
    assert [event for event, _ in reports(telemetry)] == ["turn.blocked_loop"]
    assert machine.readings == 0
