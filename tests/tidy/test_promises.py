"""The tests keep the house rules, and every promise has one."""

from __future__ import annotations

from tests.requirements import REQUIREMENTS
from tests.tidy.promises import (
    find_short_test_names,
    find_sleeps,
    find_tests_without_assertion,
    find_unkept_promises,
    requirement_marks,
)
from tests.tidy.tree import judge, modules_under

TESTS = modules_under("tests/")


def test_every_promise_has_a_test_and_every_test_keeps_a_known_promise() -> None:
    judge("requirement", find_unkept_promises(REQUIREMENTS, requirement_marks(TESTS)))


def test_every_test_asserts_something() -> None:
    judge("no-assertion", find_tests_without_assertion(TESTS))


def test_every_test_is_named_after_an_outcome() -> None:
    judge("test-name", find_short_test_names(TESTS))


def test_no_test_sleeps() -> None:
    judge("sleep", find_sleeps(TESTS))
