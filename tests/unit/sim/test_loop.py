"""The loop: time that jumps, nodes that die alone, jobs at steps of their own."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from kelpie.sim.clock import MachineClock
from kelpie.sim.incarnation import Incarnation
from kelpie.sim.loop import (
    EscapedSimulationError,
    SimulatedCrash,
    SimulatedLoop,
    StalledSimulationError,
    observing,
)
from kelpie.sim.schedule import SCHEDULER_NAMES, SchedulerName, make_scheduler

SECOND = 1_000_000_000


def run(work: Callable[[SimulatedLoop], Awaitable[None]], scheduler: SchedulerName = "fifo") -> int:
    """Run ``work`` in a loop of its own and return the steps taken."""
    loop = SimulatedLoop(scheduler=make_scheduler(scheduler, random.Random(1)))

    async def main() -> None:
        await work(loop)

    try:
        loop.run_until_complete(main())
    finally:
        loop.abandon()
    return loop.steps


def node_of(loop: SimulatedLoop, name: str = "n1", *, rate_ppm: int = 0) -> Incarnation:
    return Incarnation(name, 1, MachineClock(lambda: loop.now_ns, rate_ppm=rate_ppm))


def test_time_jumps_to_the_next_timer_and_nothing_waits() -> None:
    async def work(loop: SimulatedLoop) -> None:
        await asyncio.sleep(86_400)
        assert loop.now_ns == 86_400 * SECOND
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(5):
                await asyncio.Event().wait()
        assert loop.time() == 86_405.0

    assert run(work) < 20


def test_timers_of_one_instant_ring_in_the_order_they_were_set() -> None:
    rung: list[int] = []

    async def work(loop: SimulatedLoop) -> None:
        for number in range(50):
            loop.call_later(1, rung.append, number)
        await asyncio.sleep(2)

    run(work)
    assert rung == list(range(50))


def test_cancelled_timers_do_not_hold_time_up_nor_pile_up() -> None:
    async def work(loop: SimulatedLoop) -> None:
        for _ in range(1_000):
            loop.call_later(1_000_000, print).cancel()
        assert len(loop._timers) < 300
        await asyncio.sleep(1)
        assert loop.now_ns == SECOND

    run(work)


@pytest.mark.parametrize("scheduler", SCHEDULER_NAMES)
def test_every_scheduler_runs_everything_and_repeats_itself(scheduler: SchedulerName) -> None:
    orders: list[list[int]] = []
    for _ in range(2):
        order: list[int] = []

        async def step(number: int, order: list[int] = order) -> None:
            for _ in range(3):
                await asyncio.sleep(0)
                order.append(number)

        async def work(loop: SimulatedLoop) -> None:
            await asyncio.gather(*(step(number) for number in range(8)))

        run(work, scheduler)
        orders.append(order)
    assert orders[0] == orders[1]
    assert sorted(orders[0]) == sorted([*range(8)] * 3)
    assert (orders[0] == [*range(8)] * 3) == (scheduler in {"fifo", "delay-bounded"})


def test_what_can_never_happen_is_an_error_not_a_wait() -> None:
    async def work(loop: SimulatedLoop) -> None:
        await asyncio.Event().wait()

    with pytest.raises(StalledSimulationError):
        run(work)


@pytest.mark.requirement("SIM-NODES")
def test_a_killed_node_runs_nothing_any_more_and_the_others_do_not_notice() -> None:
    ticks = {"n1": 0, "n2": 0}
    unwound: list[str] = []

    async def live(name: str) -> None:
        try:
            while True:
                await asyncio.sleep(1)
                ticks[name] += 1
        finally:
            unwound.append(name)
            asyncio.get_running_loop().call_soon(unwound.append, "after death")

    async def work(loop: SimulatedLoop) -> None:
        nodes = [node_of(loop, name) for name in ticks]
        tasks = [loop.create_task(live(node.name), context=node.context()) for node in nodes]
        await asyncio.sleep(10.5)
        loop.kill(nodes[0])
        assert unwound == ["n1"]
        await asyncio.sleep(10)
        assert ticks == {"n1": 10, "n2": 20}
        assert not tasks[0].done(), "nobody is told of a death"
        tasks[1].cancel()

    run(work)
    assert unwound[0] == "n1"
    assert unwound.count("after death") <= 1


@pytest.mark.requirement("SIM-NODES")
def test_the_dead_are_unwound_in_the_order_of_their_birth_whatever_they_await() -> None:
    unwound: list[int] = []

    async def stubborn(number: int) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(1)
            unwound.append(-1)

    async def wait_for_ever(number: int) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            unwound.append(number)

    async def live() -> None:
        async with asyncio.TaskGroup() as group:
            for number in range(5):
                group.create_task(stubborn(number) if number == 2 else wait_for_ever(number))

    async def work(loop: SimulatedLoop) -> None:
        node = node_of(loop)
        task = loop.create_task(live(), context=node.context())
        await asyncio.sleep(1)
        loop.kill(node)
        assert not task.done()
        assert unwound == [0, 1, 3, 4], "what awaits while it cleans up is cut there"

    run(work)


@pytest.mark.requirement("SIM-NODES")
def test_tasks_that_began_without_a_step_die_with_their_node() -> None:
    eagerly: dict[str, Any] = (
        {"eager_start": True} if hasattr(asyncio, "eager_task_factory") else {}
    )
    unwound: list[int] = []
    tasks: list[asyncio.Task[None]] = []

    async def wait_for_ever(number: int) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            unwound.append(number)

    async def live() -> None:
        loop = asyncio.get_running_loop()
        for number in range(3):
            name = f"eager-{number}"
            task = asyncio.Task(wait_for_ever(number), loop=loop, name=name, **eagerly)
            tasks.append(task)
        await asyncio.Event().wait()

    async def work(loop: SimulatedLoop) -> None:
        node = node_of(loop)
        task = loop.create_task(live(), context=node.context())
        await asyncio.sleep(1)
        loop.kill(node)
        assert not task.done()

    run(work)
    assert unwound == [0, 1, 2]


@pytest.mark.requirement("SIM-NODES")
def test_a_dead_node_is_not_told_what_it_waited_for() -> None:
    told: list[str] = []

    async def listen(news: asyncio.Future[str]) -> None:
        told.append(await news)

    async def work(loop: SimulatedLoop) -> None:
        node = node_of(loop)
        news: asyncio.Future[str] = loop.create_future()
        ours = loop.create_task(listen(news))
        theirs = loop.create_task(listen(news), context=node.context())
        await asyncio.sleep(1)
        loop.kill(node)
        news.set_result("news")
        await ours
        assert not theirs.done()

    run(work)
    assert told == ["news"]


@pytest.mark.requirement("SIM-NODES")
def test_a_paused_node_goes_on_where_it_was_and_its_clocks_have_gone_on() -> None:
    heard: list[tuple[float, float]] = []

    async def live() -> None:
        loop = asyncio.get_running_loop()
        for _ in range(3):
            before = loop.time()
            await asyncio.sleep(1)
            heard.append((before, loop.time()))

    async def work(loop: SimulatedLoop) -> None:
        node = node_of(loop)
        task = loop.create_task(live(), context=node.context())
        await asyncio.sleep(1.5)
        loop.pause(node)
        await asyncio.sleep(10)
        assert len(heard) == 1
        loop.resume(node)
        await task

    run(work)
    assert heard == [(0.0, 1.0), (1.0, 11.5), (11.5, 12.5)]


def test_a_node_lives_by_its_own_clock_whatever_its_rate() -> None:
    shown: list[float] = []

    async def live() -> None:
        await asyncio.sleep(10)
        shown.append(asyncio.get_running_loop().time())

    async def work(loop: SimulatedLoop) -> None:
        fast = node_of(loop, "fast", rate_ppm=100_000)
        slow = node_of(loop, "slow", rate_ppm=-100_000)
        for node in (slow, fast):
            await asyncio.gather(loop.create_task(live(), context=node.context()))
            shown.append(round(loop.now_ns / SECOND, 3))

    run(work)
    assert shown == [10.0, 11.111, pytest.approx(22.222, abs=0.01), 20.202]


def test_a_clock_that_jumps_ahead_rings_what_it_jumped_over() -> None:
    async def work(loop: SimulatedLoop) -> None:
        node = node_of(loop)
        task = loop.create_task(asyncio.sleep(60), context=node.context())
        await asyncio.sleep(1)
        node.clock.jump_forward(50 * SECOND)
        loop.retime(node)
        await task
        assert loop.now_ns == 10 * SECOND

    run(work)


def test_jobs_run_at_a_later_step_and_those_of_one_executor_in_order() -> None:
    done: list[int] = []

    async def work(loop: SimulatedLoop) -> None:
        executor = ThreadPoolExecutor(max_workers=1)
        jobs = [loop.run_in_executor(executor, done.append, number) for number in range(20)]
        assert not done, "not at the call"
        await asyncio.gather(*jobs)
        executor.shutdown()
        with pytest.raises(ZeroDivisionError):
            await loop.run_in_executor(None, lambda: 1 // 0)

    for scheduler in SCHEDULER_NAMES:
        done.clear()
        run(work, scheduler)
        assert done == list(range(20))


def test_a_job_takes_the_time_that_the_world_gives_it() -> None:
    async def work(loop: SimulatedLoop) -> None:
        loop.job_delay_ns = lambda: SECOND
        assert await asyncio.to_thread(lambda: 7) == 7
        assert loop.now_ns == SECOND

    run(work)


def test_an_observer_sees_an_outcome_before_anybody_acts_on_it() -> None:
    seen: list[str] = []

    async def work(loop: SimulatedLoop) -> None:
        future: asyncio.Future[int] = loop.create_future()
        future.add_done_callback(lambda _: seen.append("actor"))
        future.add_done_callback(lambda _: seen.append("observer"), context=observing())
        future.set_result(1)
        assert seen == ["observer"]
        await asyncio.sleep(0)

    run(work)
    assert seen == ["observer", "actor"]


def test_an_alarm_rings_right_before_its_step() -> None:
    rung: list[int] = []

    async def work(loop: SimulatedLoop) -> None:
        for step in (9, 5, 7):
            loop.at_step(loop.steps + step, lambda: rung.append(loop.steps))
        start = loop.steps
        for _ in range(20):
            await asyncio.sleep(0)
        assert rung == [start + 4, start + 6, start + 8]

    run(work)


def test_a_crash_inside_a_callback_ends_that_callback_alone() -> None:
    strays: list[object] = []

    def die() -> None:
        raise SimulatedCrash

    async def work(loop: SimulatedLoop) -> None:
        loop.set_exception_handler(lambda _, context: strays.append(context["exception"]))
        loop.call_soon(die)
        await asyncio.sleep(1)

    run(work)
    assert [type(error) for error in strays] == [SimulatedCrash]


@pytest.mark.requirement("SIM-SEALED")
@pytest.mark.parametrize("name", ["add_reader", "create_server", "getaddrinfo", "subprocess_exec"])
def test_what_needs_a_real_world_is_an_error(name: str) -> None:
    async def work(loop: SimulatedLoop) -> None:
        with pytest.raises(EscapedSimulationError):
            getattr(loop, name)()

    assert run(work) > 0


def test_tasks_are_named_and_ordered_by_their_number() -> None:
    async def work(loop: SimulatedLoop) -> None:
        tasks = [loop.create_task(asyncio.sleep(0)) for _ in range(20)]
        assert [task.get_name() for task in tasks] == [f"task-{n}" for n in range(2, 22)]
        backwards = list(reversed(tasks))
        assert list(set(tasks)) == list(set(backwards)), "a set is read in one order"
        await asyncio.gather(*tasks)

    run(work)


def test_an_abandoned_loop_unwinds_everything_and_closes() -> None:
    unwound: list[int] = []

    async def wait_for_ever(number: int) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            unwound.append(number)

    async def main() -> None:
        async with asyncio.TaskGroup() as group:
            for number in range(3):
                group.create_task(wait_for_ever(number))

    loop = SimulatedLoop()
    with pytest.raises(StalledSimulationError):
        loop.run_until_complete(main())
    loop.abandon()
    assert unwound == [0, 1, 2]
    assert loop.is_closed()
