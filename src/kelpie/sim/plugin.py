"""The pytest plugin ``kelpie-sim``: simulated worlds for the tests of whoever builds on Kelpie.

Installed with the product and loaded by every pytest, so importing it costs the standard library;
the simulator is imported when a simulated test runs. `kelpie.sim.testing` has what tests import.
"""

from __future__ import annotations

import os
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from typing import TYPE_CHECKING, Any, Final

import pytest

if TYPE_CHECKING:
    from kelpie.sim.run import RunReport
    from kelpie.sim.subject import Subject
    from kelpie.sim.token import ReplayToken

PROPERTY: Final = "kelpie-sim"
"""The user property under which a test reports its runs."""
SEED_VARIABLE: Final = "DST_SEED"
SEED_BOUND: Final = 1 << 32
_WORKER_KEY: Final = "kelpie_sim_seed"
_SEED: Final = pytest.StashKey[int]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options."""
    group = parser.getgroup("kelpie-sim", "simulated worlds")
    group.addoption("--sim-seeds", type=int, metavar="N", help="run N seeds of each test")
    group.addoption(
        "--sim-seed", type=int, metavar="SEED", help=f"the first seed, as {SEED_VARIABLE}"
    )
    group.addoption(
        "--sim-replay", metavar="TOKEN", help="run one seed again, as a failure printed it"
    )
    group.addoption(
        "--sim-soak", type=float, metavar="MINUTES", help="run seeds of each test for so long"
    )


def pytest_configure(config: pytest.Config) -> None:
    """Draw the first seed, once for all workers."""
    given = getattr(config, "workerinput", {}).get(_WORKER_KEY)
    if given is None:
        given = config.getoption("--sim-seed")
    if given is None:
        text = os.environ.get(SEED_VARIABLE, "")
        if text and not text.isdecimal():
            raise pytest.UsageError(f"{SEED_VARIABLE} is no seed: {text[:64]!r}")
        given = int(text) if text else random.SystemRandom().randrange(SEED_BOUND)
    config.stash[_SEED] = given


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """Hand the first seed to a worker of pytest-xdist."""
    node.workerinput[_WORKER_KEY] = node.config.stash[_SEED]


@pytest.fixture
def world(request: pytest.FixtureRequest) -> Seeds:
    """The simulated world: `kelpie.sim.testing.simulate` gives a test one for each seed."""
    return Seeds(request)


def note_runs(node: pytest.Item, reports: list[RunReport], *, drawn: bool = False) -> None:
    """Let the summary count these runs as those of one test; ``drawn``: from the first seed on."""
    value = {
        "drawn": drawn,
        "runs": len(reports),
        "seeds": len({(each.scenario, each.seed, each.config.config_hash) for each in reports}),
        "virtual_s": sum(each.virtual_s for each in reports),
        "injected": dict(sum((Counter(each.injected) for each in reports), Counter[str]())),
    }
    node.user_properties.append((PROPERTY, value))


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Say how many seeds were run, from which, and what happened in them."""
    runs = seeds = 0
    virtual_s, is_drawn = 0.0, False
    injected: Counter[str] = Counter()
    for value in _noted(terminalreporter.stats):
        runs, seeds = runs + value["runs"], seeds + value["seeds"]
        virtual_s += value["virtual_s"]
        injected.update(value["injected"])
        is_drawn = is_drawn or value["drawn"]
    if runs:
        begin = f"; seeds from {config.stash[_SEED]} (--sim-seed)" if is_drawn else ""
        terminalreporter.write_line(
            f"simulation: {runs:,} runs of {seeds:,} seeds, {virtual_s / 3600:,.1f} simulated "
            f"hours, {injected.total():,} faults of {len(injected)} kinds{begin}"
        )


def _noted(stats: dict[str, list[Any]]) -> Iterator[dict[str, Any]]:
    for reports in stats.values():
        for report in reports:
            if getattr(report, "when", "") == "teardown":
                continue  # it repeats what the call said
            for name, value in getattr(report, "user_properties", ()):
                if name == PROPERTY:
                    yield value


class Seeds:
    """What the fixture ``world`` is outside of a simulated test: the seeds to run it under."""

    def __init__(self, request: pytest.FixtureRequest) -> None:
        self._config = request.config
        self._node: pytest.Item = request.node
        self._reports: list[RunReport] = []

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(
            f"world.{name} exists in a simulated test only: decorate it with "
            "kelpie.sim.testing.simulate"
        )

    def run(
        self,
        work: Callable[..., Awaitable[None]],
        fixtures: dict[str, Any],
        *,
        seeds: int,
        faults: str,
    ) -> None:
        """Live through a test under its seeds; fail with the first that fails."""
        from kelpie.sim.subject import subject_of  # noqa: PLC0415
        from kelpie.sim.token import ReplayToken  # noqa: PLC0415

        subject = subject_of(work, **fixtures)
        try:
            replay = self._config.getoption("--sim-replay")
            if replay:
                token = ReplayToken.parse(replay)
                self._live(subject, token.seed, faults, token)
                return
            for seed in self._seeds(seeds):
                self._live(subject, seed, faults)
            if self._config.getoption("--sim-soak") is not None:
                self._require_reached()
        finally:
            note_runs(self._node, self._reports, drawn=True)

    def _seeds(self, usual: int) -> Iterator[int]:
        first = self._config.stash[_SEED]
        minutes = self._config.getoption("--sim-soak")
        if minutes is None:
            yield from range(first, first + (self._config.getoption("--sim-seeds") or usual))
            return
        ends = time.monotonic() + minutes * 60
        seed = first
        while time.monotonic() < ends:
            yield seed
            seed += 1

    def _live(
        self, subject: Subject, seed: int, faults: str, wanted: ReplayToken | None = None
    ) -> None:
        from kelpie.sim.run import run  # noqa: PLC0415
        from kelpie.sim.subject import configure  # noqa: PLC0415

        report = run(subject.make(), seed, configure(subject, seed, faults))
        self._reports.append(report)
        remarks = wanted.judge(report) if wanted else []
        if report.violation is not None:
            pytest.fail(self._explain(report, remarks), pytrace=False)
        if wanted and wanted.trace and wanted.trace != report.trace_hash:
            pytest.fail("\n".join(remarks), pytrace=False)

    def _require_reached(self) -> None:
        reached = Counter[str]()
        for report in self._reports:
            reached.update(report.reached)
        never = sorted(name for name, count in reached.items() if not count)
        if never:
            pytest.fail(f"never reached in {len(self._reports):,} seeds: {never}", pytrace=False)

    def _explain(self, report: RunReport, remarks: list[str]) -> str:
        from kelpie.sim.token import ReplayToken  # noqa: PLC0415

        violation = report.violation
        assert violation is not None, "a failure has a reason"
        injected = ", ".join(f"{name} {count}" for name, count in sorted(report.injected.items()))
        lines = [
            f"{violation.invariant}: {violation.text}",
            f"at {violation.at_ns / 1e9:.3f} s of seed {report.seed}; faults: {injected or 'none'}",
            *remarks,
            f"pytest {self._node.nodeid} --sim-replay {ReplayToken.of(report)}",
        ]
        return "\n".join(lines)
