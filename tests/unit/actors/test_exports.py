"""The public names are frozen: taking one away, or adding one, is a decision."""

from __future__ import annotations

import subprocess
import sys

import pytest

import kelpie

FROZEN = [
    *("Actor", "ApprovalInfo", "CallHandle", "CallInfo", "Context", "Event", "KelpieError"),
    *("Remote", "RunInfo", "Runtime", "Settled", "State"),
    "__version__",
    *("command", "connect", "outcome", "query", "ref", "reminder", "upcast"),
]


@pytest.mark.requirement("ACTOR-API-FROZEN")
def test_the_public_names_are_the_frozen_ones_and_all_can_be_had() -> None:
    assert kelpie.__all__ == FROZEN
    assert dir(kelpie) == sorted(FROZEN)
    for name in FROZEN:
        assert getattr(kelpie, name) is not None


def test_an_unknown_name_is_an_attribute_error() -> None:
    assert not hasattr(kelpie, "Akka")


def test_importing_the_package_imports_nothing_else() -> None:
    program = "import sys, kelpie; print([m for m in sys.modules if m.startswith('kelpie.')])"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
