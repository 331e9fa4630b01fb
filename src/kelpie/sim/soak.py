"""Runs many seeds on a few processes and counts: seeds, faults, what was sometimes reached.

Owns nothing of a run. A soak that is clean and still left a fault out, or a `sometimes`, has shown
less than it says, so `Tally.gaps` names them.
"""

from __future__ import annotations

import itertools
import multiprocessing
import signal
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass, field
from typing import Final, NamedTuple

import msgspec

from kelpie.sim.faults.catalogue import built
from kelpie.sim.run import RunReport, run
from kelpie.sim.scenarios import SCENARIOS
from kelpie.sim.subject import SWARM, configure, find_subject
from kelpie.sim.token import replay_line
from kelpie.sim.view import Violation

PROCESSES: Final = 2
BATCH_SEEDS: Final = 10
FAILURES_MAX: Final = 20  # what is wrong is clear by then


class SeedResult(msgspec.Struct, frozen=True, kw_only=True):
    """What one seed came to: small enough to be sent between processes and printed."""

    scenario: str
    seed: int
    config: str
    trace_hash: str
    steps: int
    commits: int
    virtual_s: float
    violation: Violation | None
    injected: dict[str, int]
    reached: dict[str, int]
    replay: str = ""

    @classmethod
    def of(cls, report: RunReport, address: str, faults: str = SWARM) -> SeedResult:
        """Return the result of a run; a failed one says how to replay it."""
        failed = report.violation is not None
        return cls(
            scenario=report.scenario,
            seed=report.seed,
            config=report.config.config_hash,
            trace_hash=report.trace_hash,
            steps=report.steps,
            commits=report.commits,
            virtual_s=round(report.virtual_s, 3),
            violation=report.violation,
            injected=report.injected,
            reached=report.reached,
            replay=replay_line(report, address, faults) if failed else "",
        )


@dataclass(slots=True)
class Tally:
    """What many seeds came to.

    Attributes:
        seeds: How many were run, by scenario.
        injected: How often each fault happened.
        reached: How often each `sometimes` held, by scenario and name; 0 for one that never did.
        failed: The seeds that failed.
    """

    seeds: Counter[str] = field(default_factory=Counter[str])
    injected: Counter[str] = field(default_factory=Counter[str])
    reached: Counter[tuple[str, str]] = field(default_factory=Counter[tuple[str, str]])
    failed: list[SeedResult] = field(default_factory=list[SeedResult])
    virtual_s: float = 0.0
    commits: int = 0

    def add(self, result: SeedResult) -> None:
        """Count one seed."""
        before = self.seeds.total()
        self.seeds[result.scenario] += 1
        self.injected.update(result.injected)
        self.reached.update(
            {(result.scenario, name): count for name, count in result.reached.items()}
        )
        self.virtual_s += result.virtual_s
        self.commits += result.commits
        if result.violation is not None:
            self.failed.append(result)
        assert self.seeds.total() == before + 1, "a seed is counted once"
        assert len(self.failed) <= self.seeds.total()

    def gaps(self, expected: Iterable[str]) -> list[str]:
        """Return what the seeds left out: faults of ``expected``, and asked `sometimes`."""
        unseen = [
            f"fault {name} was never injected" for name in expected if not self.injected[name]
        ]
        unmet = [
            f"{scenario}: {name!r} was never reached"
            for (scenario, name), count in sorted(self.reached.items())
            if not count
        ]
        return unseen + unmet


class Batch(NamedTuple):
    """Seeds of one scenario for one process."""

    address: str
    seeds: tuple[int, ...]
    faults: str


def run_batch(batch: Batch) -> list[SeedResult]:
    """Live through some seeds."""
    subject = find_subject(batch.address)
    return [
        SeedResult.of(
            run(subject.make(), seed, configure(subject, seed, batch.faults)),
            batch.address,
            batch.faults,
        )
        for seed in batch.seeds
    ]


def batches(addresses: Sequence[str], first_seed: int, faults: str) -> Iterator[Batch]:
    """Yield batches for ever: each scenario in turn gets the next seeds."""
    for start in itertools.count(first_seed, BATCH_SEEDS):
        for address in addresses:
            yield Batch(address, tuple(range(start, start + BATCH_SEEDS)), faults)


def soak(
    work: Iterator[Batch],
    *,
    is_over: Callable[[], bool],
    processes: int = PROCESSES,
    said: Callable[[Tally], None] = lambda _: None,
) -> Tally:
    """Run batches until ``is_over``, or too much fails, and return what they came to.

    Args:
        work: What to run.
        is_over: Asked after every batch.
        processes: How many run at a time.
        said: Told after every batch.
    """
    tally = Tally()
    # Forked, so that a user's scenario is loaded as here, and a launcher is not run again.
    context = multiprocessing.get_context("fork")
    sys.stdout.flush()
    with ProcessPoolExecutor(processes, mp_context=context, initializer=_leave_ctrl_c) as pool:
        waiting: set[Future[list[SeedResult]]] = set()
        while True:
            while len(waiting) < processes and not _is_enough(tally, is_over):
                waiting.add(pool.submit(run_batch, next(work)))
            if not waiting:
                return tally
            done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
            for each in done:
                for result in each.result():
                    tally.add(result)
            said(tally)


def _leave_ctrl_c() -> None:
    """Let Ctrl-C end the command alone, which waits for the batches that run."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _is_enough(tally: Tally, is_over: Callable[[], bool]) -> bool:
    return len(tally.failed) >= FAILURES_MAX or is_over()


def expected_faults(addresses: Sequence[str], faults: str = SWARM) -> list[str]:
    """Return the faults that a soak of these scenarios has to inject.

    All built ones if every scenario that ships takes part; none of a user's own, whose programs
    need not ask for each.
    """
    if faults != SWARM or not set(SCENARIOS) <= set(addresses):
        return []
    return [kind.name for kind in built()]
