"""The regression corpus: what the simulator found once stays away."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest

from kelpie.sim.faults.plan import FaultRule
from kelpie.sim.scenarios import SCENARIOS
from kelpie.sim.swarm import RunConfig
from tests.simulation.runs import live, require_clean

CORPUS = Path(__file__).with_name("corpus.toml")
RUNS: list[dict[str, Any]] = tomllib.loads(CORPUS.read_text(encoding="utf-8"))["run"]
CASES = [
    pytest.param(entry, seed, id=f"{'+'.join(entry['faults'])}-{entry['scenario']}-{seed}")
    for entry in RUNS
    for seed in entry["seeds"]
]


def config_of(entry: dict[str, Any]) -> RunConfig:
    rules = tuple(
        FaultRule(name=name, rate=entry["rate"], count_max=entry["count_max"])
        for name in entry["faults"]
    )
    return RunConfig(scheduler=entry["scheduler"], rules=rules)


@pytest.mark.requirement("K-24", "SIM-HEALS", "SIM-CORPUS", "EFFECT-OUTCOME-TOLD")
@pytest.mark.parametrize(("entry", "seed"), CASES)
def test_what_was_found_once_does_not_come_back(entry: dict[str, Any], seed: int) -> None:
    config = config_of(entry)
    first = require_clean(live(SCENARIOS[entry["scenario"]](), seed, config))
    assert sum(first.injected.values()) > 0, "the run no longer meets its fault"
    again = live(SCENARIOS[entry["scenario"]](), seed, config)
    assert again.trace_hash == first.trace_hash


def test_every_entry_says_what_it_found() -> None:
    assert RUNS
    assert all(entry["found"] and entry["seeds"] for entry in RUNS)
