"""Hunts a mutant: plants it in a copy of the sources and lives through seeds until one fails."""

from __future__ import annotations

import json
import os
import select
import shutil
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.measuring import VARIABLE as MEASURED
from tests.mutants.catalogue import Mutant

ROOT = Path(__file__).parents[2]
SOURCES = ROOT / "src"
SEEDS_MAX = 2_000
WORKERS = 2


class StaleMutantError(AssertionError):
    """The text that a mutant replaces does not occur exactly once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What a hunt came to.

    Attributes:
        seeds: How many seeds were needed; 0 when none of them failed.
        invariant: Which one failed.
        text: What it said.
    """

    mutant: Mutant
    seeds: int
    invariant: str
    text: str
    seconds: float


def mutate(mutant: Mutant) -> str:
    """Return the mutant's file as it says then.

    Raises:
        StaleMutantError: The text to replace does not occur exactly once.
        SyntaxError: What the mutant says does not compile.
    """
    path = SOURCES / "kelpie" / mutant.file
    source = path.read_text()
    count = source.count(mutant.before)
    if count != 1:
        raise StaleMutantError(f"{mutant.name}: {count} places in {mutant.file} say its text")
    changed = source.replace(mutant.before, mutant.after)
    compile(changed, str(path), "exec")
    return changed


def plant(mutant: Mutant, directory: Path) -> Path:
    """Copy the sources below ``directory`` with the mutant in them; return the copy."""
    copy = directory / "src"
    shutil.copytree(SOURCES, copy, ignore=shutil.ignore_patterns("__pycache__"))
    (copy / "kelpie" / mutant.file).write_text(mutate(mutant))
    return copy


def hunt(mutant: Mutant, *, seeds_max: int = SEEDS_MAX, workers: int = WORKERS) -> Found:
    """Return the first seed that fails with the mutant planted, of each worker's the smallest."""
    began_s = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="kelpie-mutant-") as place:
        sources = plant(mutant, Path(place))
        lines = live_through(mutant, sources, seeds_max=seeds_max, workers=workers)
    failed = [line for line in lines if line["invariant"]]
    first: dict[str, Any] = min(failed, key=lambda line: int(line["seed"]), default={})
    return Found(
        mutant=mutant,
        seeds=int(first["seed"]) + 1 if first else 0,
        invariant=str(first.get("invariant", "")),
        text=str(first.get("text", "")),
        seconds=time.monotonic() - began_s,
    )


def live_through(
    mutant: Mutant, sources: Path, *, seeds_max: int, workers: int
) -> list[dict[str, Any]]:
    """Live through seeds with these sources until one fails; return what each came to."""
    environment = {
        **{name: value for name, value in os.environ.items() if name != MEASURED},
        "PYTHONPATH": f"{sources}{os.pathsep}{ROOT}",
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    lines: list[dict[str, Any]] = []
    with ExitStack() as stack:
        living: dict[Any, subprocess.Popen[str]] = {}
        for worker in range(workers):
            span = (str(worker), str(seeds_max), str(workers))
            started = subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    "tests.mutants.live",
                    mutant.scenario,
                    *span,
                    *mutant.faults,
                ],
                env=environment,
                cwd=sources,
                stdout=subprocess.PIPE,
                text=True,
                bufsize=1,
            )
            living[stack.enter_context(started).stdout] = started
        _read(living, lines)
    return lines


def _read(living: dict[Any, subprocess.Popen[str]], lines: list[dict[str, Any]]) -> None:
    """Read what workers find; once one has found something, no other goes on past it."""
    found = sys.maxsize
    while living:
        for pipe in select.select(list(living), [], [])[0]:
            text = pipe.readline()
            line: dict[str, Any] = json.loads(text) if text else {}
            if line:
                lines.append(line)
            if line and line["invariant"]:
                found = min(found, int(line["seed"]))
        newest = max((int(line["seed"]) for line in lines), default=0)
        for pipe, worker in list(living.items()):
            if worker.poll() is not None or newest > found + 2 * len(living):
                worker.kill()
                rest = [json.loads(text) for text in pipe]
                lines.extend(rest)
                found = min([found, *(int(each["seed"]) for each in rest if each["invariant"])])
                del living[pipe]
