"""Who gets a turn when many want one: budgets of the loop, bounds of a type, in virtual time."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any, ClassVar

import pytest

from kelpie import Actor, Runtime, State, command, query, ref
from kelpie.core.limits import TURNS_MS_PER_TICK_MAX, TURNS_PER_TICK_MAX
from kelpie.sim.clock import SimulatedClock
from tests.integration.actors.simulated import World, simulate


class Nothing(State):
    turns: int = 0


class BusyClock(SimulatedClock):
    """A clock that handlers move: they compute, and nobody else runs meanwhile."""

    computed_ns = 0

    def boot_ns(self) -> int:
        return super().boot_ns() + BusyClock.computed_ns


class Worker(Actor[Nothing]):
    """Writes down its turns; ``wait`` runs in a task, at most two of them at once."""

    concurrency_max = 2
    log: ClassVar[list[str]] = []
    running: ClassVar[int] = 0
    most: ClassVar[int] = 0

    @command
    def work(self, compute_ms: int = 0) -> None:
        BusyClock.computed_ns += compute_ms * 1_000_000
        self.log.append(self.ctx.key)

    @query
    def peek(self) -> None:
        self.log.append(self.ctx.key)

    @command
    async def wait(self, seconds: float) -> None:
        Worker.running += 1
        Worker.most = max(Worker.most, Worker.running)
        self.log.append(self.ctx.key)
        try:
            async with asyncio.timeout(seconds):
                await asyncio.Event().wait()
        except TimeoutError:
            Worker.running -= 1

    @command
    async def descend(self, depth: int) -> int:
        self.log.append(self.ctx.key)
        if depth == 0:
            return 0
        return 1 + await ref(Worker, f"{self.ctx.key}.{depth}").descend(depth - 1)

    @query
    async def ask_waiting(self, other: str) -> int:
        return await ref(Worker, other).turns()

    @query
    def turns(self) -> int:
        return self.state.turns


@pytest.fixture(autouse=True)
def fresh() -> None:
    Worker.log.clear()
    Worker.running = Worker.most = 0
    BusyClock.computed_ns = 0


async def queue_up(runtime: Runtime, calls: list[Any]) -> list[asyncio.Task[Any]]:
    """Begin every call; those of a paused actor wait in its mailbox."""
    tasks = [asyncio.ensure_future(call) for call in calls]
    await asyncio.sleep(0)
    assert not any(task.done() for task in tasks)
    return tasks


@pytest.mark.requirement("ACTOR-FAIRNESS")
def test_a_hot_actors_mailbox_lets_others_in_after_a_bounded_number_of_turns(
    tmp_path: Path,
) -> None:
    async def main() -> None:
        async with World().opened(tmp_path, Worker) as runtime:
            hot, cold = runtime.ref(Worker, "hot"), runtime.ref(Worker, "cold")
            await cold.work()
            await runtime.pause(hot)
            calls = await queue_up(runtime, [hot.work() for _ in range(4 * TURNS_PER_TICK_MAX)])
            runtime.engine.resume(runtime.actor_of(hot))
            await cold.work()
            await asyncio.gather(*calls)
            before = Worker.log.index("cold", 1)
            assert 0 < before <= 2 * TURNS_PER_TICK_MAX
            assert Worker.log.count("hot") == 4 * TURNS_PER_TICK_MAX

    simulate(main)


@pytest.mark.requirement("ACTOR-FAIRNESS")
def test_long_turns_of_a_hot_actor_let_others_in_after_a_bounded_time(tmp_path: Path) -> None:
    async def main() -> None:
        world = World()
        world.clock = BusyClock()
        async with world.opened(tmp_path, Worker) as runtime:
            hot, cold = runtime.ref(Worker, "hot"), runtime.ref(Worker, "cold")
            await cold.work()
            await runtime.pause(hot)
            each_ms = TURNS_MS_PER_TICK_MAX // 2
            calls = await queue_up(runtime, [hot.work(each_ms) for _ in range(200)])
            await runtime.resume(hot)
            await cold.work()
            await asyncio.gather(*calls)
            assert 0 < Worker.log.index("cold", 1) <= 10

    simulate(main)


@pytest.mark.requirement("ACTOR-FAIRNESS")
def test_callers_whose_answers_are_there_at_once_let_others_in(tmp_path: Path) -> None:
    async def main() -> None:
        async with World().opened(tmp_path, Worker) as runtime:
            hot, cold = runtime.ref(Worker, "hot"), runtime.ref(Worker, "cold")

            async def ask(count: int) -> None:
                for _ in range(count):
                    await hot.peek()

            async with asyncio.TaskGroup() as group:
                for _ in range(16):
                    group.create_task(ask(4 * TURNS_PER_TICK_MAX))
                group.create_task(cold.work())
            assert Worker.log.index("cold") <= 2 * TURNS_PER_TICK_MAX

    simulate(main)


@pytest.mark.requirement("ACTOR-CONCURRENCY")
def test_a_type_has_at_most_its_bound_of_handlers_and_each_actor_its_turn(tmp_path: Path) -> None:
    async def main() -> None:
        world = World()
        async with world.opened(tmp_path, Worker) as runtime:
            keys = [f"a{number}" for number in range(7)]
            greedy = [runtime.ref(Worker, "greedy").wait(1) for _ in range(5)]
            fair = [runtime.ref(Worker, key).wait(1) for key in keys]
            began_ns = world.clock.boot_ns()
            await asyncio.gather(*greedy, *fair)
            assert Worker.most == 2
            assert world.clock.boot_ns() - began_ns < 8_500_000_000, "the greedy one ends alone"
            # The greedy actor's later calls wait behind those who came before them.
            assert Worker.log[0] == "greedy"
            assert [key for key in Worker.log if key != "greedy"] == keys
            assert Worker.log.index("greedy", 1) >= len(keys)
            assert Worker.log.count("greedy") == 5

    simulate(main)


@pytest.mark.requirement("ACTOR-CONCURRENCY")
def test_a_chain_within_a_bounded_type_holds_one_slot_and_queries_need_none(
    tmp_path: Path,
) -> None:
    async def main() -> None:
        async with World().opened(tmp_path, Worker) as runtime:
            async with asyncio.TaskGroup() as group:
                chains = [
                    group.create_task(runtime.ref(Worker, key, timeout_s=5).descend(4))
                    for key in "abcdef"
                ]
            assert [chain.result() for chain in chains] == [4] * 6
            async with asyncio.TaskGroup() as group:
                for key in "xy":
                    group.create_task(runtime.ref(Worker, key).wait(10))
                await asyncio.sleep(0)
                assert await runtime.ref(Worker, "z", timeout_s=5).ask_waiting("x") == 0

    simulate(main)
