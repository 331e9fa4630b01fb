"""A scheduler: each job is an actor with a durable timer; those who wait cost a row on disk.

python -m examples.scheduler 1000000
"""

from __future__ import annotations

import asyncio
import sys
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


async def schedule(runtime: Runtime, count: int, *, after_ms: int, at_once: int = 512) -> None:
    """Give ``count`` jobs their time, ``at_once`` calls on the way at any moment."""
    for first in range(0, count, at_once):
        async with asyncio.TaskGroup() as group:
            for number in range(first, min(first + at_once, count)):
                job = runtime.ref(Task, f"job-{number}")
                group.create_task(job.schedule(after_ms, "main"))


async def main(path: Path, count: int = 1_000) -> int:
    """Schedule jobs for a second from now, wait until all ran, and return how many did.

    Who waits need not be who scheduled: in between, the jobs are rows on disk.
    """
    async with Runtime.open(path, actors=[Task, Scheduler]) as runtime:
        ran = await runtime.ref(Scheduler, "main").count()
        await schedule(runtime, count, after_ms=1_000)
    async with Runtime.open(path, actors=[Task, Scheduler]) as runtime:
        scheduler = runtime.ref(Scheduler, "main")
        async for event in runtime.follow(scheduler, after=ran):
            if event.sequence == ran + count:
                break
        return await scheduler.count() - ran


if __name__ == "__main__":
    jobs = int(sys.argv[1]) if len(sys.argv) > 1 else 1_000
    print(asyncio.run(main(Path("scheduler.db"), jobs)))
