"""Starts the suites' own programs as processes."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Generator

ROOT = Path(__file__).parents[3]


def names_in(folder: Path) -> list[str]:
    """The names of everything directly in a folder, in order."""
    return sorted(path.name for path in folder.iterdir())


@contextmanager
def running(module: str, *arguments: str) -> Generator[subprocess.Popen[str], None, None]:
    """Run ``python -m module`` with its output in a pipe; kill it at the end."""
    environment = {**os.environ, "PYTHONPATH": f"{ROOT / 'src'}:{ROOT}"}
    process = subprocess.Popen(
        [sys.executable, "-m", module, *arguments],
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
        cwd=ROOT,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()
