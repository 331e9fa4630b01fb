"""The simulator: steps and simulated seconds per second of processor time.

Steps are those of the bare loop, untraced: tasks that hand over to each other, and sleep. The
workload is three machines that run the shipped store and actor runtime, each with a store of its
own: every five simulated seconds each renews a lease on each of the others by a message over the
simulated network, and the receiver commits it. It stands for a cluster's heartbeat.
"""

from __future__ import annotations

import asyncio
import gc
import random
import sys
import time

from bench.report import Row
from kelpie.sim.loop import SimulatedLoop
from kelpie.sim.run import run as run_scenario
from kelpie.sim.scenarios.leases import LeasesScenario
from kelpie.sim.schedule import SCHEDULER_NAMES, SchedulerName, make_scheduler
from kelpie.sim.swarm import RunConfig

RUNS = 5
TASKS = 20
TURNS = 3_000
STEPS_TARGET = 100_000.0
SECONDS_TARGET = 1_000.0


def say(text: str) -> None:
    """Report progress on stderr: stdout belongs to the result."""
    print(f"bench: {text}", file=sys.stderr, flush=True)


async def _spin() -> None:
    for _ in range(TURNS):
        await asyncio.sleep(0)


async def _doze() -> None:
    for _ in range(TURNS // 10):
        async with asyncio.timeout(30):
            await asyncio.sleep(0.01)


async def _pass_on() -> None:
    there: asyncio.Queue[int] = asyncio.Queue()
    back: asyncio.Queue[int] = asyncio.Queue()

    async def echo() -> None:
        while True:
            await back.put(await there.get())

    async with asyncio.TaskGroup() as group:
        echoing = group.create_task(echo())
        for number in range(TURNS // 2):
            await there.put(number)
            assert await back.get() == number
        echoing.cancel()


async def _work() -> None:
    async with asyncio.TaskGroup() as group:
        for _ in range(TASKS):
            for work in (_spin, _doze, _pass_on):
                group.create_task(work())


def _measure_steps(scheduler: SchedulerName, seed: int) -> float:
    """Return steps of a bare loop per second of processor time."""
    loop = SimulatedLoop(scheduler=make_scheduler(scheduler, random.Random(seed)))
    began = time.process_time()
    loop.run_until_complete(_work())
    spent = time.process_time() - began
    loop.abandon()
    return loop.steps / spent


def _measure_leases(seed: int) -> tuple[float, float]:
    """Return simulated seconds, and traced steps, per second of processor time."""
    gc.collect()
    began = time.process_time()
    report = run_scenario(LeasesScenario(), seed, RunConfig(scheduler="random", hosts=3))
    spent = time.process_time() - began
    assert report.violation is None, report.violation
    return report.virtual_s / spent, report.steps / spent


def run() -> list[Row]:
    """Measure and return the rows."""
    rows: list[Row] = []
    for name in SCHEDULER_NAMES:
        say(f"steps under {name}")
        rates = [_measure_steps(name, seed) for seed in range(RUNS)]
        rows.append(
            Row(id=f"steps.{name}", runs=rates, unit="steps/CPU-s", target=STEPS_TARGET, op=">=")
        )
    say("three machines that renew leases")
    leases = [_measure_leases(seed) for seed in range(RUNS)]
    rows.append(
        Row(
            id="leases.3.seconds",
            runs=[seconds for seconds, _ in leases],
            unit="sim s/CPU-s",
            target=SECONDS_TARGET,
            op=">=",
        )
    )
    rows.append(Row(id="leases.3.steps", runs=[steps for _, steps in leases], unit="steps/CPU-s"))
    return rows
