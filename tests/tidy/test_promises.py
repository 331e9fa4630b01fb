"""The tests keep the house rules, and every promise has one."""

from __future__ import annotations

from tests.requirements import DUE_DEFECTS, KNOWN_DEFECTS, REQUIREMENTS
from tests.tidy.promises import (
    find_lost_defects,
    find_short_test_names,
    find_sleeps,
    find_tests_without_assertion,
    find_unkept_promises,
    find_unsimulated,
    requirement_marks,
)
from tests.tidy.tree import judge, modules_under

TESTS = modules_under("tests/")


def test_every_promise_has_a_test_and_every_test_keeps_a_known_promise() -> None:
    judge("requirement", find_unkept_promises(REQUIREMENTS, requirement_marks(TESTS)))


def test_every_promise_on_a_critical_path_is_held_by_a_simulation() -> None:
    judge("critical-path", find_unsimulated(REQUIREMENTS, TESTS))


def test_every_known_defect_is_kept_away_or_due() -> None:
    judge("known-defect", find_lost_defects(KNOWN_DEFECTS.keys() | DUE_DEFECTS.keys()))
    assert not KNOWN_DEFECTS.keys() & DUE_DEFECTS.keys(), "a defect is kept away, or due"


def test_every_test_asserts_something() -> None:
    judge("no-assertion", find_tests_without_assertion(TESTS))


def test_every_test_is_named_after_an_outcome() -> None:
    judge("test-name", find_short_test_names(TESTS))


def test_no_test_sleeps() -> None:
    judge("sleep", find_sleeps(TESTS))
