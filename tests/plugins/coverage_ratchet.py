"""The coverage ratchet: a run of everything fails if branch coverage drops.

Owns `.coverage-baseline.json`: for each group its paths, the least branch coverage it may ever
have, and the best it has had. `--coverage-ratchet` judges the run that pytest-cov has just
measured; `--coverage-ratchet-update` writes what was measured, and never a lower number.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import coverage
import pytest

if TYPE_CHECKING:
    from collections.abc import Iterable

BASELINE = Path(__file__).parents[2] / ".coverage-baseline.json"
# Random order and generated examples move a branch now and then; a real drop is larger.
NOISE_POINTS = 0.5


class Judged(NamedTuple):
    """One group of the baseline after a run."""

    group: str
    branch_percent: float | None
    branch_percent_least: float

    @property
    def is_low(self) -> bool:
        """Whether the group lost coverage, or was never measured although it exists."""
        return self.branch_percent is None or self.branch_percent < self.branch_percent_least


JUDGED = pytest.StashKey[list[Judged]]()


def percent(files: Iterable[dict[str, dict[str, int]]]) -> float | None:
    """Branch coverage over `files` of a coverage report; None if they have no branch."""
    summaries = [file["summary"] for file in files]
    total = sum(summary["num_branches"] for summary in summaries)
    covered = sum(summary["covered_branches"] for summary in summaries)
    return 100.0 * covered / total if total else None


def judge(baseline: dict[str, dict[str, object]], report: dict[str, object]) -> list[Judged]:
    """Compares a coverage report with the baseline, group by group.

    A group none of whose files exist is left out: its room has nothing in it.
    """
    files = report["files"]
    assert isinstance(files, dict)
    judged = []
    for group, row in baseline.items():
        paths = row["paths"]
        assert isinstance(paths, list)
        chosen = [file for name, file in files.items() if name.startswith(tuple(paths))]
        if chosen:
            floor, best = row["branch_percent_min"], row["branch_percent"]
            assert isinstance(floor, int | float)
            assert isinstance(best, int | float)
            judged.append(Judged(group, percent(chosen), max(floor, best - NOISE_POINTS)))
    return judged


def read_report() -> dict[str, object]:
    """The JSON report of the data that pytest-cov has combined."""
    measured = coverage.Coverage()
    measured.load()
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "coverage.json"
        measured.json_report(outfile=str(target))
        report = json.loads(target.read_text())
    assert isinstance(report, dict)
    return report


def raise_baseline(baseline: dict[str, dict[str, object]], judged: list[Judged]) -> str:
    """The baseline's new text: each group at the better of its old and its new coverage."""
    for row in judged:
        old = baseline[row.group]["branch_percent"]
        assert isinstance(old, int | float)
        baseline[row.group]["branch_percent"] = max(old, round(row.branch_percent or 0.0, 1))
    return json.dumps(baseline, indent=2) + "\n"


def pytest_addoption(parser: pytest.Parser) -> None:
    """Adds the two options."""
    group = parser.getgroup("coverage ratchet")
    group.addoption("--coverage-ratchet", action="store_true", help="fail if coverage dropped")
    group.addoption(
        "--coverage-ratchet-update", action="store_true", help="raise the committed baseline"
    )


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """Judges a run that is otherwise green; a red one has worse news."""
    config = session.config
    wanted = config.getoption("--coverage-ratchet") or config.getoption("--coverage-ratchet-update")
    measures = bool(getattr(config.option, "cov_source", None)) and not config.option.no_cov
    if not wanted or not measures or hasattr(config, "workerinput") or exitstatus != 0:
        return
    baseline = json.loads(BASELINE.read_text())
    judged = judge(baseline, read_report())
    if config.getoption("--coverage-ratchet-update"):
        BASELINE.write_text(raise_baseline(baseline, judged))
    config.stash[JUDGED] = judged
    if any(row.is_low for row in judged):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Prints each group's coverage above pytest's own last line."""
    judged = terminalreporter.config.stash.get(JUDGED, [])
    if not judged:
        return
    terminalreporter.section("branch coverage")
    for row in judged:
        terminalreporter.write_line(describe(row))


def describe(row: Judged) -> str:
    """One line of the summary."""
    measured = "nothing measured" if row.branch_percent is None else f"{row.branch_percent:.1f} %"
    verdict = "TOO LOW" if row.is_low else "ok"
    least = f"at least {row.branch_percent_least:.1f} %"
    return f"{row.group:<10} {measured:>8}, {least}: {verdict}"
