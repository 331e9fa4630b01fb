"""The interpreter's hash seed: fixed for command lines that run simulations.

A trace does not depend on it where the product alone runs. A user's actor may keep sets, whose
order does.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

HASH_SEED: Final = "0"
VARIABLE: Final = "PYTHONHASHSEED"


class Restart(NamedTuple):
    """The same command with a fixed hash seed: what to hand to ``os.execve``."""

    argv: tuple[str, ...]
    environment: dict[str, str]


def plan_restart(environment: Mapping[str, str], arguments: Sequence[str]) -> Restart | None:
    """Return how to start this interpreter again with a fixed hash seed; None when it has one.

    Args:
        environment: This process's.
        arguments: What followed the interpreter on its command line (``sys.orig_argv[1:]``).
    """
    if environment.get(VARIABLE, "random") != "random":
        return None
    argv = (sys.executable, *arguments)
    return Restart(argv, {**environment, VARIABLE: HASH_SEED})
