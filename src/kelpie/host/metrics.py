"""Metrics by name, created when first used, in a registry of their own.

A metric keeps the kind and the label names of its first use; a later use that differs is refused
with a reason instead of an exception. The number of series is bounded.
"""

from __future__ import annotations

import re
from typing import Final, TypeVar

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    GCCollector,
    Histogram,
    ProcessCollector,
    generate_latest,
)

Family = TypeVar("Family", Counter, Gauge, Histogram)

_Use = tuple[str, tuple[tuple[str, str], ...]]
"""A metric's name and its labels in the order of the call."""

_SERIES_MAX: Final = 10_000  # label values come from outside; a scrape must stay small
_FOREIGN: Final = re.compile(r"[^a-zA-Z0-9_]")
_SECONDS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 120)
_BYTES: Final = tuple(float(4**power) for power in range(4, 16))
_COUNTS: Final = (0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1_024, 4_096, 16_384)


class Metrics:
    """Counters, gauges and histograms of one process."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry(auto_describe=False)
        ProcessCollector(registry=self._registry)
        GCCollector(registry=self._registry)
        self._families: dict[str, Counter | Gauge | Histogram] = {}
        self._labels: dict[str, tuple[str, ...]] = {}
        self._series: set[tuple[str, ...]] = set()
        self._children: dict[_Use, Counter | Gauge | Histogram] = {}

    def count(self, name: str, amount: int, labels: dict[str, str]) -> str:
        """Add to a counter; return why it was refused, empty if it was not."""
        if amount < 0:
            return "a counter never falls"
        child = self._find(Counter, name, labels)
        if isinstance(child, str):
            return child
        child.inc(amount)
        return ""

    def gauge(self, name: str, value: float, labels: dict[str, str]) -> str:
        """Set a gauge; return why it was refused, empty if it was not."""
        child = self._find(Gauge, name, labels)
        if isinstance(child, str):
            return child
        child.set(value)
        return ""

    def observe(self, name: str, value: float, labels: dict[str, str]) -> str:
        """Add to a histogram; return why it was refused, empty if it was not."""
        child = self._find(Histogram, name, labels)
        if isinstance(child, str):
            return child
        child.observe(value)
        return ""

    def text(self) -> str:
        """Return every metric in the Prometheus text format."""
        return generate_latest(self._registry).decode()

    def _find(self, kind: type[Family], name: str, labels: dict[str, str]) -> Family | str:
        """Return what to report to, or why not; what was admitted before is found in one look."""
        use: _Use = (name, tuple(labels.items()))
        known = self._children.get(use)
        if isinstance(known, kind):
            return known
        problem = self._admit(kind, name, labels)
        if problem:
            return problem
        child = self._get(kind, name, labels)
        self._children[use] = child
        return child

    def _admit(
        self, kind: type[Counter | Gauge | Histogram], name: str, labels: dict[str, str]
    ) -> str:
        names = tuple(sorted(labels))
        if name not in self._families:
            try:
                self._families[name] = self._create(kind, name, names)
            except ValueError as error:
                return str(error)
            self._labels[name] = names
        if not isinstance(self._families[name], kind):
            return f"it is a {type(self._families[name]).__name__.lower()}"
        if self._labels[name] != names:
            return f"its labels are {', '.join(self._labels[name]) or 'none'}"
        series = (name, *(labels[label] for label in names))
        if series not in self._series and len(self._series) >= _SERIES_MAX:
            return f"there are {_SERIES_MAX:,} series already"
        self._series.add(series)
        return ""

    def _create(
        self, kind: type[Counter | Gauge | Histogram], name: str, labels: tuple[str, ...]
    ) -> Counter | Gauge | Histogram:
        exposed = _FOREIGN.sub("_", name)
        text = f"{name} as reported by Kelpie."
        if kind is Histogram:
            buckets = _buckets(exposed)
            return Histogram(exposed, text, labels, registry=self._registry, buckets=buckets)
        return kind(exposed, text, labels, registry=self._registry)

    def _get(self, kind: type[Family], name: str, labels: dict[str, str]) -> Family:
        family = self._families[name]
        assert isinstance(family, kind), "admitted metrics have the kind they were admitted as"
        if not labels:
            return family
        child = family.labels(**labels)
        assert isinstance(child, kind), "a labelled child has its family's kind"
        return child


def _buckets(exposed: str) -> tuple[float, ...]:
    if exposed.endswith("_bytes"):
        return _BYTES
    if exposed.endswith(("_seconds", "_duration")):
        return _SECONDS
    return _COUNTS
