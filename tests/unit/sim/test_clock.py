"""Machines' clocks: rates, jumps, and the way back to the world's time."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from kelpie.sim.clock import EPOCH_NS, RATE_PPM_MAX, MachineClock, SimulatedClock

SECOND = 1_000_000_000


class Moment:
    def __init__(self) -> None:
        self.ns = 0

    def __call__(self) -> int:
        return self.ns


def test_a_clock_shows_the_worlds_time_until_somebody_changes_it() -> None:
    moment = Moment()
    clock = MachineClock(moment)
    moment.ns = 5 * SECOND
    assert clock.monotonic_ns() == 5 * SECOND
    assert clock.wall_ns() == EPOCH_NS + 5 * SECOND
    assert (clock.wall_error_ns, clock.changes) == (0, 0)
    assert SimulatedClock(clock).now_ms() == (EPOCH_NS + 5 * SECOND) // 1_000_000


def test_a_wall_clock_jumps_either_way_and_the_monotonic_one_does_not() -> None:
    moment = Moment()
    clock = MachineClock(moment)
    moment.ns = 5 * SECOND
    clock.jump_wall(-3 * SECOND)
    assert clock.wall_error_ns == -3 * SECOND
    assert clock.monotonic_ns() == 5 * SECOND
    clock.jump_forward(2 * SECOND)
    assert clock.monotonic_ns() == 7 * SECOND
    assert clock.wall_error_ns == -SECOND
    assert clock.changes == 2


@given(
    changes=st.lists(
        st.tuples(
            st.integers(0, 10**12),
            st.integers(-RATE_PPM_MAX, RATE_PPM_MAX),
            st.integers(0, 10**12),
        ),
        max_size=6,
    ),
    ahead_ns=st.integers(0, 10**13),
)
def test_a_clock_never_goes_back_and_a_timer_rings_when_it_is_due(
    changes: list[tuple[int, int, int]], ahead_ns: int
) -> None:
    moment = Moment()
    clock = MachineClock(moment)
    shown = 0
    for passed_ns, rate_ppm, jump_ns in changes:
        moment.ns += passed_ns
        assert clock.monotonic_ns() >= shown
        clock.set_rate(rate_ppm)
        clock.jump_forward(jump_ns)
        shown = clock.monotonic_ns()
    due_ns = shown + ahead_ns
    rings_ns = clock.world_ns(due_ns)
    assert rings_ns >= moment.ns
    moment.ns = rings_ns
    assert clock.monotonic_ns() >= due_ns
    moment.ns = max(0, rings_ns - 2)
    if moment.ns > 0 and ahead_ns > 4:
        assert clock.monotonic_ns() < due_ns
