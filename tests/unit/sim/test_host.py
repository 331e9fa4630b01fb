"""Simulated machines: programs start, die, stop and go on; files and clocks outlive them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from kelpie.core.errors import StoreError
from kelpie.core.ids import TENANT_DEFAULT, ActorId
from kelpie.ports.network import NetworkError
from kelpie.sim.client import insist
from kelpie.sim.host import ProgramDiedError, SimulatedHost
from kelpie.sim.run import RunReport, run
from kelpie.sim.scenarios.counters import SimCounter
from kelpie.sim.swarm import RunConfig
from kelpie.sim.view import View
from kelpie.sim.world import SimulatedWorld

ADD = "/v1/actors/sim-counter/c/add"


Work = Callable[[SimulatedWorld], Awaitable[None]]


class Story:
    """A scenario made of one function."""

    name = "story"

    def __init__(self, work: Work) -> None:
        self._work = work

    async def run(self, world: SimulatedWorld) -> None:
        await self._work(world)


def live(work: Work) -> RunReport:
    return run(Story(work), 1, RunConfig())


def require(report: RunReport) -> None:
    assert report.violation is None, report.violation


def counting_host(world: SimulatedWorld, name: str = "n1") -> SimulatedHost:
    return world.add_host(name, actors=(SimCounter,))


@pytest.mark.requirement("SIM-NODES")
def test_a_killed_program_keeps_what_it_acknowledged_and_its_neighbour_serves_on() -> None:
    async def work(world: SimulatedWorld) -> None:
        one, two = counting_host(world), counting_host(world, "n2")
        await one.start()
        await two.start()
        for host in (one, two):
            await insist(host, "POST", ADD, {"amount": 5}, key="a")
        one.crash()
        with pytest.raises(NetworkError) as refused:
            await one.request("GET", "/v1/actors")
        assert not refused.value.sent
        assert (await insist(two, "POST", ADD, {"amount": 1}, key="b")).json() == {"result": 6}
        await one.start()
        assert (await insist(one, "POST", ADD, {"amount": 1}, key="b")).json() == {"result": 6}
        assert (one.lives, two.lives) == (2, 1)

    require(live(work))


def test_a_request_that_a_crash_cut_off_is_lost_for_its_client_and_counted_once() -> None:
    async def work(world: SimulatedWorld) -> None:
        host = counting_host(world)
        await host.start()

        def die_at_the_first(view: View) -> None:
            if view.commits == 1 and host.lives == 1:
                world.loop.at_step(world.loop.steps + 1, host.crash)

        world.always("crash", die_at_the_first)
        asking = asyncio.gather(
            host.request("POST", ADD, {"amount": 5}, key="a"), return_exceptions=True
        )
        (outcome,) = await asking
        assert isinstance(outcome, NetworkError)
        assert outcome.sent
        await host.start()
        answer = await insist(host, "POST", ADD, {"amount": 5}, key="a")
        assert answer.json() == {"result": 5}
        assert world.view.commits == 1

    require(live(work))


def test_a_program_that_is_killed_while_it_starts_says_so_and_starts_again() -> None:
    async def work(world: SimulatedWorld) -> None:
        host = counting_host(world)
        world.loop.at_step(world.loop.steps + 3, host.crash)
        with pytest.raises(ProgramDiedError):
            await host.start()
        await host.start()
        assert host.is_serving
        assert host.lives == 2

    require(live(work))


def test_a_program_that_cannot_start_says_why() -> None:
    @asynccontextmanager
    async def fail(host: SimulatedHost) -> AsyncGenerator[None]:
        await asyncio.sleep(1)
        if host.lives:
            raise StoreError("no such disk")
        yield

    async def work(world: SimulatedWorld) -> None:
        host = world.add_host("n1", program=fail)
        with pytest.raises(StoreError, match="no such disk"):
            await host.start()
        assert host.incarnation is None

    require(live(work))


def test_a_stopped_program_ends_in_order_and_can_be_started_again() -> None:
    async def work(world: SimulatedWorld) -> None:
        host = counting_host(world)
        await host.start()
        await host.stop()
        assert host.incarnation is None
        await host.stop()
        await host.start()
        assert host.is_serving

    require(live(work))


def test_a_program_that_dies_at_a_line_runs_nothing_after_it() -> None:
    went_on: list[str] = []

    @asynccontextmanager
    async def serve(host: SimulatedHost) -> AsyncGenerator[str]:
        async def doom() -> None:
            await asyncio.sleep(1)
            die: Callable[[], None] = host.die
            die()
            went_on.append("after death")

        async with asyncio.TaskGroup() as group:
            group.create_task(doom())
            yield "serving"
            await asyncio.sleep(0)
        went_on.append("in order")

    async def work(world: SimulatedWorld) -> None:
        host = world.add_host("n1", program=serve)
        await host.start()
        assert host.service == "serving"
        await asyncio.sleep(2)
        assert host.incarnation is None

    require(live(work))
    assert went_on == []


@pytest.mark.requirement("SIM-NODES")
def test_a_paused_machine_answers_late_or_never_as_its_client_is_patient() -> None:
    async def work(world: SimulatedWorld) -> None:
        host = counting_host(world)
        await host.start()
        host.pause()
        asking = world.loop.create_task(host.request("POST", ADD, {"amount": 1}, key="a"))
        await asyncio.sleep(20)
        assert not asking.done()
        host.resume()
        assert (await asking).status == 200
        host.pause()
        with pytest.raises(NetworkError, match="silent"):
            await host.request("POST", ADD, {"amount": 1}, key="b")

    require(live(work))


def test_a_crash_leaves_on_the_disk_what_its_image_says() -> None:
    class Wiped:
        def put(self, root: Path) -> None:
            for path in (root / "data").glob("*.db*"):
                path.unlink()

    async def work(world: SimulatedWorld) -> None:
        world.invariants.clear()  # which say that a disk must not do this
        host = counting_host(world)
        await host.start()
        await insist(host, "POST", ADD, {"amount": 5}, key="a")
        host.crash(lambda _: Wiped())
        await host.start()
        answer = await insist(host, "POST", ADD, {"amount": 1}, key="a")
        assert answer.json() == {"result": 1}, "the disk was empty"

    require(live(work))


@pytest.mark.parametrize("steps", range(1, 60, 3))
def test_a_commit_is_seen_once_whenever_its_writer_dies(steps: int) -> None:
    async def work(world: SimulatedWorld) -> None:
        host = counting_host(world)
        await host.start()
        asking = asyncio.gather(
            host.request("POST", ADD, {"amount": 5}, key="a"), return_exceptions=True
        )
        world.loop.at_step(
            world.loop.steps + steps, lambda: host.crash() if host.lives == 1 else None
        )
        await asking
        host.crash()
        await host.start()
        stored = await host.service.node.store.load(ActorId(TENANT_DEFAULT, "sim-counter", "c"))
        assert world.view.commits == (0 if stored is None else stored.version)

    require(live(work))


def test_the_first_broken_invariant_ends_the_run_and_is_named() -> None:
    def no_more_than_two(view: View) -> str | None:
        return f"{view.commits} commits" if view.commits > 2 else None

    async def work(world: SimulatedWorld) -> None:
        world.always("few-commits", no_more_than_two)
        host = counting_host(world)
        await host.start()
        for number in range(10):
            await insist(host, "POST", ADD, {"amount": 1}, key=f"{number}")

    report = live(work)
    assert report.violation is not None
    assert report.violation.invariant == "few-commits"
    assert report.violation.text == "3 commits"
    assert report.commits == 3


def test_what_does_not_happen_in_time_is_a_violation_of_liveness() -> None:
    async def work(world: SimulatedWorld) -> None:
        world.sometimes("never", condition=False)
        world.sometimes("once")
        await world.eventually("pigs fly", lambda: False, within_s=30)

    report = live(work)
    assert report.violation is not None
    assert report.violation.invariant == "eventually pigs fly"
    assert 29 < report.virtual_s < 32
    assert report.reached == {"never": 0, "once": 1}


def test_an_error_of_a_callback_and_one_of_the_scenario_are_violations() -> None:
    def fail() -> None:
        raise ValueError("a bug")

    async def stray(world: SimulatedWorld) -> None:
        world.loop.call_soon(fail)
        await asyncio.sleep(1)

    async def plain(world: SimulatedWorld) -> None:
        fail()

    async def idle(world: SimulatedWorld) -> None:
        await asyncio.Event().wait()

    found = [live(work).violation for work in (stray, plain, idle)]
    names = [each.invariant for each in found if each is not None]
    assert names == ["no-stray-exception", "scenario", "progress"]
