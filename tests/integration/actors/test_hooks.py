"""What classes may do when their actors enter and leave memory, and what a hook's bug does."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import ClassVar

import pytest

from kelpie import Actor, State, command, query
from kelpie.core import limits
from kelpie.core.errors import ActorFailedError
from tests.integration.actors.sample import Gate
from tests.integration.actors.simulated import World, simulate

pytestmark = pytest.mark.requirement("ACTOR-HOOKS")


class Sum(State):
    total: int = 0


class Hooked(Actor[Sum]):
    """Writes down when it comes and goes; fails where a test says so."""

    story: ClassVar[list[str]] = []
    failing: ClassVar[set[str]] = set()
    gates: ClassVar[list[Gate]] = []

    def on_activate(self) -> None:
        if "activate" in self.failing:
            raise ZeroDivisionError("a bug in on_activate")
        self.story.append(f"+{self.state.total}")
        self.began_with = self.state.total

    def on_deactivate(self) -> None:
        self.story.append(f"-{self.began_with}")
        self.began_with = -1
        if "deactivate" in self.failing:
            raise ZeroDivisionError("a bug in on_deactivate")

    @command
    def add(self, amount: int) -> int:
        self.state.total += amount
        return self.state.total

    @command
    def fail(self) -> None:
        raise ZeroDivisionError("a bug in fail")

    @command
    async def linger(self) -> int:
        try:
            await self.gates[0].pass_through()
        finally:
            self.story.append("handler ended")
        return self.began_with

    @query
    async def look(self) -> int:
        await self.gates[0].pass_through()
        return self.state.total

    @query
    def began(self) -> int:
        return self.began_with

    @command
    def leave(self) -> None:
        self.ctx.delete()


@pytest.fixture(autouse=True)
def fresh() -> None:
    Hooked.story.clear()
    Hooked.failing.clear()
    Hooked.gates.clear()


def test_each_activation_is_deactivated_once_for_whatever_reason_it_ends(tmp_path: Path) -> None:
    async def main() -> None:
        world, story = World(), Hooked.story
        async with world.opened(tmp_path, Hooked) as runtime:
            actor = runtime.ref(Hooked, "a")
            assert await actor.add(1) == 1
            assert await actor.began() == 0
            with pytest.raises(ActorFailedError, match="a bug in fail"):
                await actor.fail()
            assert await actor.began() == 1
            assert story == ["+0", "-0", "+1"]
            assert runtime.kill(actor)
            assert story.pop() == "-1"
            await actor.add(1)
            await actor.leave()
            assert story == ["+0", "-0", "+1", "+1", "-1"]
            assert await actor.add(5) == 5
        assert story[-2:] == ["+0", "-0"], "closing the runtime deactivates what is left"
        assert sorted(each[0] for each in story).count("+") == 4

    simulate(main)


def test_an_evicted_actor_is_deactivated_and_one_that_answers_is_not_evicted(
    tmp_path: Path,
) -> None:
    async def main() -> None:
        world, gate = World(), Gate()
        Hooked.gates.append(gate)
        budget = 4 * (limits.RESIDENT_RECORD_BYTES + 64)
        async with world.opened(tmp_path, Hooked, resident_bytes_max=budget) as runtime:
            await runtime.ref(Hooked, "asked").add(7)
            async with asyncio.TaskGroup() as group:
                answer = group.create_task(runtime.ref(Hooked, "asked").look())
                await gate.entered.wait()
                for number in range(20):
                    await runtime.ref(Hooked, f"a{number}").add(1)
                assert runtime.inspect(runtime.ref(Hooked, "asked")).phase == "ready"
                assert runtime.inspect(runtime.ref(Hooked, "a0")).phase == "absent"
                assert Hooked.story.count("-0") >= 10
                gate.opened.set()
            assert answer.result() == 7

    simulate(main)


def test_a_handler_ends_before_its_actor_is_deactivated(tmp_path: Path) -> None:
    async def main() -> None:
        world, gate = World(), Gate()
        Hooked.gates.append(gate)
        async with world.opened(tmp_path, Hooked) as runtime:
            actor = runtime.ref(Hooked, "a")
            call = asyncio.ensure_future(actor.linger())
            await gate.entered.wait()
            assert runtime.kill(actor)
            assert "-0" not in Hooked.story
            await asyncio.wait([call])
            assert Hooked.story == ["+0", "handler ended", "-0"]
            assert call.exception() is not None

    simulate(main)


@pytest.mark.requirement("ACTOR-LOAD-FAILURE")
def test_a_hook_that_fails_fails_the_call_and_resets_nothing(tmp_path: Path) -> None:
    async def main() -> None:
        world = World()
        async with world.opened(tmp_path, Hooked) as runtime:
            await runtime.ref(Hooked, "a").add(5)
        Hooked.failing.add("activate")
        async with world.opened(tmp_path, Hooked) as runtime:
            actor = runtime.ref(Hooked, "a")
            for _ in range(2):
                with pytest.raises(ActorFailedError, match="a bug in on_activate"):
                    await actor.add(1)
            assert runtime.engine.resident_count == 0
            Hooked.failing.clear()
            assert await actor.add(1) == 6
            Hooked.failing.add("deactivate")
            assert runtime.kill(actor)
            assert await actor.add(1) == 7, "the actor left all the same"
            assert world.events("turn.failed")[-1]["error"] == (
                "ZeroDivisionError('a bug in on_deactivate')"
            )

    simulate(main)
