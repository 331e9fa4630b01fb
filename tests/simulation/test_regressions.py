"""What the simulator found in the product, each as the faults that show it."""

from __future__ import annotations

import pytest

from kelpie.sim.faults.plan import FaultRule
from kelpie.sim.scenarios import SCENARIOS
from kelpie.sim.schedule import SchedulerName
from kelpie.sim.swarm import RunConfig
from tests.simulation.runs import live, require_clean


def config_of(
    *names: str, rate: float, count: int, scheduler: SchedulerName = "random"
) -> RunConfig:
    rules = tuple(FaultRule(name=name, rate=rate, count_max=count) for name in names)
    return RunConfig(scheduler=scheduler, rules=rules)


@pytest.mark.requirement("K-24", "SIM-HEALS")
@pytest.mark.parametrize(
    "fault", ["storage.write_fail", "storage.partial_write", "concurrency.deadlock"]
)
@pytest.mark.parametrize("seed", range(4))
def test_an_effect_goes_on_after_the_disk_failed_under_its_turn(fault: str, seed: int) -> None:
    """The dispatcher let go of an effect whose turn met a failing disk, and nobody took it up."""
    config = config_of(fault, rate=0.2, count=6)
    report = require_clean(live(SCENARIOS["agent_day"](), seed, config))
    assert report.injected[fault] > 0


@pytest.mark.requirement("K-24", "SIM-HEALS")
@pytest.mark.parametrize("seed", range(4))
def test_an_effect_goes_on_after_its_actor_raised(seed: int) -> None:
    """The same, where the agent's own turn raised."""
    config = config_of("model.agent_loop_panic", rate=0.2, count=4)
    report = require_clean(live(SCENARIOS["agent_day"](), seed, config))
    assert report.injected["model.agent_loop_panic"] > 0


@pytest.mark.parametrize("seed", range(2))
def test_a_store_that_cannot_be_synced_while_it_is_opened_is_a_typed_error(seed: int) -> None:
    """The engine's opening let an OSError of the operating system through."""
    config = config_of("storage.sync_fail", rate=0.8, count=4)
    report = require_clean(live(SCENARIOS["counters"](), seed, config))
    assert report.injected["storage.sync_fail"] > 0


@pytest.mark.requirement("SIM-HEALS")
@pytest.mark.parametrize("seed", range(6))
def test_a_pump_goes_on_when_memory_is_short_and_nobody_is_resident(seed: int) -> None:
    """A sweep of an empty house raised, and a reminder's lane waited for ever."""
    names = ("resource.out_of_memory", "migration.upcast_fail")
    config = config_of(*names, rate=0.5, count=8)
    report = require_clean(live(SCENARIOS["care"](), seed, config))
    assert report.injected["resource.out_of_memory"] > 0


@pytest.mark.parametrize("seed", range(3))
def test_a_plan_that_is_asked_for_twice_under_a_key_is_one_plan(seed: int) -> None:
    """Making a plan ignored its key, and applying one refused whoever asked again."""
    config = config_of("network.reset", rate=0.1, count=10)
    report = require_clean(live(SCENARIOS["plans"](), seed, config))
    assert report.commits > 0
