"""What the simulated runs share: a calm collector, and a count of the runs in the summary."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest

from kelpie.sim.plugin import note_runs
from tests.simulation.runs import TALLY


@pytest.fixture(scope="package", autouse=True)
def thawed() -> Iterator[None]:
    """Keep what was imported out of the collections that follow every simulated death."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    """Let the plugin's summary count the runs of each test, whichever process ran it."""
    TALLY.reports.clear()
    try:
        yield
    finally:
        if TALLY.reports:
            note_runs(item, TALLY.reports)
