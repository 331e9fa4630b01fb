"""Each fault that is built, by itself: it happens, and every promise still holds."""

from __future__ import annotations

import pytest

from kelpie.sim.faults.catalogue import FaultKind, built
from kelpie.sim.faults.plan import FaultRule
from kelpie.sim.scenarios import SCENARIOS
from kelpie.sim.swarm import RunConfig
from tests.simulation.runs import live, require_clean

SEEDS = 25
RATES = (0.05, 0.3, 1.0)
# Where a fault has its occasions, by name or group; whatever is not here happens everywhere.
PLACES = {
    "migration": "care",
    "snapshot": "care",
    "model": "agent_day",
    "sandbox": "agent_day",
    "network": "agent_day",
    "concurrency": "agent_day",
    "concurrency.duplicate_delivery": "bank",
    "concurrency.data_race": "bank",
    "crash.before_directory_sync": "care",
    "crash.during_checkpoint": "care",
    "resource.descriptors": "care",
    "resource.out_of_memory": "bank",
    "storage.bit_rot": "care",
    "storage.misdirected_write": "care",
    "storage.rename_unsynced": "care",
    "storage.checkpoint_fail": "care",
    "storage.blob_disk_full": "care",
    "storage.blob_corruption": "care",
    "storage.sync_fail": "care",
    "storage.workspace_write_fail": "agent_day",
    "storage.workspace_disk_full": "agent_day",
}
# What must happen before a fault has an occasion.
CAUSES = {
    "crash.power_loss": ("crash.after_write",),
    "storage.lost_unsynced": ("crash.after_write", "crash.power_loss"),
    "storage.torn_write": ("crash.during_commit", "crash.power_loss"),
    "storage.rename_unsynced": ("crash.before_directory_sync", "crash.power_loss"),
}


def rules_for(kind: FaultKind, rate: float) -> tuple[FaultRule, ...]:
    causes = [FaultRule(name=name, rate=0.5, count_max=3) for name in CAUSES.get(kind.name, ())]
    return (*causes, FaultRule(name=kind.name, rate=rate, count_max=3))


@pytest.mark.requirement(
    "K-08", "K-09", "SIM-FAULT-BY-FAULT", "ACTOR-EVICTION", "ACTOR-ROLLBACK", "STORE-UNKNOWN-COMMIT"
)
@pytest.mark.parametrize("kind", built(), ids=lambda kind: kind.name)
def test_each_fault_happens_and_no_promise_breaks(kind: FaultKind) -> None:
    scenario = PLACES.get(kind.name) or PLACES.get(kind.group, "counters")
    for seed in range(1, SEEDS):
        config = RunConfig(rules=rules_for(kind, RATES[seed % len(RATES)]))
        report = require_clean(live(SCENARIOS[scenario](), seed, config))
        if report.injected.get(kind.name):
            return
    pytest.fail(f"{kind.name} never happened in {scenario}")
