"""Waits that end in time, with one timer for each length."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest

from kelpie.actors.deadlines import LANES_KEPT_MAX, Deadlines
from kelpie.core.errors import DeadlineError
from kelpie.core.ids import TENANT_DEFAULT, ActorId
from kelpie.sim.loop import SimulatedLoop

ACTOR = ActorId(TENANT_DEFAULT, "counter", "a")


def simulate(work: Coroutine[Any, Any, None]) -> None:
    with asyncio.Runner(loop_factory=SimulatedLoop) as runner:
        runner.run(work)


def test_each_wait_of_one_length_ends_when_its_own_time_is_up() -> None:
    async def work() -> None:
        loop = asyncio.get_running_loop()
        deadlines = Deadlines()
        ended: list[float] = []

        async def wait(after_s: float) -> None:
            await asyncio.sleep(after_s)
            with pytest.raises(DeadlineError, match=r"counter/a did not answer within 1,000 ms"):
                await deadlines.wait(loop.create_future(), ACTOR, 1_000)
            ended.append(loop.time())

        await asyncio.gather(*(wait(after_s) for after_s in (0.0, 0.25, 0.75)))
        assert ended == pytest.approx([1.0, 1.25, 1.75])

    simulate(work())


def test_an_answered_wait_does_not_end_those_behind_it() -> None:
    async def work() -> None:
        loop = asyncio.get_running_loop()
        deadlines = Deadlines()
        first: asyncio.Future[str] = loop.create_future()
        second: asyncio.Future[str] = loop.create_future()
        loop.call_later(0.5, first.set_result, "first")
        loop.call_later(1.2, second.set_result, "second")

        async def begin_later() -> str:
            await asyncio.sleep(0.4)
            answer: str = await deadlines.wait(second, ACTOR, 1_000)
            return answer

        answers = await asyncio.gather(deadlines.wait(first, ACTOR, 1_000), begin_later())
        assert list(answers) == ["first", "second"]

    simulate(work())


def test_waits_of_many_lengths_end_shortest_first() -> None:
    async def work() -> None:
        loop = asyncio.get_running_loop()
        deadlines = Deadlines()
        lengths = [100 * (LANES_KEPT_MAX + 4 - step) for step in range(LANES_KEPT_MAX + 4)]
        ended: list[int] = []

        async def wait(timeout_ms: int) -> None:
            with pytest.raises(DeadlineError):
                await deadlines.wait(loop.create_future(), ACTOR, timeout_ms)
            ended.append(timeout_ms)

        await asyncio.gather(*map(wait, lengths))
        assert ended == sorted(lengths)

    simulate(work())


def test_whoever_is_cancelled_leaves_the_others_waiting() -> None:
    async def work() -> None:
        loop = asyncio.get_running_loop()
        deadlines = Deadlines()
        kept: asyncio.Future[int] = loop.create_future()
        async with asyncio.TaskGroup() as group:
            left = group.create_task(deadlines.wait(loop.create_future(), ACTOR, 1_000))
            stays = group.create_task(deadlines.wait(kept, ACTOR, 1_000))
            await asyncio.sleep(0.1)
            left.cancel()
            loop.call_later(0.5, kept.set_result, 7)
        assert left.cancelled()
        assert stays.result() == 7

    simulate(work())


def test_a_timer_that_comes_a_float_too_early_ends_its_wait_all_the_same() -> None:
    early_ns = 972_222_125
    ends = early_ns / 1e9 + 30.0
    assert round(ends * 1e9) / 1e9 < ends, "the clock's float is a little below the deadline's"
    loop = SimulatedLoop(start_ns=early_ns)

    async def wait() -> None:
        with pytest.raises(DeadlineError):
            await Deadlines().wait(loop.create_future(), ACTOR, 30_000)

    loop.run_until_complete(wait())
    assert loop.now_ns - early_ns == 30_000_000_000
    loop.abandon()
