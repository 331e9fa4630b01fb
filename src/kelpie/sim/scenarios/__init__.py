"""The scenarios that ship: each lives through a workload under faults, heals, and must be whole."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from kelpie.sim.run import Scenario
from kelpie.sim.scenarios.agent_day import AgentDayScenario
from kelpie.sim.scenarios.bank import BankScenario
from kelpie.sim.scenarios.care import CareScenario
from kelpie.sim.scenarios.cluster import ClusterScenario
from kelpie.sim.scenarios.counters import CountersScenario
from kelpie.sim.scenarios.crowd import CrowdScenario
from kelpie.sim.scenarios.drains import DrainsScenario
from kelpie.sim.scenarios.errands import ErrandsScenario
from kelpie.sim.scenarios.lives import LivesScenario
from kelpie.sim.scenarios.plans import PlansScenario
from kelpie.sim.scenarios.usurper import UsurperScenario

SCENARIOS: Final[dict[str, Callable[[], Scenario]]] = {
    "agent_day": AgentDayScenario,
    "bank": BankScenario,
    "care": CareScenario,
    "cluster": ClusterScenario,
    "counters": CountersScenario,
    "crowd": CrowdScenario,
    "drains": DrainsScenario,
    "errands": ErrandsScenario,
    "lives": LivesScenario,
    "plans": PlansScenario,
    "usurper": UsurperScenario,
}
"""How to make a fresh scenario, by name."""
