"""A scheduler: each job is an actor with a durable timer; those who wait cost a row on disk.

A million jobs that wait ten minutes: ``python -m examples.scheduler 1000000 600``. It says how long
each step took, and ends with an error if a job did not run, or ran twice.
"""

from __future__ import annotations

import asyncio
import resource
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from kelpie import Actor, Runtime, State, command, query, ref, reminder


class Job(State):
    """How often a job ran."""

    runs: int = 0


class Task(Actor[Job]):
    """Runs at its time, then tells the scheduler."""

    @command
    def schedule(self, after_ms: int, scheduler: str) -> None:
        """Run ``after_ms`` from now; a later call moves the time."""
        self.ctx.remind("run", self.ctx.now_ms + after_ms, self.run, scheduler)

    @command
    def cancel(self) -> None:
        """Do not run."""
        self.ctx.cancel_reminder("run")

    @reminder
    def run(self, scheduler: str) -> None:
        """Do the job."""
        self.state.runs += 1
        self.ctx.send(ref(Scheduler, scheduler).finished, self.ctx.key)

    @query
    def runs(self) -> int:
        """Return how often it ran."""
        return self.state.runs


class Done(State):
    """How many jobs ended."""

    count: int = 0


class Scheduler(Actor[Done]):
    """Counts the jobs that ran."""

    @command
    def finished(self, job: str) -> None:
        """Hear that a job ran."""
        self.state.count += 1
        self.ctx.emit("job.ran", job)

    @query
    def count(self) -> int:
        """Return how many ran."""
        return self.state.count


def batches(keys: range, size: int = 512) -> Iterator[range]:
    """Yield ``keys`` in pieces: as many calls as are on their way at any moment."""
    for first in range(0, len(keys), size):
        yield keys[first : first + size]


async def schedule(runtime: Runtime, keys: range, *, after_ms: int) -> None:
    """Give the jobs of ``keys`` their time."""
    for batch in batches(keys):
        async with asyncio.TaskGroup() as group:
            for key in batch:
                job = runtime.ref(Task, f"job-{key}")
                group.create_task(job.schedule(after_ms, "main"))


async def find_wrong(runtime: Runtime, keys: range) -> list[int]:
    """Return the keys of jobs that did not run exactly once."""
    wrong: list[int] = []
    for batch in batches(keys):
        async with asyncio.TaskGroup() as group:
            asked = {
                key: group.create_task(runtime.ref(Task, f"job-{key}").runs()) for key in batch
            }
        wrong += [key for key, task in asked.items() if task.result() != 1]
    return wrong


class Told:
    """Says how long each step took, and the most memory that the process has had."""

    def __init__(self) -> None:
        self.since = time.monotonic()

    def say(self, text: str) -> None:
        """Print a line about what has just ended."""
        now, peak_kb = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        print(f"{text:<32} {now - self.since:9.2f} s   {peak_kb / 1024:7.0f} MiB at most")
        self.since = now


async def main(path: Path, count: int = 1_000, wait_ms: int = 1_000) -> int:
    """Schedule jobs for ``wait_ms`` from now, wait until all ran, and return how many did.

    Who waits need not be who scheduled: in between, the jobs are rows on disk.

    Raises:
        RuntimeError: A job did not run exactly once.
    """
    told = Told()
    async with Runtime.open(path, actors=[Task, Scheduler]) as runtime:
        before = await runtime.ref(Scheduler, "main").count()
        keys = range(before, before + count)
        await schedule(runtime, keys, after_ms=wait_ms)
        told.say(f"{count:,} jobs scheduled")
    told.say("closed")
    async with Runtime.open(path, actors=[Task, Scheduler]) as runtime:
        told.say("opened again")
        scheduler = runtime.ref(Scheduler, "main")
        async for event in runtime.follow(scheduler, after=before):
            if event.sequence == before + 1:
                told.say("the first one ran")
            if event.sequence == before + count:
                break
        told.say("the last one ran")
        if wrong := await find_wrong(runtime, keys):
            raise RuntimeError(f"{len(wrong)} jobs did not run exactly once, as job-{wrong[0]}")
        told.say("each ran exactly once")
        return await scheduler.count() - before


if __name__ == "__main__":
    jobs = int(sys.argv[1]) if len(sys.argv) > 1 else 1_000
    wait_s = float(sys.argv[2]) if len(sys.argv) > 2 else 1.0
    asyncio.run(main(Path("scheduler.db"), jobs, int(wait_s * 1_000)))
