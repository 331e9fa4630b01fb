"""The gauge of the log: due after about a bound of pages, whatever a row turns out to cost."""

from __future__ import annotations

import pytest

from kelpie.core.limits import WAL_CHECKPOINT_PAGES
from kelpie.storage.sqlite.pace import PAGE_BYTES, LogGauge


def count_until_due(gauge: LogGauge, *, changes: int, size_bytes: int = 0) -> int:
    """Add batches until a checkpoint is due; return how many."""
    count = 0
    while not gauge.is_due:
        gauge.add(changes=changes, size_bytes=size_bytes)
        count += 1
    return count


@pytest.mark.parametrize("pages_per_row", [0.1, 1.0, 4.0])
def test_after_one_checkpoint_the_next_is_due_at_the_bound(pages_per_row: float) -> None:
    gauge = LogGauge()
    first = count_until_due(gauge, changes=10)
    gauge.settle(int(first * 10 * pages_per_row))
    second = count_until_due(gauge, changes=10)
    pages = second * 10 * pages_per_row
    assert 0.8 * WAL_CHECKPOINT_PAGES <= pages <= 1.2 * WAL_CHECKPOINT_PAGES


def test_large_values_count_by_their_bytes() -> None:
    gauge = LogGauge()
    gauge.add(changes=1, size_bytes=WAL_CHECKPOINT_PAGES * PAGE_BYTES)
    assert gauge.is_due


def test_nothing_written_makes_nothing_due() -> None:
    gauge = LogGauge()
    gauge.settle(0)
    gauge.add(changes=0, size_bytes=0)
    assert not gauge.is_due


def test_a_log_that_a_snapshot_pins_does_not_make_every_batch_due() -> None:
    gauge = LogGauge()
    gauge.add(changes=100, size_bytes=0)
    gauge.settle(50 * WAL_CHECKPOINT_PAGES)
    assert count_until_due(gauge, changes=10) >= 10
