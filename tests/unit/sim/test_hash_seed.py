"""A command line that simulates has a fixed hash seed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from kelpie.sim.hash_seed import HASH_SEED, plan_restart

PROGRAM = """
import os, sys
from kelpie.sim.hash_seed import plan_restart
restart = plan_restart(os.environ, sys.orig_argv[1:])
if restart is not None:
    os.execve(sys.executable, restart.argv, restart.environment)
print(sys.flags.hash_randomization, hash("a word"))
"""


def test_an_interpreter_with_a_fixed_seed_is_left_alone() -> None:
    assert plan_restart({"PYTHONHASHSEED": "0"}, ["-m", "kelpie"]) is None
    assert plan_restart({"PYTHONHASHSEED": "77"}, ["-m", "kelpie"]) is None


def test_an_interpreter_without_one_starts_again_with_the_same_arguments() -> None:
    for environment in ({}, {"PYTHONHASHSEED": "random"}):
        restart = plan_restart({"HOME": "/", **environment}, ["-m", "kelpie", "sim"])
        assert restart is not None
        assert restart.argv == (sys.executable, "-m", "kelpie", "sim")
        assert restart.environment == {"HOME": "/", "PYTHONHASHSEED": HASH_SEED}


def test_two_restarted_interpreters_hash_alike() -> None:
    root = Path(__file__).parents[3]
    environment = {**os.environ, "PYTHONPATH": str(root / "src")}
    environment.pop("PYTHONHASHSEED", None)
    command = [sys.executable, "-c", PROGRAM]
    shown = {
        subprocess.run(command, env=environment, capture_output=True, check=True).stdout
        for _ in range(2)
    }
    assert len(shown) == 1, shown
