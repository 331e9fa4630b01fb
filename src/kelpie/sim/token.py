"""Replay tokens: the few words that give a run again, and say whether it is the same one."""

from __future__ import annotations

import hashlib
import re
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
_COMMIT_DIGITS: Final = 10
_DIGEST_DIGITS: Final = 6


class ReplayToken(NamedTuple):
    """Names one run: ``SEED:CONFIGURATION:COMMIT:TRACE``, or a bare ``SEED``.

    Attributes:
        seed: The run's.
        config: Its configuration's hash; empty if unknown.
        commit: The sources that ran, as `product_commit` names them.
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
    """Return the sources that run: the checkout's commit, or the version, and their digest."""
    package = Path(kelpie.__file__).parent
    digest = hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        digest.update(str(path.relative_to(package)).encode() + b"\0" + path.read_bytes())
    head = _read_head(package.parents[1]) or kelpie.__version__
    return f"{head[:_COMMIT_DIGITS]}-{digest.hexdigest()[:_DIGEST_DIGITS]}"


def _read_head(root: Path) -> str:
    """Return the commit that a checkout is at; empty when ``root`` is none."""
    git = root / ".git"
    try:
        if git.is_file():  # a worktree names its directory
            git = (root / git.read_text().partition(":")[2].strip()).resolve()
        head = (git / "HEAD").read_text().strip()
        if not head.startswith("ref: "):
            return head
        name = head.removeprefix("ref: ")
        common = git / "commondir"
        base = (git / common.read_text().strip()).resolve() if common.is_file() else git
        if (base / name).is_file():
            return (base / name).read_text().strip()
        packed = (base / "packed-refs").read_text().splitlines()
    except OSError:
        return ""
    return next((line.split()[0] for line in packed if line.endswith(f" {name}")), "")
