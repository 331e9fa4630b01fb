"""The demo's scenario in the simulator, with the process dying at every step of it.

A step is one callback of the loop: what runs between two awaits. So these runs crash before and
after every commit, and at every await in between.
"""

from __future__ import annotations

import asyncio
import gc
import random
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from kelpie.sim.loop import SimulatedCrash, SimulatedLoop
from tests.simulation.oracles import check_everything
from tests.simulation.story import Host

MEMORY_DISK = Path("/dev/shm")
SLICES = 8
SEEDS = 40
REPLAY = "./dev test simulation -k {test}"

pytestmark = [pytest.mark.requirement("CRASH-ANY-STEP"), pytest.mark.timeout(240)]


@pytest.fixture(scope="module", autouse=True)
def thawed() -> Iterator[None]:
    """Keep what was imported out of the collections that follow every simulated death."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture
def disk() -> Iterator[Path]:
    """A directory for many short-lived stores, in memory where the host has such a place."""
    base = MEMORY_DISK if MEMORY_DISK.is_dir() else None
    path = Path(tempfile.mkdtemp(prefix="kelpie-sim-", dir=base))
    yield path
    shutil.rmtree(path)


def inspect(host: Host) -> None:
    """Open the host's store once more and check every promise."""

    async def look() -> None:
        async with host.look() as app:
            await check_everything(app, host)

    loop = SimulatedLoop(start_s=host.now_s)
    try:
        loop.run_until_complete(look())
    finally:
        loop.abandon()


def new_host(disk: Path, name: str) -> Host:
    path = disk / name
    path.mkdir()
    return Host(path)


def live_through(host: Host, crashes: list[int]) -> None:
    """Die at each of these steps, one life after the other, then live to the end."""
    for step in crashes:
        host.live(crash_at=step)
    assert host.live(), "the last life has no crash"


def test_the_scenario_ends_as_promised_without_a_crash(disk: Path) -> None:
    host = new_host(disk, "calm")
    assert host.live()
    inspect(host)
    assert [run["status"] for run in host.client.finished.values()] == ["completed"] * 4


@pytest.mark.requirement("K-06", "K-24")
@pytest.mark.parametrize("part", range(SLICES))
def test_every_promise_holds_after_a_crash_at_any_step(disk: Path, part: int) -> None:
    calm = new_host(disk, "calm")
    assert calm.live()
    assert calm.steps > 100, "the scenario is too short to mean anything"
    for step in range(1 + part, calm.steps + 1, SLICES):
        host = new_host(disk, f"step-{step}")
        try:
            live_through(host, [step])
            inspect(host)
        except BaseException as error:
            error.add_note(f"crashed at step {step} of {calm.steps}")
            raise
        shutil.rmtree(host.directory)


@pytest.mark.requirement("K-06")
@pytest.mark.parametrize("seed", range(SEEDS))
def test_every_promise_holds_after_several_crashes_under_any_schedule(
    disk: Path, seed: int
) -> None:
    rng = random.Random(seed)
    host = new_host(disk, f"seed-{seed}")
    host.choose = rng.randrange
    crashes = [rng.randrange(1, 700) for _ in range(rng.randrange(1, 5))]
    live_through(host, crashes)
    inspect(host)


def test_the_same_seed_gives_the_same_run(disk: Path) -> None:
    hosts = []
    for name in ("one", "two"):
        host = new_host(disk, name)
        host.choose = random.Random(7).randrange
        live_through(host, [211])
        hosts.append(host)
    one, two = hosts
    assert (one.steps, one.now_s, one.started) == (two.steps, two.now_s, two.started)
    assert one.client.finished == two.client.finished


def test_a_crashed_loop_unwinds_everything_and_closes() -> None:
    loop = SimulatedLoop()
    loop.crash_at = 5
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

    with pytest.raises(SimulatedCrash):
        loop.run_until_complete(main())
    loop.abandon()
    assert unwound == [0, 1, 2]
    assert loop.is_closed()
