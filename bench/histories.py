"""How long the checker of versions takes over a long history."""

from __future__ import annotations

import time
from collections.abc import Sequence

from bench.report import Row
from kelpie.sim.history import Operation
from kelpie.sim.linearizability import Judgement
from kelpie.sim.specifications import CounterSpecification
from kelpie.sim.witness import check_versions

OPERATIONS = 100_000
OBJECTS = 50
CLIENTS = 200
RUNS = 5
TARGET_S = 1.0


def measure_witness(operations: int = OPERATIONS) -> Row:
    """Return the processor time to check overlapping additions to and reads of fifty counters."""
    history = make_history(operations)
    runs: list[float] = []
    for _ in range(RUNS):
        began_s = time.process_time()
        report = check_versions(history, CounterSpecification())
        runs.append(time.process_time() - began_s)
        assert report.judgement is Judgement.LINEARIZABLE, report.problem
    return Row(id="sim.witness.cpu", runs=runs, unit="s", target=TARGET_S)


def make_history(count: int) -> Sequence[Operation]:
    """Return ``count`` operations of which some ninety overlap at any time."""
    totals = [0] * OBJECTS
    history: list[Operation] = []
    for number in range(count):
        which = number * 7 % OBJECTS
        is_read = number % 3 == 0
        totals[which] += not is_read
        history.append(
            Operation(
                client=f"c{number % CLIENTS}",
                object=f"counter/{which}",
                kind="get" if is_read else "add",
                argument=None if is_read else 1,
                result=totals[which],
                called_ns=100 * number,
                returned_ns=100 * number + 9_000,
                version=totals[which],
            )
        )
    return history
