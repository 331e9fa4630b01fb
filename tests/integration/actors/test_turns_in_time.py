"""Turns in virtual time: cancelled at every await, given up on, repeated under a key."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path
from typing import ClassVar

import pytest

from kelpie import Actor, Runtime, State, command, query, ref
from kelpie.core.errors import KeyReusedError, OverloadedError, VersionConflictError
from kelpie.core.limits import IDEMPOTENCY_TTL_MS
from kelpie.ports.faults import faults_from
from kelpie.sim.loop import SimulatedLoop
from kelpie.sim.schedule import RandomScheduler
from tests.integration.actors.simulated import World, simulate
from tests.integration.failing import Failing


class Sum(State):
    total: int = 0


class Slow(Actor[Sum]):
    """Works for a while, step by step; asks others to."""

    steps: ClassVar[list[str]] = []

    @command
    async def work(self, amount: int) -> int:
        self.steps.append(f"{self.ctx.key} begins")
        for _ in range(5):
            await asyncio.sleep(0.01)
            self.state.total += amount
        self.steps.append(f"{self.ctx.key} ends")
        return self.state.total

    @command
    async def delegate(self, other: str) -> int:
        done = await ref(Slow, other).work(1)
        self.state.total += 100
        await asyncio.sleep(0.01)
        return done

    @command
    async def try_for(self, other: str, seconds: float) -> str:
        try:
            async with asyncio.timeout(seconds):
                await ref(Slow, other).work(1)
        except TimeoutError:
            self.state.total += 1
            return "gave up"
        self.state.total += 100
        return "got it"

    @command
    def add(self, amount: int) -> int:
        self.state.total += amount
        return self.state.total

    @query
    def total(self) -> int:
        return self.state.total


@pytest.fixture(autouse=True)
def fresh() -> None:
    Slow.steps.clear()


async def totals(runtime: Runtime, *keys: str) -> list[int]:
    return [await runtime.ref(Slow, key).total() for key in keys]


async def cancel_at(runtime: Runtime, wakes: int, rounds: int) -> bool:
    """Cancel a caller some rounds of the loop after a wake-up; had its call ended before?

    The handlers below the call wake every 10 ms, so this reaches every await on the way.
    """
    keys = (f"a{wakes}-{rounds}", f"b{wakes}-{rounds}")
    call = asyncio.ensure_future(runtime.ref(Slow, keys[0]).delegate(keys[1]))
    if wakes:
        await asyncio.sleep(wakes * 0.01)
    for _ in range(rounds):
        await asyncio.sleep(0)
    has_ended = call.done()
    call.cancel()
    await asyncio.wait([call])
    await asyncio.sleep(1)
    has_begun = f"{keys[1]} begins" in Slow.steps
    assert await totals(runtime, *keys) == ([100, 5] if has_begun else [0, 0]), keys
    assert has_begun or wakes == 0, "a call that was made begins"
    return has_ended


@pytest.mark.requirement("ACTOR-CANCELLATION")
@pytest.mark.parametrize("seed", range(4))
def test_a_caller_cancelled_at_every_await_of_its_call_tears_no_turn(
    tmp_path: Path, seed: int
) -> None:
    async def main() -> list[bool]:
        async with World().opened(tmp_path, Slow) as runtime:
            return [
                await cancel_at(runtime, wakes, rounds)
                for wakes in range(8)
                for rounds in range(12)
            ]

    # Seed 0 runs callbacks as asyncio does, the others in a drawn order.
    scheduler = RandomScheduler(random.Random(seed)) if seed else None
    loop = SimulatedLoop(scheduler=scheduler)
    ended = simulate(main, loop=loop)
    assert not any(ended[:48])
    assert ended[-1], "the last one comes too late"


async def add_until_kept(runtime: Runtime, amount: int) -> None:
    """Add, and add again when the addition was refused: nothing of a refused turn is kept."""
    while True:
        try:
            await runtime.ref(Slow, "a").add(amount)
        except (OverloadedError, VersionConflictError):
            await asyncio.sleep(0)
        else:
            return


@pytest.mark.requirement("ACTOR-ROLLBACK")
@pytest.mark.parametrize("seed", range(24))
def test_no_refused_turn_is_built_upon_while_an_earlier_commit_is_on_its_way(
    tmp_path: Path, seed: int
) -> None:
    async def main() -> int:
        async with World().opened(tmp_path, Slow) as runtime:
            await runtime.ref(Slow, "a").add(1)
            with faults_from(Failing("resource.commit_queue_full", after=1)):
                amounts = [2**power for power in range(1, 10)]
                async with asyncio.TaskGroup() as callers:
                    for amount in amounts:
                        callers.create_task(add_until_kept(runtime, amount))
            return await runtime.ref(Slow, "a").total()

    assert simulate(main, loop=SimulatedLoop(scheduler=RandomScheduler(random.Random(seed)))) == (
        2**10 - 1
    )


@pytest.mark.requirement("ACTOR-CANCELLATION")
def test_a_handler_that_gives_up_on_a_call_tears_neither_turn(tmp_path: Path) -> None:
    async def main() -> list[str]:
        said: list[str] = []
        async with World().opened(tmp_path, Slow) as runtime:
            for number in range(40):
                asking, asked = f"a{number}", f"b{number}"
                said.append(await runtime.ref(Slow, asking).try_for(asked, number * 0.002))
                await asyncio.sleep(1)
                mine, theirs = await totals(runtime, asking, asked)
                assert mine == (1 if said[-1] == "gave up" else 100)
                begun = f"{asked} begins" in Slow.steps
                assert theirs == (5 if begun else 0), "a turn that began goes to its end"
                assert begun == (f"{asked} ends" in Slow.steps)
        return said

    said = simulate(main)
    assert {"gave up", "got it"} == set(said)


@pytest.mark.requirement("ACTOR-IDEMPOTENCY")
def test_a_repeat_joins_the_turn_in_progress_and_another_request_is_refused(
    tmp_path: Path,
) -> None:
    async def main() -> None:
        async with World().opened(tmp_path, Slow) as runtime:
            once = runtime.ref(Slow, "a", idempotency_key="k")
            first = asyncio.ensure_future(once.work(1))
            await asyncio.sleep(0.02)
            second = asyncio.ensure_future(once.work(1))
            await asyncio.sleep(0.001)
            with pytest.raises(KeyReusedError):
                await once.work(2)
            assert not second.done()
            first.cancel()
            assert await second == 5, "the first caller went away, its turn did not"
            assert Slow.steps == ["a begins", "a ends"]
            assert await once.work(1) == 5
            with pytest.raises(KeyReusedError):
                await once.work(2)

    simulate(main)


@pytest.mark.requirement("ACTOR-IDEMPOTENCY")
def test_a_key_counts_for_its_documented_time_and_not_longer(tmp_path: Path) -> None:
    async def main() -> None:
        world = World()
        async with world.opened(tmp_path, Slow) as runtime:
            once = runtime.ref(Slow, "a", idempotency_key="k")
            assert await once.add(1) == 1
            world.clock.skew_ms = IDEMPOTENCY_TTL_MS - 60_000
            assert await once.add(1) == 1
        async with world.opened(tmp_path, Slow) as runtime:
            once = runtime.ref(Slow, "a", idempotency_key="k")
            with pytest.raises(KeyReusedError):
                await once.add(2)
            world.clock.skew_ms = IDEMPOTENCY_TTL_MS + 60_000
            assert await once.add(2) == 3, "its time is over: the key is as good as new"
            assert await once.add(2) == 3

    simulate(main)
    page = Path("docs/reference/actors-api.md").read_text(encoding="utf-8")
    assert "for a day" in page, "the time is documented"
    assert IDEMPOTENCY_TTL_MS == 24 * 3_600_000


@pytest.mark.requirement("ACTOR-IDEMPOTENCY")
def test_each_tenant_has_its_own_keys_and_its_own_actors(tmp_path: Path) -> None:
    async def main() -> None:
        world = World()
        for tenant, amount in (("acme", 1), ("globex", 2)):
            async with world.opened(tmp_path, Slow, tenant=tenant) as runtime:
                once = runtime.ref(Slow, "a", idempotency_key="k")
                assert await once.add(amount) == amount
                assert await once.add(amount) == amount

    simulate(main)
