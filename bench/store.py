"""The SQLite engine by itself: commits in process, checkpoints, and a store of a million actors.

Ratios compare runs that alternate within one process, so that a noisy neighbour meets both.
"""

from __future__ import annotations

import asyncio
import os
import random
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from bench.report import Row
from bench.store_world import (
    REPLY,
    REQUEST,
    BareLoop,
    actor_at,
    drive_bare,
    fill_store,
)
from kelpie.host.clock import HostClock
from kelpie.host.rng import HostRng
from kelpie.storage.records import Commit, ReplyRecord
from kelpie.storage.sqlite.store import SqliteStore

RUNS = 7
CLIENTS = 1_024
TURNS = 20
STATE = bytes(100)
STATE_LARGE_BYTES = 32_768
STATE_HUGE_BYTES = 10 * 2**20
MILLION = 1_000_000
REMINDERS = 100_000
MESSAGES = 10_000
COLD_LOADS = 2_000
DAY_MS = 86_400_000

PEER = "bare SQLite loop"
TARGETS = {
    "state32k.1.p99": 2.0,
    "state32k.64.p99": 10.0,
    "million.load.p99": 5.0,
    "huge.load.pause": 5.0,
}

Figures = dict[str, list[float]]
Latencies = Coroutine[Any, Any, list[float]]


def say(text: str) -> None:
    """Report progress on stderr: stdout belongs to the result."""
    print(f"bench: {text}", file=sys.stderr, flush=True)


class Driver:
    """Commits turns of one actor, each as soon as the last is durable."""

    def __init__(self, store: SqliteStore, index: int, version: int) -> None:
        self._store = store
        self._actor = actor_at(index)
        self._shard = self._actor.shard
        self._epoch = store.grants()[self._shard].epoch
        self._version = version

    async def turn(self, state: bytes, key: str | None = None) -> None:
        """Commit one turn, with a kept reply if it has a key."""
        now_ms = time.time_ns() // 1_000_000
        reply = None
        if key is not None:
            reply = ReplyRecord("m", key, REQUEST, REPLY, now_ms + DAY_MS)
        receipt = await self._store.commit(
            Commit(
                actor=self._actor,
                shard=self._shard,
                epoch=self._epoch,
                incarnation=1,
                expected_version=self._version,
                schema_version=1,
                now_ms=now_ms,
                state=state,
                reply=reply,
            )
        )
        self._version = receipt.version

    async def drive(self, *, turns: int, state: bytes, prefix: str | None = None) -> list[float]:
        """Commit ``turns`` times and return the latencies in ms."""
        latencies_ms: list[float] = []
        for turn in range(turns):
            began = time.perf_counter()
            await self.turn(state, None if prefix is None else f"{prefix}-{turn}")
            latencies_ms.append((time.perf_counter() - began) * 1_000)
        return latencies_ms


@asynccontextmanager
async def opened(path: Path) -> AsyncIterator[SqliteStore]:
    """Open a store, and close it at the end."""
    store = await SqliteStore.open(path, clock=HostClock(), rng=HostRng())
    try:
        yield store
    finally:
        await store.close()


def percentile(values: list[float], share: float) -> float:
    """Return the value that ``share`` (0 to 1) of all did not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


async def measure() -> list[Row]:
    """Run everything and return the rows."""
    figures: Figures = defaultdict(list)
    with tempfile.TemporaryDirectory(prefix="kelpie-bench-") as name:
        folder = Path(name)
        say(f"durable commits of {CLIENTS} actors against a bare loop, {RUNS} runs each")
        for is_keyed in (False, True):
            await _measure_commits(folder, figures, is_keyed=is_keyed)
        say("single commits and states of 32 KB")
        await _measure_latencies(folder, figures)
        say(f"a store of {MILLION:,} actors")
        await _measure_million(folder, figures)
    return _rows(figures)


async def _measure_commits(folder: Path, figures: Figures, *, is_keyed: bool) -> None:
    name = "commit.keyed" if is_keyed else "commit"
    bare = BareLoop(folder / f"{name}.bare.db", actors=CLIENTS)
    async with opened(folder / f"{name}.db") as store:
        drivers = [Driver(store, index, 0) for index in range(CLIENTS)]
        await asyncio.gather(*(driver.turn(STATE) for driver in drivers))
        for run in range(RUNS + 1):
            prefix = f"{run}" if is_keyed else None
            ours = await _rate(
                [driver.drive(turns=TURNS, state=STATE, prefix=prefix) for driver in drivers]
            )
            theirs = await _rate(
                [
                    drive_bare(bare, index, turns=TURNS, state=STATE, prefix=prefix)
                    for index in range(CLIENTS)
                ]
            )
            if run:  # the first one warms up
                figures[f"{name}.rate"].append(ours[0])
                figures[f"{name}.cpu"].append(ours[1])
                figures[f"{name}.bare"].append(theirs[0])
                figures[f"{name}.bare.cpu"].append(theirs[1])
                figures[f"{name}.ratio"].append(ours[0] / theirs[0])
    bare.close()


async def _rate(clients: list[Latencies]) -> tuple[float, float]:
    """Run all clients; return commits per second and CPU microseconds per commit."""
    count = len(clients) * TURNS
    began, cpu = time.perf_counter(), time.process_time()
    await asyncio.gather(*clients)
    elapsed, used = time.perf_counter() - began, time.process_time() - cpu
    return count / elapsed, used / count * 1e6


async def _measure_latencies(folder: Path, figures: Figures) -> None:
    """Latencies of one client and of 64, ours and the bare loop's in turns."""
    large = os.urandom(STATE_LARGE_BYTES)
    bare = BareLoop(folder / "latency.bare.db", actors=64)
    async with opened(folder / "latency.db") as store:
        drivers = [Driver(store, index, 0) for index in range(64)]
        await asyncio.gather(*(driver.turn(STATE) for driver in drivers))
        for _ in range(RUNS):
            for name, clients, turns, state in (
                ("commit.1", 1, 500, STATE),
                ("state32k.1", 1, 300, large),
                ("state32k.64", 64, 20, large),
            ):
                ours = [driver.drive(turns=turns, state=state) for driver in drivers[:clients]]
                _note(figures, name, await _join(ours))
                theirs = [
                    drive_bare(bare, index, turns=turns, state=state) for index in range(clients)
                ]
                _note(figures, f"{name}.bare", await _join(theirs))
    bare.close()


async def _join(clients: list[Latencies]) -> list[float]:
    return [latency for one in await asyncio.gather(*clients) for latency in one]


def _note(figures: Figures, name: str, latencies_ms: list[float]) -> None:
    figures[f"{name}.p50"].append(statistics.median(latencies_ms))
    figures[f"{name}.p99"].append(percentile(latencies_ms, 0.99))
    figures[f"{name}.max"].append(max(latencies_ms))


async def _measure_million(folder: Path, figures: Figures) -> None:
    path = folder / "million" / "kelpie.db"
    fill_store(path, actors=MILLION, reminders=REMINDERS, messages=MESSAGES)
    chance = random.Random(1)
    for run in range(3):
        began = time.perf_counter()
        async with opened(path) as store:
            await store.reminder_next_ms()
            figures["million.open"].append(time.perf_counter() - began)
            loads: list[float] = []
            for index in chance.sample(range(MILLION), COLD_LOADS):
                actor = actor_at(index)
                began = time.perf_counter()
                assert await store.load(actor) is not None
                loads.append((time.perf_counter() - began) * 1_000)
            figures["million.load.p99"].append(percentile(loads, 0.99))
            figures["million.load.max"].append(max(loads))
            await _measure_pumps(store, figures)
            await _measure_sustained(store, path, figures, chance, run)


async def _measure_pumps(store: SqliteStore, figures: Figures) -> None:
    for name, read in (
        ("million.reminders_due", lambda: store.reminders_due(10**13 + REMINDERS // 2, 100)),
        ("million.outbox", lambda: store.outbox(MESSAGES // 2, 100)),
    ):
        latencies_ms: list[float] = []
        for _ in range(100):
            began = time.perf_counter()
            assert len(await read()) == 100
            latencies_ms.append((time.perf_counter() - began) * 1_000)
        figures[f"{name}.p99"].append(percentile(latencies_ms, 0.99))


async def _measure_sustained(
    store: SqliteStore, path: Path, figures: Figures, chance: random.Random, run: int
) -> None:
    """Commit all over the file, so that every checkpoint has other pages to write."""
    indices = chance.sample(range(MILLION - 1), 256 * 40)
    versions = [await store.load(actor_at(index)) for index in indices]
    drivers = [
        Driver(store, index, stored.version)
        for index, stored in zip(indices, versions, strict=True)
        if stored is not None
    ]

    async def client(mine: list[Driver]) -> list[float]:
        latencies_ms: list[float] = []
        for driver in mine:
            latencies_ms += await driver.drive(turns=1, state=STATE)
        return latencies_ms

    began = time.perf_counter()
    done = await asyncio.gather(*(client(drivers[start::256]) for start in range(256)))
    latencies_ms = [latency for one in done for latency in one]
    figures["million.commit.rate"].append(len(latencies_ms) / (time.perf_counter() - began))
    _note(figures, "million.commit", latencies_ms)
    log = path.with_name(path.name + "-wal").stat().st_size
    figures["million.log"].append(log / 2**20)
    if run == 0:
        await _measure_huge(store, figures)


async def _measure_huge(store: SqliteStore, figures: Figures) -> None:
    """How long the loop stands still while a state of 10 MB is loaded."""
    actor = actor_at(MILLION)
    driver = Driver(store, MILLION, 0)
    await driver.turn(os.urandom(STATE_HUGE_BYTES - 1_024))
    for _ in range(RUNS):
        worst = await _worst_pause(store.load(actor))
        figures["huge.load.pause"].append(worst)


async def _worst_pause(work: Coroutine[Any, Any, object]) -> float:
    """Return the longest time in ms for which the loop ran nothing else during ``work``."""
    worst = 0.0
    is_done = False

    async def watch() -> None:
        nonlocal worst
        last = time.perf_counter()
        while not is_done:
            await asyncio.sleep(0)
            now = time.perf_counter()
            worst = max(worst, now - last)
            last = now

    async with asyncio.TaskGroup() as group:
        group.create_task(watch())
        await asyncio.sleep(0)
        await work
        is_done = True
    return worst * 1_000


def _rows(figures: Figures) -> list[Row]:
    rows: list[Row] = []
    for name in ("commit", "commit.keyed"):
        rows += _peer_rows(figures, name)
    rows += [
        Row(id="million.open", runs=figures["million.open"], unit="s", target=2.0),
        Row(id="million.commit.rate", runs=figures["million.commit.rate"], unit="commits/s"),
        Row(id="million.log", runs=figures["million.log"], unit="MiB", target=64.0),
    ]
    for name, runs in figures.items():
        if not name.endswith((".p50", ".p99", ".max", ".pause")) or ".bare." in name:
            continue
        head, _, tail = name.rpartition(".")
        theirs = figures.get(f"{head}.bare.{tail}")
        rows.append(
            Row(
                id=name,
                runs=runs,
                unit="ms",
                target=TARGETS.get(name),
                peer=PEER if theirs else None,
                peer_value=statistics.median(theirs) if theirs else None,
            )
        )
    return rows


def _peer_rows(figures: Figures, name: str) -> list[Row]:
    """Rates beside the bare loop's; the share is the median over pairs of runs."""
    return [
        Row(
            id=f"{name}.{CLIENTS}.rate",
            runs=figures[f"{name}.rate"],
            unit="commits/s",
            op=">=",
            peer=PEER,
            peer_value=statistics.median(figures[f"{name}.bare"]),
        ),
        Row(
            id=f"{name}.{CLIENTS}.share",
            runs=figures[f"{name}.ratio"],
            unit="of peer",
            target=0.5,
            op=">=",
        ),
        Row(
            id=f"{name}.{CLIENTS}.cpu",
            runs=figures[f"{name}.cpu"],
            unit="us",
            peer=PEER,
            peer_value=statistics.median(figures[f"{name}.bare.cpu"]),
        ),
    ]


def run() -> list[Row]:
    """Measure and return the rows."""
    return asyncio.run(measure())
