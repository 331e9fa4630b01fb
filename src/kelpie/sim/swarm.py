"""What a seed draws: scheduler, sizes, latencies, and which faults may happen how often.

Runs that all mix everything hide bugs behind each other, so every seed leaves most things out; one
seed in ten has no fault at all. Source: Groce and others, "Swarm testing", ISSTA 2012.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from typing import Final

import msgspec

from kelpie.sim.faults.catalogue import find_kind
from kelpie.sim.faults.plan import FaultRule, draw_rules, swarm_kinds
from kelpie.sim.rng import stream
from kelpie.sim.schedule import SCHEDULER_NAMES, SchedulerName

FAULT_FREE_SEEDS: Final = 10  # one seed of so many has no fault
FAULTY_NS: Final = 15_000_000_000  # about how long a scenario lets things go wrong
SHARES: Final = (0.1, 0.3, 0.6)  # of the faults that a seed takes


@dataclass(frozen=True, slots=True, kw_only=True)
class RunConfig:
    """How one run is made. The same seed, scenario and configuration give the same run.

    Attributes:
        depth: How many surprises a bounded scheduler may use.
        hosts: Simulated machines, where the scenario can have several.
        clients: Concurrent clients; each does ``operations`` operations.
        rules: The faults that may happen, how often and when.
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
    rules: tuple[FaultRule, ...] = ()
    crashes: int = 0
    pauses: int = 0
    clock_changes: int = 0
    latency_ms_max: int = 5
    job_delay_ms_max: int = 0

    @property
    def config_hash(self) -> str:
        """Twelve hex digits that name this configuration in a replay line."""
        return hashlib.sha256(msgspec.json.encode(asdict(self), order="sorted")).hexdigest()[:12]

    @property
    def faults(self) -> frozenset[str]:
        """The names of the faults that may happen at fault points."""
        return frozenset(rule.name for rule in self.rules)

    @property
    def is_fault_free(self) -> bool:
        """Whether nothing goes wrong in this run."""
        return not (self.rules or self.crashes or self.pauses or self.clock_changes)

    @classmethod
    def draw(cls, seed: int, scenario: str, *, faults: Iterable[str] | None = None) -> RunConfig:
        """Return what ``seed`` draws for ``scenario``, among the named ``faults`` if given."""
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
        kinds = swarm_kinds() if faults is None else [find_kind(name) for name in sorted(faults)]
        share = rng.choice(SHARES)
        return replace(
            calm,
            rules=draw_rules(seed, duration_ns=FAULTY_NS, kinds=kinds, chance=share),
            crashes=rng.choice((0, 0, 1, 2, 4)),
            pauses=rng.choice((0, 0, 1, 3)),
            clock_changes=rng.choice((0, 0, 1, 4)),
        )
