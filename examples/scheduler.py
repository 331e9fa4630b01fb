"""A scheduler: each job is an actor with a durable timer; those who wait cost a row on disk."""

from __future__ import annotations

import asyncio
from pathlib import Path

from kelpie import Actor, Runtime, State, command, query, ref, reminder


class Job(State):
    """How often a job ran."""

    runs: int = 0


class Task(Actor[Job]):
    """Runs at its time, then tells the scheduler."""

    @command
    def schedule(self, at_ms: int, scheduler: str) -> None:
        """Run at ``at_ms``; a later call moves the time."""
        self.ctx.remind("run", at_ms, self.run, scheduler)

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


async def schedule(runtime: Runtime, count: int, *, at_ms: int, at_once: int = 512) -> None:
    """Give ``count`` jobs the same time, ``at_once`` calls on the way at any moment."""
    for first in range(0, count, at_once):
        async with asyncio.TaskGroup() as group:
            for number in range(first, min(first + at_once, count)):
                job = runtime.ref(Task, f"job-{number}")
                group.create_task(job.schedule(at_ms, "main"))


async def main(path: Path, count: int = 1_000) -> int:
    """Schedule jobs that are due at once, wait for all of them, and return how many ran."""
    async with Runtime.open(path, actors=[Task, Scheduler]) as runtime:
        await schedule(runtime, count, at_ms=0)
        scheduler = runtime.ref(Scheduler, "main")
        async for event in runtime.follow(scheduler):
            if event.sequence == count:
                break
        return await scheduler.count()


if __name__ == "__main__":
    print(asyncio.run(main(Path("scheduler.db"))))
