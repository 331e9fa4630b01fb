"""What a seed draws: scheduler, sizes, and which faults may happen how often.

Runs that all mix everything hide bugs behind each other, so every seed leaves most things out; one
seed in ten has no fault at all. Source: Groce and others, "Swarm testing", ISSTA 2012.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Final

import msgspec

from kelpie.sim.clock import NANOSECONDS_PER_SECOND
from kelpie.sim.faults.catalogue import FaultKind
from kelpie.sim.faults.plan import FaultRule, draw_rules
from kelpie.sim.rng import stream
from kelpie.sim.schedule import SCHEDULER_NAMES, SchedulerName

FAULT_FREE_SEEDS: Final = 10  # one seed of so many has no fault
DURATION_S: Final = 15.0


@dataclass(frozen=True, slots=True, kw_only=True)
class RunConfig:
    """How one run is made. The same seed, scenario and configuration give the same run.

    Attributes:
        depth: How many surprises a bounded scheduler may use.
        hosts: Simulated machines, where the scenario can have several.
        clients: Concurrent clients; each does ``operations`` operations.
        rules: Which faults may happen, how often and when.
        crash_steps: Steps of programs, counted from the first fault's chance, that a program
            dies before.
    """

    scheduler: SchedulerName = "fifo"
    depth: int = 3
    hosts: int = 1
    clients: int = 3
    operations: int = 6
    rules: tuple[FaultRule, ...] = ()
    crash_steps: tuple[int, ...] = ()

    @property
    def config_hash(self) -> str:
        """Twelve hex digits that name this configuration in a replay line."""
        encoded = msgspec.json.encode(asdict(self), order="sorted")
        return hashlib.sha256(encoded).hexdigest()[:12]

    @property
    def faults(self) -> frozenset[str]:
        """The names of the faults that may happen."""
        return frozenset(rule.name for rule in self.rules)

    @property
    def is_fault_free(self) -> bool:
        """Whether nothing goes wrong in this run."""
        return not (self.rules or self.crash_steps)

    @classmethod
    def draw(
        cls,
        seed: int,
        scenario: str,
        *,
        kinds: Iterable[FaultKind] | None = None,
        duration_s: float = DURATION_S,
    ) -> RunConfig:
        """Return what ``seed`` draws for ``scenario``.

        Args:
            seed: The run's.
            scenario: The scenario's name.
            kinds: What faults to draw from; every built one if left out.
            duration_s: How long the faulty part of the run is about to take, in virtual time.
        """
        rng = stream(seed, f"swarm:{scenario}")
        rules: tuple[FaultRule, ...] = ()
        if seed % FAULT_FREE_SEEDS:
            duration_ns = int(duration_s * NANOSECONDS_PER_SECOND)
            rules = draw_rules(seed, duration_ns=duration_ns, kinds=kinds)
        return cls(
            scheduler=rng.choice(SCHEDULER_NAMES),
            depth=rng.randrange(1, 8),
            hosts=rng.randrange(1, 4),
            clients=rng.randrange(1, 6),
            operations=rng.randrange(3, 12),
            rules=rules,
        )
