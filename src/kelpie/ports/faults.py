"""Fault points: places where the product says what may fail there.

``if fault("storage.write_fail"): raise …`` marks a real failure at its real place. Outside the
simulator no source is installed, so that `fault` is a constant False and costs one look-up of a
module's global (about 40 ns). The simulator installs a source; nothing else may, and tests/tidy
holds it. Every name is in the simulator's catalogue, and every fault of the catalogue has a place.

A fault of the group ``crash`` never returns True: its source ends the simulated process there, so
that its call stands alone as a statement.

Must never decide anything: whether a fault fires is the source's business, what it then looks like
is the caller's.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import Protocol


class FaultSource(Protocol):
    """Says which faults fire. There is at most one, and it belongs to a simulated world."""

    def fires(self, name: str) -> bool:
        """Return whether the fault ``name`` happens here and now."""
        ...


_source: FaultSource | None = None


def fault(name: str) -> bool:
    """Return whether the fault ``name`` happens here; always False outside the simulator."""
    return _source is not None and _source.fires(name)


@contextmanager
def faults_from(source: FaultSource) -> Generator[None]:
    """Let ``source`` decide about every fault point of this process, until the context ends.

    Not reentrant: there is one world at a time.
    """
    global _source  # noqa: PLW0603  one look-up is all that a fault point may cost
    assert _source is None, "two simulated worlds at once"
    _source = source
    try:
        yield
    finally:
        assert _source is source, "somebody else's faults"
        _source = None
