"""Lives through seeds of one scenario until one fails, in a process of its own.

    python -m tests.mutants.live SCENARIO FIRST LAST STEP [FAULT...]

Prints a line of JSON for each seed. Which sources run is decided by PYTHONPATH.
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace

from kelpie.sim.faults.plan import FaultRule
from kelpie.sim.run import run
from kelpie.sim.scenarios import SCENARIOS
from kelpie.sim.swarm import RunConfig

RATE = 0.03
COUNT_MAX = 12


def draw(seed: int, scenario: str, faults: list[str]) -> RunConfig:
    """Return what the seed draws, with these faults in place of the swarm's if any are given."""
    drawn = RunConfig.draw(seed, scenario)
    if not faults:
        return drawn
    rules = tuple(FaultRule(name=name, rate=RATE, count_max=COUNT_MAX) for name in faults)
    return replace(drawn, rules=rules)


def main(arguments: list[str]) -> int:
    """Live until a seed fails; return 0 whether or not one did."""
    scenario, first, last, step, *faults = arguments
    for seed in range(int(first), int(last), int(step)):
        report = run(SCENARIOS[scenario](), seed, draw(seed, scenario, faults))
        violation = report.violation
        line = {
            "seed": seed,
            "invariant": violation.invariant if violation else "",
            "text": violation.text if violation else "",
        }
        sys.stdout.write(json.dumps(line) + "\n")
        sys.stdout.flush()
        if violation:
            break
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
