"""The benchmark's actor on Ray, run by the Python of Ray's own environment.

Never imports the product or the rest of the bench: neither is installed where it runs. Prints one
JSON object: rates and latencies per run, and what one more actor costs in memory.
"""

from __future__ import annotations

import asyncio
import importlib
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

ACTORS = 8  # each is a process; more of them on few processors only make it slower
CALLERS = 64
RUNS = 3
RUN_S = 3.0
ray: Any = importlib.import_module("ray")


class Counter:
    """Counts; a copy of the actor that the product is measured with."""

    def __init__(self) -> None:
        self.total = 0

    def get(self) -> int:
        """Return the total."""
        return self.total

    def pid(self) -> int:
        """Return the id of the process that it is."""
        return os.getpid()


async def measure(actors: list[Any], callers: int) -> dict[str, float]:
    """Call from so many callers, one call at a time each."""
    latencies_us: list[float] = []
    began = time.perf_counter()

    async def call(index: int) -> None:
        actor = actors[index % len(actors)]
        while time.perf_counter() < began + RUN_S:
            sent = time.perf_counter()
            await actor.get.remote()
            latencies_us.append((time.perf_counter() - sent) * 1e6)

    await asyncio.gather(*(call(index) for index in range(callers)))
    elapsed_s = time.perf_counter() - began
    latencies_us.sort()
    count = len(latencies_us)
    return {
        "rate": count / elapsed_s,
        "p50": latencies_us[count // 2],
        "p99": latencies_us[int(count * 0.99)],
    }


def own_mib(pid: int) -> float:
    """Return the memory that only this process has, in MiB."""
    rollup = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii")
    lines = [line.split() for line in rollup.splitlines()]
    return sum(int(line[1]) for line in lines if line[0].startswith("Private_")) / 1_024


def main(place: str) -> None:
    """Measure everything on a Ray of our own."""
    ray.init(
        num_cpus=ACTORS,
        include_dashboard=False,
        log_to_driver=False,
        logging_level="error",
        _temp_dir=place,
    )
    try:
        remote = ray.remote(Counter)
        actors = [remote.remote() for _ in range(ACTORS)]
        pids = ray.get([actor.pid.remote() for actor in actors])
        loop = asyncio.new_event_loop()
        loop.run_until_complete(measure(actors, CALLERS))
        many = [loop.run_until_complete(measure(actors, CALLERS)) for _ in range(RUNS)]
        one = [loop.run_until_complete(measure(actors, 1)) for _ in range(RUNS)]
        loop.close()
        memory_mib = [own_mib(pid) for pid in pids]
    finally:
        ray.shutdown()
    found = {"version": ray.__version__, "many": many, "one": one, "memory_mib": memory_mib}
    print(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1])
