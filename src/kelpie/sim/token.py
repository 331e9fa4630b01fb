"""Replay tokens: the few words that give a run again, and say whether it is the same one."""

from __future__ import annotations

import re
import subprocess
from functools import cache
from pathlib import Path
from typing import Final, NamedTuple

import kelpie
from kelpie.core.errors import InvalidFieldError
from kelpie.sim.run import RunReport
from kelpie.sim.subject import SWARM

_FORM: Final = re.compile(
    r"(?P<seed>\d{1,19})(?::(?P<config>[0-9a-f]{12}):(?P<commit>[\w.+-]+):(?P<trace>[0-9a-f]{32}))?"
)
_GIT_TIMEOUT_S: Final = 10.0


class ReplayToken(NamedTuple):
    """Names one run: ``SEED:CONFIGURATION:COMMIT:TRACE``, or a bare ``SEED``.

    Attributes:
        seed: The run's.
        config: Its configuration's hash; empty if unknown.
        commit: The sources that ran: a commit, or the version of an installed product.
        trace: Its trace hash; empty if unknown.
    """

    seed: int
    config: str = ""
    commit: str = ""
    trace: str = ""

    def __str__(self) -> str:
        if not self.trace:
            return str(self.seed)
        return f"{self.seed}:{self.config}:{self.commit}:{self.trace}"

    @classmethod
    def of(cls, report: RunReport) -> ReplayToken:
        """Return the token of a run that has ended."""
        return cls(report.seed, report.config.config_hash, product_commit(), report.trace_hash)

    @classmethod
    def parse(cls, text: str) -> ReplayToken:
        """Return the token that ``text`` spells.

        Raises:
            InvalidFieldError: It spells none.
        """
        match = _FORM.fullmatch(text.strip())
        if match is None:
            problem = f"{text[:64]!r} reads neither SEED nor SEED:CONFIGURATION:COMMIT:TRACE"
            raise InvalidFieldError("replay", problem)
        parts = match.groupdict(default="")
        return cls(int(parts["seed"]), parts["config"], parts["commit"], parts["trace"])

    def judge(self, report: RunReport) -> list[str]:
        """Return what a replay has to say about how it compares, the verdict last."""
        lines: list[str] = []
        config = report.config.config_hash
        if self.config and config != self.config:
            lines.append(f"the configuration differs: {config}, the line has {self.config}")
        if self.commit and self.commit != product_commit():
            lines.append(f"other sources: {product_commit()}, the line has {self.commit}")
        if self.trace:
            same = report.trace_hash == self.trace
            verdict = "the same trace" if same else f"ANOTHER TRACE than {self.trace}"
            lines.append(f"trace {report.trace_hash}: {verdict}")
        return lines


def replay_line(report: RunReport, address: str, faults: str = SWARM) -> str:
    """Return the command line that gives a run again."""
    chosen = "" if faults == SWARM else f" --faults {faults}"
    return f"kelpie sim replay {address} {ReplayToken.of(report)}{chosen}"


@cache
def product_commit() -> str:
    """Return the commit of the product's checkout, ``+`` added when edited; else its version."""
    root = Path(kelpie.__file__).parents[2]
    if not (root / ".git").exists():
        return kelpie.__version__
    git = ["git", "-C", str(root), "describe", "--always", "--exclude=*", "--dirty=+"]
    try:
        done = subprocess.run(
            git, capture_output=True, text=True, timeout=_GIT_TIMEOUT_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return kelpie.__version__
    return done.stdout.strip() or kelpie.__version__
