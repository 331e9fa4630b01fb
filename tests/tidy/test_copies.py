"""Nothing is written twice, and nothing is written for nobody."""

from __future__ import annotations

from tests.tidy.copies import find_clones, find_dead_code
from tests.tidy.tree import ROOT, judge, python_modules

JUDGED = ("src/", "demo/", "bench/", "dev")


def test_no_ten_lines_stand_in_two_places() -> None:
    judge("clone", find_clones(python_modules()))


def test_something_uses_every_function_class_and_method() -> None:
    paths = [ROOT / module.path for module in python_modules()]
    judge("dead-code", find_dead_code(paths, judged=JUDGED))
