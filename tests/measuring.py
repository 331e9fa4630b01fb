"""Lets the programs that a test starts be measured with it: their lines count as run, too."""

from __future__ import annotations

import os

VARIABLE = "COVERAGE_PROCESS_CONFIG"
"""Set by coverage while it measures; a program without it measures nothing."""


def measuring() -> dict[str, str]:
    """Return what a program's environment needs for it; empty while nothing is measured."""
    return {VARIABLE: os.environ[VARIABLE]} if VARIABLE in os.environ else {}
