"""Messages in virtual time: whose receivers are paused, and more of them than memory holds."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import pytest

from kelpie import Actor, Runtime, State, command, query, ref
from kelpie.actors.outbox import BACKLOG_ROWS_MAX
from tests.integration.actors.plain import Plain
from tests.integration.actors.sample import Gate
from tests.integration.actors.simulated import World, simulate

MANY = BACKLOG_ROWS_MAX + 500

pytestmark = pytest.mark.requirement("ACTOR-EXACTLY-ONCE")


class Order(State):
    """Which number comes next, if none is lost, repeated or early."""

    next: int = 0
    sent: int = 0


class Box(Actor[Order]):
    """Sends numbers to other boxes and refuses any that is out of order."""

    gate: ClassVar[Gate]

    @command
    def send(self, other: str, count: int) -> None:
        for number in range(self.state.sent, self.state.sent + count):
            self.ctx.send(ref(Box, other).take, number)
        self.state.sent += count

    @command
    def hold(self, other: str) -> None:
        self.ctx.send(ref(Box, other).stand_still)

    @command
    def take(self, number: int) -> None:
        assert number == self.state.next, f"{number} came instead of {self.state.next}"
        self.state.next += 1

    @command
    async def stand_still(self) -> None:
        await self.gate.pass_through()

    @query
    def taken(self) -> int:
        return self.state.next


@pytest.fixture(autouse=True)
def gate() -> Gate:
    Box.gate = Gate()
    return Box.gate


async def taken(runtime: Runtime, key: str) -> int:
    return await runtime.ref(Box, key).taken()


async def waiting(runtime: Runtime) -> int:
    return (await runtime._store.stats()).outbox


@pytest.mark.requirement("ACTOR-PAUSE")
def test_messages_for_a_paused_actor_wait_on_disk_and_hold_up_nobody_else(tmp_path: Path) -> None:
    async def main() -> None:
        world = World()
        async with world.opened(tmp_path, Box) as runtime:
            await runtime.pause(runtime.ref(Box, "paused"))
            await runtime.ref(Box, "a").send("paused", MANY)
            await runtime.ref(Box, "b").send("other", 2)
            await world.clock.sleep(5)
            assert (await taken(runtime, "other"), await taken(runtime, "paused")) == (2, 0)
            await runtime.resume(runtime.ref(Box, "paused"))
            await runtime.ref(Box, "a").send("paused", 1)
            await world.clock.sleep(60)
            assert await taken(runtime, "paused") == MANY + 1
            assert await waiting(runtime) == 0
            assert await runtime.dead_letters() == []

    simulate(main)


@pytest.mark.requirement("ACTOR-PAUSE")
def test_messages_that_were_read_before_a_pause_make_room_for_others(
    tmp_path: Path, gate: Gate
) -> None:
    async def main() -> None:
        world = World()
        async with world.opened(tmp_path, Box) as runtime:
            await runtime.ref(Box, "c").hold("busy")
            await gate.entered.wait()
            await runtime.ref(Box, "a").send("busy", MANY)
            await world.clock.sleep(1)
            await runtime.pause(runtime.ref(Box, "busy"))
            await runtime.ref(Box, "b").send("other", 2)
            await world.clock.sleep(1)
            assert await taken(runtime, "other") == 2
            gate.opened.set()
            await world.clock.sleep(1)
            assert await taken(runtime, "busy") == 0
            await runtime.resume(runtime.ref(Box, "busy"))
            await world.clock.sleep(60)
            assert await taken(runtime, "busy") == MANY
            assert await waiting(runtime) == 0

    simulate(main)


def test_messages_of_a_type_that_is_not_hosted_wait_and_hold_up_nobody_else(
    tmp_path: Path,
) -> None:
    async def main() -> None:
        world = World()
        async with world.opened(tmp_path, Box) as runtime:
            await runtime.pause(runtime.ref(Box, "b"))
            await runtime.ref(Box, "a").send("b", MANY)
        async with world.opened(tmp_path, Plain) as runtime:
            await world.clock.sleep(60)
            assert len(world.events("message.unhosted")) == 1
            assert await waiting(runtime) == MANY
            assert await runtime.dead_letters() == []
        async with world.opened(tmp_path, Box) as runtime:
            await runtime.resume(runtime.ref(Box, "b"))
            await world.clock.sleep(60)
            assert await taken(runtime, "b") == MANY

    simulate(main)
