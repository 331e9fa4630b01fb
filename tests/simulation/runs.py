"""Runs scenarios for tests: fails with one line that replays the run, and keeps count."""

from __future__ import annotations

from dataclasses import dataclass, field

from kelpie.sim.run import RunReport, Scenario, run
from kelpie.sim.swarm import RunConfig
from kelpie.sim.token import replay_line


@dataclass
class Tally:
    """Every run of the test that runs now."""

    reports: list[RunReport] = field(default_factory=list[RunReport])


TALLY = Tally()


def live(scenario: Scenario, seed: int, config: RunConfig | None = None) -> RunReport:
    """Run once and count it."""
    report = run(scenario, seed, config)
    TALLY.reports.append(report)
    return report


def require_clean(report: RunReport) -> RunReport:
    """Fail with what went wrong and how to see it again."""
    violation = report.violation
    assert violation is None, (
        f"{violation.invariant}: {violation.text}\n"
        f"at step {violation.step:,}, {violation.at_ns / 1e9:.3f} s; faults {report.injected}\n"
        f"{_again(report)}"
    )
    return report


def _again(report: RunReport) -> str:
    """Return the line that gives the run again; its configuration, where no seed draws it."""
    if report.config == RunConfig.draw(report.seed, report.scenario):
        return replay_line(report, report.scenario)
    return f"again: {report.scenario}, seed {report.seed}, configuration {report.config}"
