"""When to checkpoint: an estimate of how much the log holds, because the driver does not tell.

A checkpoint needs the writing connection, so commits wait while it runs, for a time that grows with
the pages it moves. It is therefore due after a bounded number of pages, and runs between two
batches, when the first one has been answered.
"""

from __future__ import annotations

from typing import Final

from kelpie.core.limits import WAL_CHECKPOINT_PAGES

PAGE_BYTES: Final = 4_096
_RATIO_FIRST: Final = 2.0  # pages per unit of work: a row and its index entry
_RATIO_MIN: Final = 1 / 64  # many commits of few actors share their pages
_RATIO_MAX: Final = 8.0  # a row in several indexes


class LogGauge:
    """Counts work since the last checkpoint and learns how many pages such work comes to."""

    __slots__ = ("_ratio", "_work")

    def __init__(self) -> None:
        self._work = 0
        self._ratio = _RATIO_FIRST

    def add(self, *, changes: int, size_bytes: int) -> None:
        """Count a committed batch: its changed rows, and the pages its bytes alone would fill."""
        assert changes >= 0, "rows are not unwritten"
        assert size_bytes >= 0, "a batch has a size"
        self._work += changes + size_bytes // PAGE_BYTES

    @property
    def is_due(self) -> bool:
        """Whether the log holds about enough for a checkpoint."""
        return self._work * self._ratio >= WAL_CHECKPOINT_PAGES

    def settle(self, log_pages: int) -> None:
        """Begin anew after a checkpoint that found ``log_pages`` in the log.

        A snapshot that somebody keeps open makes the log look fuller than the work since the last
        checkpoint; then the next one merely comes sooner.
        """
        assert log_pages >= 0, "a log has no negative length"
        if self._work and log_pages > 0:
            self._ratio = min(max(log_pages / self._work, _RATIO_MIN), _RATIO_MAX)
        assert _RATIO_MIN <= self._ratio <= _RATIO_MAX, "a rate stays within reason"
        self._work = 0
