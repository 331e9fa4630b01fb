"""What a seed draws: scheduler, sizes, latencies, and which faults may happen how often.

Runs that all mix everything hide bugs behind each other, so every seed leaves most things out; one
seed in ten has no fault at all. Source: Groce and others, "Swarm testing", ISSTA 2012.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from typing import Final

import msgspec

from kelpie.sim.rng import stream
from kelpie.sim.schedule import SCHEDULER_NAMES, SchedulerName

FAULT_FREE_SEEDS: Final = 10  # one seed of so many has no fault
RATE_MIN: Final = 0.002
RATE_MAX: Final = 0.2


@dataclass(frozen=True, slots=True, kw_only=True)
class RunConfig:
    """How one run is made. The same seed, scenario and configuration give the same run.

    Attributes:
        depth: How many surprises a bounded scheduler may use.
        hosts: Simulated machines, where the scenario can have several.
        clients: Concurrent clients; each does ``operations`` operations.
        faults: Names of the faults that may fire, each at its rate per chance.
        crashes: How often a process is killed at a drawn step.
        pauses: How often a process is stopped and continued.
        clock_changes: How often a clock jumps or changes its rate.
        latency_ms_max: Bound of one message's way.
        job_delay_ms_max: Bound of what one job of the disk takes.
    """

    scheduler: SchedulerName = "fifo"
    depth: int = 3
    hosts: int = 1
    clients: int = 3
    operations: int = 6
    faults: frozenset[str] = frozenset()
    rates: tuple[tuple[str, float], ...] = ()
    crashes: int = 0
    pauses: int = 0
    clock_changes: int = 0
    latency_ms_max: int = 5
    job_delay_ms_max: int = 0

    @property
    def config_hash(self) -> str:
        """Twelve hex digits that name this configuration in a replay line."""
        values = {**asdict(self), "faults": sorted(self.faults)}
        return hashlib.sha256(msgspec.json.encode(values, order="sorted")).hexdigest()[:12]

    @property
    def is_fault_free(self) -> bool:
        """Whether nothing goes wrong in this run."""
        return not (self.faults or self.crashes or self.pauses or self.clock_changes)

    @classmethod
    def draw(cls, seed: int, scenario: str, *, faults: Iterable[str] = ()) -> RunConfig:
        """Return what ``seed`` draws for ``scenario`` among the named ``faults``."""
        rng = stream(seed, f"swarm:{scenario}")
        calm = cls(
            scheduler=rng.choice(SCHEDULER_NAMES),
            depth=rng.randrange(1, 8),
            hosts=rng.randrange(1, 4),
            clients=rng.randrange(1, 6),
            operations=rng.randrange(3, 12),
            latency_ms_max=rng.choice((0, 1, 5, 50, 500)),
            job_delay_ms_max=rng.choice((0, 0, 1, 10)),
        )
        if seed % FAULT_FREE_SEEDS == 0:
            return calm
        chosen = _choose_faults(rng, sorted(faults))
        return replace(
            calm,
            faults=frozenset(name for name, _ in chosen),
            rates=chosen,
            crashes=rng.choice((0, 0, 1, 2, 4)),
            pauses=rng.choice((0, 0, 1, 3)),
            clock_changes=rng.choice((0, 0, 1, 4)),
        )


def _choose_faults(rng: random.Random, names: list[str]) -> tuple[tuple[str, float], ...]:
    """Return each name with an even chance, with a rate drawn evenly over its orders of size."""
    share = rng.choice((0.1, 0.3, 0.6))
    chosen = [name for name in names if rng.random() < share]
    return tuple((name, RATE_MIN * (RATE_MAX / RATE_MIN) ** rng.random()) for name in chosen)
