from __future__ import annotations

import time

from kelpie.host.clock import HostClock
from kelpie.host.rng import HostRng


async def test_a_sleep_lasts_at_least_as_long_as_asked() -> None:
    clock = HostClock()
    before = clock.boot_ns()
    await clock.sleep(0.01)
    assert clock.boot_ns() - before >= 10_000_000


def test_wall_time_is_in_milliseconds() -> None:
    assert abs(HostClock().now_ms() - time.time() * 1_000) < 1_000


def test_random_bytes_have_the_asked_length_and_differ() -> None:
    rng = HostRng()
    assert len(rng.bytes(1_024)) == 1_024
    assert len({rng.bytes(16) for _ in range(100)}) == 100


def test_fractions_lie_below_one() -> None:
    rng = HostRng()
    drawn = [rng.fraction() for _ in range(1_000)]
    assert 0 <= min(drawn) < 0.1
    assert 0.9 < max(drawn) < 1
