"""Schedulers and tapes."""

from __future__ import annotations

import asyncio
import gc
import random
import weakref
from itertools import pairwise

import pytest

from kelpie.sim.loop import SimulatedLoop
from kelpie.sim.schedule import (
    SCHEDULER_NAMES,
    ChoiceTape,
    FifoScheduler,
    RecordingScheduler,
    ReplayScheduler,
    Scheduler,
    SchedulerName,
    make_scheduler,
)


def order_under(scheduler: Scheduler) -> list[int]:
    """Return the order in which ten tasks of five steps run."""
    order: list[int] = []

    async def work(number: int) -> None:
        for _ in range(5):
            order.append(number)
            await asyncio.sleep(0)

    async def main() -> None:
        await asyncio.gather(*(work(number) for number in range(10)))

    loop = SimulatedLoop(scheduler=scheduler)
    loop.run_until_complete(main())
    loop.abandon()
    return order


@pytest.mark.parametrize("name", SCHEDULER_NAMES)
def test_a_recorded_run_is_replayed_from_its_tape(name: SchedulerName) -> None:
    tape = ChoiceTape()
    scheduler = make_scheduler(name, random.Random(4), depth=5)
    first = order_under(RecordingScheduler(scheduler, tape))
    assert order_under(ReplayScheduler(tape)) == first
    assert len(tape) > 40


def test_the_end_of_a_tape_and_what_was_cut_from_it_are_first_in_first_out() -> None:
    tape = ChoiceTape()
    mixed = order_under(
        RecordingScheduler(make_scheduler("random", random.Random(4), depth=1), tape)
    )
    calm = order_under(FifoScheduler())
    assert mixed != calm
    assert order_under(ReplayScheduler(ChoiceTape())) == calm
    assert order_under(ReplayScheduler(tape.edited(0, len(tape)))) == calm
    half = order_under(ReplayScheduler(tape.edited(len(tape) // 2, len(tape))))
    assert half != mixed
    assert half[:10] == mixed[:10]


def test_a_choice_beyond_what_is_ready_takes_the_last() -> None:
    wild = order_under(ReplayScheduler(ChoiceTape([1_000_000] * 500)))
    assert sorted(wild) == sorted([*range(10)] * 5)


def test_priorities_run_one_task_to_its_end_before_the_next() -> None:
    order = order_under(make_scheduler("pct", random.Random(4), depth=1))
    runs = 1 + sum(one != two for one, two in pairwise(order))
    assert runs == 10, "without points of change nothing interrupts the first in rank"


def test_few_delays_change_little() -> None:
    calm = order_under(FifoScheduler())
    assert order_under(make_scheduler("delay-bounded", random.Random(4), depth=0)) == calm
    orders = [
        order_under(make_scheduler("delay-bounded", random.Random(seed), depth=4_000))
        for seed in range(3)
    ]
    assert any(order != calm for order in orders)


@pytest.mark.parametrize("name", SCHEDULER_NAMES)
def test_a_scheduler_keeps_no_task_that_is_gone(name: SchedulerName) -> None:
    gone: list[weakref.ref[asyncio.Task[None]]] = []

    async def work() -> None:
        await asyncio.sleep(0)

    async def main() -> None:
        tasks = [asyncio.create_task(work()) for _ in range(10)]
        gone.extend(weakref.ref(task) for task in tasks)
        await asyncio.wait(tasks)

    scheduler = make_scheduler(name, random.Random(1), depth=3)
    loop = SimulatedLoop(scheduler=scheduler)
    loop.run_until_complete(main())
    loop.abandon()
    gc.collect()
    assert [each() for each in gone] == [None] * 10
    assert make_scheduler(name, random.Random(1), depth=3) is not scheduler
