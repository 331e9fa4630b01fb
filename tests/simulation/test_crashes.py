"""A day of an agent, with the server dying at every step of it.

A step is one callback of the loop: what runs between two awaits. So these runs crash before and
after every commit, and at every await in between.
"""

from __future__ import annotations

import random

import pytest

from kelpie.sim.run import RunReport
from kelpie.sim.scenarios.agent_day import PROMPTS, AgentDayScenario
from kelpie.sim.schedule import SCHEDULER_NAMES
from kelpie.sim.swarm import RunConfig
from tests.simulation.runs import live, require_clean

SLICES = 8
SEEDS = 40

pytestmark = [pytest.mark.requirement("CRASH-ANY-STEP"), pytest.mark.timeout(240)]


def live_through(*crash_steps: int, seed: int = 0, scheduler: int = 1) -> RunReport:
    """Live through the day, dying at each of these steps of the server."""
    config = RunConfig(scheduler=SCHEDULER_NAMES[scheduler], crash_steps=crash_steps)
    return live(AgentDayScenario(PROMPTS, agrees=True), seed, config)


def test_the_day_ends_as_promised_without_a_crash() -> None:
    day = AgentDayScenario(PROMPTS, agrees=True)
    report = require_clean(live(day, 0, RunConfig()))
    assert [run["status"] for run in day.runs] == ["completed"] * len(PROMPTS)
    assert report.commits > 20
    assert report.program_steps > 400, "the day is too short to mean anything"


@pytest.mark.requirement("K-06", "K-24")
@pytest.mark.parametrize("part", range(SLICES))
def test_every_promise_holds_after_a_crash_at_any_step(part: int) -> None:
    calm = require_clean(live_through())
    for step in range(1 + part, calm.program_steps + 1, SLICES):
        report = require_clean(live_through(step))
        assert report.program_steps > step, f"nothing happened after the crash at {step}"


@pytest.mark.requirement("K-06")
@pytest.mark.parametrize("seed", range(SEEDS))
def test_every_promise_holds_after_several_crashes_under_any_schedule(seed: int) -> None:
    rng = random.Random(seed)
    crashes = sorted(rng.randrange(1, 900) for _ in range(rng.randrange(1, 5)))
    report = require_clean(live_through(*crashes, seed=seed, scheduler=seed % 4))
    assert report.commits > 0
