"""Durable timers in virtual time: order, poison, clocks that jump, and more of them than memory."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import ClassVar

import msgspec
import pytest

from kelpie import Actor, Runtime, State, command, query, reminder
from kelpie.actors.reminders import LANE_ROWS_MAX, LANES_MAX
from kelpie.core import limits
from kelpie.core.errors import NotFoundError
from tests.integration.actors.plain import Plain
from tests.integration.actors.simulated import World, simulate

HOUR_MS = 3_600_000


class Heard(State):
    names: list[str] = msgspec.field(default_factory=list[str])


class Diary(Actor[Heard]):
    """Hears its reminders, but for those that a test broke."""

    broken: ClassVar[set[str]] = set()
    rings: ClassVar[list[str]] = []

    @command
    def plan(self, names: list[str], at_ms: int) -> None:
        for number, name in enumerate(names):
            self.ctx.remind(name, at_ms + number, self.ring, name)

    @reminder
    def ring(self, name: str) -> None:
        self.rings.append(f"{self.ctx.key}/{name}")
        if name in self.broken:
            raise ZeroDivisionError(f"{name} is broken")
        self.state.names.append(name)

    @query
    def heard(self) -> list[str]:
        return self.state.names


@pytest.fixture(autouse=True)
def whole() -> None:
    Diary.broken.clear()
    Diary.rings.clear()


async def heard(runtime: Runtime, key: str = "a") -> list[str]:
    return await runtime.ref(Diary, key).heard()


@pytest.mark.requirement("ACTOR-REMINDERS-CLOCK")
def test_reminders_fire_within_seconds_of_a_clock_that_jumps_forward(tmp_path: Path) -> None:
    async def main() -> None:
        world = World()
        async with world.opened(tmp_path, Diary) as runtime:
            now_ms = world.clock.now_ms()
            await runtime.ref(Diary, "a").plan(["late"], now_ms + 2 * HOUR_MS)
            await runtime.ref(Diary, "a").plan(["soon"], now_ms + HOUR_MS)
            await world.clock.sleep(10)
            assert await heard(runtime) == []
            world.clock.skew_ms = 3 * HOUR_MS
            await world.clock.sleep(2)
            assert await heard(runtime) == ["soon", "late"]

    simulate(main)


@pytest.mark.requirement("ACTOR-REMINDERS-CLOCK")
def test_a_clock_that_jumps_back_makes_reminders_wait_and_loses_none(tmp_path: Path) -> None:
    async def main() -> None:
        world = World()
        async with world.opened(tmp_path, Diary) as runtime:
            now_ms = world.clock.now_ms()
            await runtime.ref(Diary, "a").plan(["first"], now_ms + 5_000)
            await runtime.ref(Diary, "a").plan(["second"], now_ms + 30_000)
            await world.clock.sleep(10)
            assert await heard(runtime) == ["first"]
            world.clock.skew_ms = -HOUR_MS
            await world.clock.sleep(600)
            assert await heard(runtime) == ["first"], "what fired does not fire again"
        async with world.opened(tmp_path, Diary) as runtime:
            await world.clock.sleep(HOUR_MS / 1000)
            assert await heard(runtime) == ["first", "second"]

    simulate(main)


@pytest.mark.requirement("ACTOR-REMINDERS")
def test_reminders_of_one_actor_keep_their_order_while_the_first_one_fails(tmp_path: Path) -> None:
    async def main() -> None:
        world = World()
        async with world.opened(tmp_path, Diary) as runtime:
            Diary.broken.add("1")
            for key in "ab":
                names = ["1", "2", "3"] if key == "a" else ["2", "3"]
                await runtime.ref(Diary, key).plan(names, world.clock.now_ms())
            await world.clock.sleep(0.4)
            assert await heard(runtime, "a") == []
            assert await heard(runtime, "b") == ["2", "3"], "other actors go on"
            Diary.broken.clear()
            await world.clock.sleep(5)
            assert await heard(runtime, "a") == ["1", "2", "3"]
            assert len(world.events("reminder.failed")) >= 1
            assert await runtime.dead_letters() == []

    simulate(main)


@pytest.mark.requirement("ACTOR-REMINDERS-DEAD-LETTER")
def test_a_poisoned_reminder_is_a_dead_letter_and_fires_once_when_replayed(tmp_path: Path) -> None:
    async def main() -> None:
        world = World()
        async with world.opened(tmp_path, Diary) as runtime:
            Diary.broken.add("1")
            await runtime.ref(Diary, "a").plan(["1", "2"], world.clock.now_ms())
            await world.clock.sleep(60)
            assert await heard(runtime) == ["2"], "those behind it go on"
            assert Diary.rings.count("a/1") == limits.MESSAGE_ATTEMPTS_MAX
            (letter,) = await runtime.dead_letters()
            assert (letter.sender, letter.receiver) == (letter.receiver, letter.receiver)
            assert letter.attempts == limits.MESSAGE_ATTEMPTS_MAX
            assert letter.error.startswith("reminder '1':")
            assert "in ring" in letter.error
        async with world.opened(tmp_path, Diary) as runtime:
            await world.clock.sleep(60)
            assert len(Diary.rings) == limits.MESSAGE_ATTEMPTS_MAX + 1, "a dead one rests"
            Diary.broken.clear()
            await runtime.replay(letter.message_id)
            await world.clock.sleep(5)
            assert await heard(runtime) == ["2", "1"]
            with pytest.raises(NotFoundError):
                await runtime.replay(letter.message_id)
        async with world.opened(tmp_path, Diary) as runtime:
            await world.clock.sleep(60)
            assert await heard(runtime) == ["2", "1"]
            assert await runtime.dead_letters() == []

    simulate(main)


@pytest.mark.requirement("ACTOR-REMINDERS-MANY")
def test_more_reminders_than_memory_holds_fire_once_each_and_in_order(tmp_path: Path) -> None:
    async def main() -> None:
        world = World()
        names = [f"{number:04}" for number in range(5 * LANE_ROWS_MAX)]
        crowd = [f"c{number}" for number in range(LANES_MAX + 100)]
        due_ms = world.clock.now_ms() + 60_000
        async with world.opened(tmp_path, Diary) as runtime:
            for first in range(0, len(crowd), 512):
                calls = [
                    runtime.ref(Diary, key).plan(["one"], due_ms)
                    for key in crowd[first : first + 512]
                ]
                await asyncio.gather(*calls)
            await runtime.ref(Diary, "hot").plan(names, due_ms)
            assert Diary.rings == []
            await world.clock.sleep(120)
            assert await heard(runtime, "hot") == names
            assert sorted(set(Diary.rings)) == sorted(
                [f"{key}/one" for key in crowd] + [f"hot/{name}" for name in names]
            )
            assert len(Diary.rings) == len(crowd) + len(names)
            assert world.events("task.failed") == []

    simulate(main)


@pytest.mark.requirement("ACTOR-PAUSE", "ACTOR-REMINDERS")
def test_a_paused_actors_reminders_wait_and_hold_up_nobody_else(tmp_path: Path) -> None:
    async def main() -> None:
        world = World()
        async with world.opened(tmp_path, Diary) as runtime:
            for key in "ab":
                await runtime.ref(Diary, key).plan(["1", "2"], world.clock.now_ms() + 1_000)
            await runtime.pause(runtime.ref(Diary, "a"))
            await world.clock.sleep(5)
            assert (await heard(runtime, "a"), await heard(runtime, "b")) == ([], ["1", "2"])
            await runtime.resume(runtime.ref(Diary, "a"))
            await world.clock.sleep(5)
            assert await heard(runtime, "a") == ["1", "2"]

    simulate(main)


@pytest.mark.requirement("ACTOR-REMINDERS")
def test_reminders_of_a_type_that_is_not_hosted_wait_for_a_program_that_hosts_it(
    tmp_path: Path,
) -> None:
    async def main() -> None:
        world = World()
        async with world.opened(tmp_path, Diary) as runtime:
            await runtime.ref(Diary, "a").plan(["1"], world.clock.now_ms() + 5_000)
        async with world.opened(tmp_path, Plain) as runtime:
            await world.clock.sleep(60)
            assert len(world.events("reminder.unhosted")) == 1
            assert await runtime.dead_letters() == []
        async with world.opened(tmp_path, Diary) as runtime:
            await world.clock.sleep(5)
            assert await heard(runtime) == ["1"]

    simulate(main)
