"""Every scenario under many seeds, each run twice: what a seed draws, it draws again."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from kelpie.sim.faults.plan import FaultRule
from kelpie.sim.run import run
from kelpie.sim.scenarios import SCENARIOS
from kelpie.sim.scenarios.counters import CountersScenario
from kelpie.sim.scenarios.leases import LeasesScenario
from kelpie.sim.swarm import RunConfig
from tests.simulation.runs import live, require_clean

SEEDS = {
    "agent_day": 50,
    "bank": 40,
    "care": 30,
    "cluster": 20,
    "counters": 40,
    "crowd": 25,
    "drains": 20,
    "errands": 40,
    "lives": 30,
    "plans": 30,
    "usurper": 20,
}
SLICES = 5
HASHES = """
from kelpie.sim.run import run
from kelpie.sim.scenarios import SCENARIOS
for name in sorted(SCENARIOS):
    for seed in (3, 4, 11):
        print(name, seed, run(SCENARIOS[name](), seed).trace_hash)
"""

pytestmark = pytest.mark.timeout(240)


def test_every_scenario_has_its_seeds() -> None:
    assert SEEDS.keys() == SCENARIOS.keys()
    assert sum(SEEDS.values()) >= 200


@pytest.mark.requirement(
    "SIM-SEED-REPEATS",
    "SIM-HEALS",
    "ACTOR-FIFO",
    "ACTOR-MAILBOX-BOUND",
    "ACTOR-TRANSFER-CONSERVES",
    "STORE-RESTORE-HELD",
)
@pytest.mark.parametrize("part", range(SLICES))
@pytest.mark.parametrize("name", sorted(SCENARIOS))
def test_every_promise_holds_under_any_seed_and_the_seed_repeats(name: str, part: int) -> None:
    for seed in range(part, SEEDS[name], SLICES):
        first = require_clean(live(SCENARIOS[name](), seed))
        again = live(SCENARIOS[name](), seed)
        assert again.trace_hash == first.trace_hash, f"{name}, seed {seed} differs from itself"
        assert (again.steps, again.injected) == (first.steps, first.injected)


@pytest.mark.requirement("SIM-SEED-REPEATS")
def test_a_seed_repeats_in_another_process_whatever_the_hash_seed() -> None:
    shown = {_hashes_under(seed) for seed in ("0", "1", "4711")}
    assert len(shown) == 1, "the trace depends on PYTHONHASHSEED"
    (lines,) = shown
    assert len(set(lines.split())) > 9, lines


def _hashes_under(hash_seed: str) -> str:
    root = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONPATH": str(root / "src")}
    command = [sys.executable, "-c", HASHES]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return done.stdout


@pytest.mark.requirement("SIM-SEED-REPEATS")
def test_another_seed_gives_another_run() -> None:
    reports = [live(CountersScenario(), seed) for seed in (1, 2)]
    assert reports[0].trace_hash != reports[1].trace_hash
    assert all(report.commits for report in reports)


@pytest.mark.requirement("SIM-SEED-REPEATS")
def test_a_run_follows_a_tape_of_what_was_chosen() -> None:
    config = RunConfig(scheduler="random", hosts=2)
    first = require_clean(live(CountersScenario(), 5, config))
    again = run(CountersScenario(), 5, config, tape=first.tape)
    assert again.trace_hash == first.trace_hash
    assert len(first.tape) > 100
    calm = run(CountersScenario(), 5, config, tape=first.tape.edited(0, len(first.tape)))
    assert calm.trace_hash != first.trace_hash
    assert calm.is_clean, "an edited tape is a run like any other"


@pytest.mark.requirement("SIM-SEED-REPEATS")
def test_a_run_follows_a_script_of_what_went_wrong() -> None:
    seed = next(seed for seed in range(1, 40) if _injects(seed) > 3)
    first = live(CountersScenario(), seed)
    again = run(CountersScenario(), seed, script=first.injections)
    assert again.trace_hash == first.trace_hash
    fewer = run(CountersScenario(), seed, script=first.injections[:1])
    assert fewer.injections == first.injections[:1]


def _injects(seed: int) -> int:
    return len(run(CountersScenario(), seed).injections)


def test_one_seed_in_ten_is_without_faults_and_the_others_differ() -> None:
    drawn = [RunConfig.draw(seed, "counters") for seed in range(200)]
    calm = {seed for seed, each in enumerate(drawn) if each.is_fault_free}
    assert calm >= set(range(0, 200, 10))
    assert len(calm) < 40
    assert len({each.config_hash for each in drawn}) > 190
    assert {each.scheduler for each in drawn} == {"fifo", "random", "pct", "delay-bounded"}
    assert {each.hosts for each in drawn} == {1, 2, 3}
    assert len({name for each in drawn for name in each.faults}) > 35


@pytest.mark.requirement("K-09")
def test_clocks_are_skewed_and_jump_and_it_is_counted() -> None:
    rules = tuple(
        FaultRule(name=name, rate=0.5, count_max=5)
        for name in ("time.clock_skew", "time.clock_jump", "time.node_pause")
    )
    config = RunConfig(scheduler="random", hosts=2, rules=rules)
    report = require_clean(live(CountersScenario(), 8, config))
    assert {name: count > 0 for name, count in report.injected.items()} == {
        "time.clock_skew": True,
        "time.clock_jump": True,
        "time.node_pause": True,
    }


def test_machines_that_renew_leases_lose_no_renewal() -> None:
    scenario = LeasesScenario()
    report = require_clean(live(scenario, 1, RunConfig(scheduler="random", hosts=3)))
    assert len(scenario.counts) == 6
    assert report.commits == sum(scenario.counts.values())
