"""What `bench.actors` measures inside a process: one part each, so that none meets another's heap.

Run as ``python -m bench.actors_inside PART DIRECTORY``; prints one JSON object of raw figures.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import random
import sys
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from bench.counter import Counter
from bench.store import Driver, opened, percentile
from bench.store_world import BareLoop, actor_at, drive_bare
from kelpie import Runtime

RUNS = 5
LOCAL_CALLS = 20_000
LOCAL_ACTORS = 8  # as many as the peer has processes
CALLERS = 64
COMMITTERS = 1_024
TURNS = 20
HOT_CALLS = 12_800
LARGE = 32_768
STATE = bytes(100)
COLD_CALLS = 2_000
RESIDENT_BYTES_MAX = 4 * 2**30  # nobody leaves while a million are counted
LOADERS = 256
MEBIBYTE = 2**20

Figures = dict[str, list[float]]


@asynccontextmanager
async def hosting(place: Path) -> AsyncIterator[Runtime]:
    """Open an embedded runtime with the counter."""
    runtime = Runtime.open(
        place / "kelpie.db", actors=[Counter], resident_bytes_max=RESIDENT_BYTES_MAX
    )
    async with runtime as opened_runtime:
        yield opened_runtime


async def together(tasks: Sequence[Coroutine[Any, Any, object]]) -> float:
    """Run them at once and return the seconds that took."""
    began = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        for task in tasks:
            group.create_task(task)
    return time.perf_counter() - began


async def timed(call: Callable[[], Awaitable[object]], count: int, into: list[float]) -> None:
    """Call one after another; add each one's microseconds."""
    for _ in range(count):
        began = time.perf_counter_ns()
        await call()
        into.append((time.perf_counter_ns() - began) / 1_000)


def note(figures: Figures, name: str, values: list[float]) -> None:
    """Add one run's median and 99th percentile."""
    figures[f"{name}.p50"].append(percentile(values, 0.50))
    figures[f"{name}.p99"].append(percentile(values, 0.99))


async def local(place: Path, figures: Figures) -> None:
    """Calls of idle actors that change nothing, by one caller and by many."""
    async with hosting(place) as runtime:
        counters = [runtime.ref(Counter, f"c{index}") for index in range(LOCAL_ACTORS)]
        for counter in counters:
            await counter.add(1)
        for run in range(RUNS + 1):
            kept = figures if run else defaultdict(list)
            for name, call in (("local", counters[0].peek), ("query", counters[0].total)):
                took_us: list[float] = []
                cpu = time.process_time()
                await timed(call, LOCAL_CALLS, took_us)
                kept[f"{name}.cpu"].append((time.process_time() - cpu) / LOCAL_CALLS * 1e6)
                note(kept, name, took_us)
            share = LOCAL_CALLS * 2 // CALLERS
            took_s = await together(
                [repeat(counters[index % LOCAL_ACTORS].peek, share) for index in range(CALLERS)]
            )
            kept["local.rate"].append(share * CALLERS / took_s)


async def repeat(call: Callable[[], Awaitable[object]], count: int) -> None:
    """Call one after another."""
    for _ in range(count):
        await call()


async def commits(place: Path, figures: Figures) -> None:
    """Durable commits of many actors, beside the least that could make them durable.

    The store alone writes the same rows as its peer; whole turns go through the actors' API.
    """
    bare = BareLoop(place / "bare.db", actors=COMMITTERS)
    async with opened(place / "store.db") as store, hosting(place) as runtime:
        drivers = [Driver(store, index, 0) for index in range(COMMITTERS)]
        counters = [runtime.ref(Counter, f"c{index}") for index in range(COMMITTERS)]
        await asyncio.gather(*(driver.turn(STATE) for driver in drivers))
        await asyncio.gather(*(counter.put(STATE) for counter in counters))
        count = COMMITTERS * TURNS
        for run in range(RUNS + 1):
            kept = figures if run else defaultdict(list)
            ours = count / await together([commit_alone(driver) for driver in drivers])
            cpu = time.process_time()
            turns = count / await together([repeat_add(each) for each in counters])
            kept["turns.cpu"].append((time.process_time() - cpu) / count * 1e6)
            bare_clients = [
                drive_bare(bare, index, turns=TURNS, state=STATE) for index in range(COMMITTERS)
            ]
            theirs = count / await together(bare_clients)
            kept["bare.rate"].append(theirs)
            kept["commit.rate"].append(ours)
            kept["commit.share"].append(ours / theirs)
            kept["turns.rate"].append(turns)
            kept["turns.share"].append(turns / theirs)
    bare.close()


async def commit_alone(driver: Driver) -> None:
    """Commit a small state, turn after turn, through the store alone."""
    await driver.drive(turns=TURNS, state=STATE)


async def repeat_add(counter: Counter) -> None:
    """Add one, turn after turn."""
    for _ in range(TURNS):
        await counter.add(1)


async def hot(place: Path, figures: Figures) -> None:
    """One actor with many callers, beside as many actors with one caller each."""
    async with hosting(place) as runtime:
        counters = [runtime.ref(Counter, f"c{index}") for index in range(CALLERS)]
        share = HOT_CALLS // CALLERS
        for run in range(RUNS + 1):
            one = await together([repeat(lambda: counters[0].add(1), share) for _ in counters])
            many = await together([repeat_one(each, share) for each in counters])
            if run:
                figures["hot.rate"].append(HOT_CALLS / one)
                figures["many.rate"].append(HOT_CALLS / many)
                figures["hot.share"].append(many / one)


async def repeat_one(counter: Counter, count: int) -> None:
    """Add one, so often."""
    for _ in range(count):
        await counter.add(1)


async def large(place: Path, figures: Figures) -> None:
    """Commits of 32 KB of state, one actor and many at once; latencies in ms."""
    notes = [os.urandom(LARGE) for _ in range(2)]

    async def put(counter: Counter, count: int, into: list[float]) -> None:
        for turn in range(count):
            began = time.perf_counter()
            await counter.put(notes[turn % 2])
            into.append((time.perf_counter() - began) * 1_000)

    async with hosting(place) as runtime:
        counters = [runtime.ref(Counter, f"c{index}") for index in range(CALLERS)]
        for run in range(RUNS + 1):
            kept = figures if run else defaultdict(list)
            alone: list[float] = []
            await put(counters[0], 400, alone)
            note(kept, "large.1", alone)
            at_once: list[float] = []
            await together([put(counter, 20, at_once) for counter in counters])
            note(kept, "large.64", at_once)


# --- a million actors -----------------------------------------------------------------------------


class Pauses:
    """How long the garbage collector stopped everything, in ms."""

    def __init__(self) -> None:
        self.longest_ms = 0.0
        self._began = 0.0
        gc.callbacks.append(self._hear)

    def take(self) -> float:
        """Return the longest pause since the last look."""
        longest_ms, self.longest_ms = self.longest_ms, 0.0
        return longest_ms

    def _hear(self, phase: str, _info: dict[str, int]) -> None:
        if phase == "start":
            self._began = time.perf_counter()
        else:
            took_ms = (time.perf_counter() - self._began) * 1_000
            self.longest_ms = max(self.longest_ms, took_ms)


def memory_bytes(kind: str) -> int:
    """Return ``VmRSS`` or ``RssAnon`` of this process."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        name, _, value = line.partition(":")
        if name == kind:
            return int(value.split()[0]) * 1_024
    raise AssertionError(f"/proc/self/status has no {kind}")


async def million(place: Path, figures: Figures) -> None:
    """Cold activations, then every actor of the store in memory at once."""
    pauses = Pauses()
    count = int(os.environ["BENCH_ACTORS"])
    chance = random.Random(1)
    async with hosting(place) as runtime:
        for _ in range(RUNS):
            cold_ms: list[float] = []
            for index in chance.sample(range(count), min(COLD_CALLS, count // RUNS)):
                counter = runtime.ref(Counter, actor_at(index).key)
                began = time.perf_counter()
                await counter.total()
                cold_ms.append((time.perf_counter() - began) * 1_000)
            note(figures, "cold", cold_ms)
        await _fill_memory(runtime, count, figures)
        figures["gc.loading"].append(pauses.take())
        await _call_among_residents(runtime, count, figures)
        figures["gc.serving"].append(pauses.take())
        gc.unfreeze()
        gc.collect()
        figures["gc.unfrozen"].append(pauses.take())


async def _fill_memory(runtime: Runtime, count: int, figures: Figures) -> None:
    before = memory_bytes("RssAnon")
    already = runtime.engine.resident_count
    indices = iter(range(count))

    async def load() -> None:
        for index in indices:
            await runtime.ref(Counter, actor_at(index).key).total()

    figures["resident.load"].append(await together([load() for _ in range(LOADERS)]))
    assert runtime.engine.resident_count == count, "somebody left"
    grown = memory_bytes("RssAnon") - before
    figures["resident.beside"].append(grown / (count - already) - len(STATE))
    figures["resident.rss"].append(memory_bytes("VmRSS") / MEBIBYTE)
    figures["resident.anonymous"].append(memory_bytes("RssAnon") / MEBIBYTE)


async def _call_among_residents(runtime: Runtime, count: int, figures: Figures) -> None:
    chance = random.Random(2)
    for _ in range(RUNS):
        counters = [
            runtime.ref(Counter, actor_at(chance.randrange(count)).key) for _ in range(6_400)
        ]
        took_us: list[float] = []
        for counter in counters:
            await timed(counter.peek, 3, took_us)
        note(figures, "resident.local", took_us)
        await together([add_to_each(counters[start::CALLERS]) for start in range(CALLERS)])


async def add_to_each(counters: list[Counter]) -> None:
    """Add one to one after another."""
    for counter in counters:
        await counter.add(1)


PARTS: dict[str, Callable[[Path, Figures], Awaitable[None]]] = {
    "commits": commits,
    "hot": hot,
    "large": large,
    "local": local,
    "million": million,
}


async def main(part: str, place: Path) -> None:
    """Measure one part and print its figures."""
    figures: Figures = defaultdict(list)
    await PARTS[part](place, figures)
    print(json.dumps(figures))


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], Path(sys.argv[2])))
