"""What a benchmark found: rows with their targets, as one JSON object or as a table."""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

ROOT = Path(__file__).parents[1]
DIGITS = 3  # more would claim a precision that no run has


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One figure; its value is the median of its runs.

    Attributes:
        id: Stable dotted name.
        runs: The raw values, one per run, at least one.
        unit: Unit of the values.
        target: What the value is held against; None for a row that only informs.
        op: How: the value must be ``<=`` or ``>=`` the target.
        peer: What else does the same job, None where there is nothing.
        peer_value: The peer's figure in the same unit, from the same machine and hour.
    """

    id: str
    runs: Sequence[float]
    unit: str
    target: float | None = None
    op: Literal["<=", ">="] = "<="
    peer: str | None = None
    peer_value: float | None = None

    @property
    def value(self) -> float:
        """The median of the runs."""
        return statistics.median(self.runs)

    @property
    def ok(self) -> bool:
        """Whether the target is met; a row without one always is."""
        if self.target is None:
            return True
        return self.value <= self.target if self.op == "<=" else self.value >= self.target

    def as_json(self) -> dict[str, Any]:
        """Return the row as it is printed."""
        peer = self.peer_value
        return {
            "id": self.id,
            "value": _round(self.value),
            "unit": self.unit,
            "target": self.target,
            "op": self.op,
            "ok": self.ok,
            "runs": [_round(run) for run in self.runs],
            "peer": self.peer,
            "peer_value": None if peer is None else _round(peer),
            "ratio": _round(self.value / peer) if peer else None,
        }


def render_json(bench: str, rows: Sequence[Row]) -> str:
    """Return one JSON object on one line."""
    report = {"bench": bench, "commit": describe_commit(), "machine": describe_machine()}
    return json.dumps({**report, "rows": [row.as_json() for row in rows]})


def render_table(bench: str, rows: Sequence[Row]) -> str:
    """Return the same for a person."""
    lines = [f"{bench}  {describe_commit()}  {describe_machine()}", ""]
    width = max(len(row.id) for row in rows)
    lines.append(f"{'row':<{width}}  {'value':>11} {'unit':<8} {'target':>12}  runs")
    for row in rows:
        target = "" if row.target is None else f"{row.op} {row.target:g}"
        verdict = "" if row.ok else "  MISSED"
        runs = " ".join(f"{run:.{DIGITS}f}" for run in row.runs)
        value = f"{row.value:.{DIGITS}f}"
        lines.append(f"{row.id:<{width}}  {value:>11} {row.unit:<8} {target:>12}  {runs}{verdict}")
    return "\n".join(lines)


def describe_commit() -> str:
    """Return the checkout's commit, marked when the tree differs from it; empty outside of git."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    return done.stdout.strip()


def describe_machine() -> str:
    """Return processors, memory, system and Python in one line."""
    memory_gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return (
        f"{os.cpu_count()} x {_processor()}, {memory_gib:.0f} GiB, "
        f"Linux {platform.release()}, Python {platform.python_version()}"
    )


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        name, _, value = line.partition(":")
        if name.strip() == "model name":
            return value.strip()
    return platform.machine()


def _round(value: float) -> float:
    return round(value, DIGITS)
