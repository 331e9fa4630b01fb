"""What the simulated runs share: a calm collector, and a count of the runs in the summary."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from typing import Any

import pytest

from kelpie.sim.run import RunReport
from tests.simulation.runs import TALLY


@pytest.fixture(scope="package", autouse=True)
def thawed() -> Iterator[None]:
    """Keep what was imported out of the collections that follow every simulated death."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Say how many seeds were run, and what happened in them."""
    reports: list[RunReport] = TALLY.reports
    if not reports:
        return
    seeds = len({(each.scenario, each.seed, each.config.config_hash) for each in reports})
    injected = sum(sum(each.injected.values()) for each in reports)
    names = {name for each in reports for name in each.injected}
    virtual_h = sum(each.virtual_s for each in reports) / 3_600
    terminalreporter.write_line(
        f"simulation: {len(reports):,} runs of {seeds:,} seeds, {virtual_h:,.1f} simulated hours, "
        f"{injected:,} faults of {len(names)} kinds"
    )
