"""Runs every check of `./dev check`, two at a time, and ends with the output of those that failed.

./dev check             everything
./dev check lint types  the steps of these names
"""

from __future__ import annotations

import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from tests.tidy.tree import ROOT, relative, tracked_files

BIN = ROOT / ".venv" / "bin"
TYPED = ("src", "tests", "demo", "bench", "examples")
AT_ONCE = 2


class Step(NamedTuple):
    """One check: a program that exits 0 if it is content."""

    name: str
    command: list[str]


class Outcome(NamedTuple):
    """How a step ended."""

    step: Step
    duration_s: float
    status: int
    output: str


def list_steps() -> list[Step]:
    """Every step, the slowest first, so that the short ones fill the gaps."""
    python = [sys.executable, "-m"]
    typed = [name for name in TYPED if any((ROOT / name).rglob("*.py"))]
    prose = [relative(path) for path in tracked_files() if "requirements/" not in str(path)]
    tidy = ["pytest", "tests/tidy", "-q", "-p", "no:randomly", "-p", "no:cacheprovider"]
    return [
        Step("types", [*python, "mypy", *typed, "dev"]),
        Step("types-src", [str(BIN / "basedpyright"), "--pythonpath", sys.executable]),
        Step("tidy", [*python, *tidy]),
        Step("layers", [str(BIN / "lint-imports"), "--no-cache"]),
        Step("spelling", [str(BIN / "codespell"), *prose]),
        Step("lint", [str(BIN / "ruff"), "check", "."]),
        Step("format", [str(BIN / "ruff"), "format", "--check", "."]),
        Step("changes", [str(BIN / "towncrier"), "build", "--draft", "--version", "next"]),
    ]


def run_step(step: Step) -> Outcome:
    """Runs one step in the checkout and says on one line how it ended."""
    started = time.monotonic()
    done = subprocess.run(step.command, cwd=ROOT, capture_output=True, text=True, check=False)
    duration_s = time.monotonic() - started
    verdict = "ok    " if done.returncode == 0 else "FAILED"
    print(f"{verdict} {step.name:<10} {duration_s:6.1f} s", flush=True)
    return Outcome(step, duration_s, done.returncode, done.stdout + done.stderr)


def main(names: list[str]) -> int:
    """Runs the named steps, or all; returns 0 if every one is content."""
    steps = list_steps()
    unknown = set(names) - {step.name for step in steps}
    if unknown:
        known = ", ".join(step.name for step in steps)
        print(f"no such check: {', '.join(sorted(unknown))}; there are {known}", file=sys.stderr)
        return 2
    chosen = [step for step in steps if not names or step.name in names]
    with ThreadPoolExecutor(AT_ONCE) as pool:
        outcomes = list(pool.map(run_step, chosen))
    failed = [outcome for outcome in outcomes if outcome.status != 0]
    for outcome in failed:
        print(f"\n--- {outcome.step.name}: {' '.join(outcome.step.command)[:200]}")
        print(outcome.output.rstrip())
    print(f"\ncheck: {len(outcomes) - len(failed)} ok, {len(failed)} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
