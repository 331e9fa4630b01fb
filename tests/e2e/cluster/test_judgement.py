"""The judge of histories is no rubber stamp: each kind of broken promise is found."""

from __future__ import annotations

import random

import pytest

from kelpie.sim.linearizability import Judgement, check_linearizability
from kelpie.sim.specifications import CounterSpecification
from tests.e2e.cluster.writing import Told, Writers, find_lost, find_strange

TOLD = (Told(7, 1), Told(9, 2))


def find_broken(numbers: list[int], pending: set[int] | None = None) -> list[str]:
    return find_lost("r", TOLD, numbers) + find_strange("r", TOLD, numbers, pending or set())


def test_a_register_that_holds_what_was_told_breaks_nothing() -> None:
    assert find_broken([7, 9]) == []
    assert find_broken([7, 9, 8], {8, 11}) == []


@pytest.mark.parametrize(
    ("numbers", "problem"),
    [
        ([7], "9 was acknowledged at place 2 and is not there"),
        ([9, 7], "7 was acknowledged at place 1 and is not there"),
        ([7, 9, 7], "7 happened 2 times"),
        ([7, 9, 3], "[3] were never written by anybody"),
    ],
)
def test_what_is_missing_doubled_or_nobodys_is_named(numbers: list[int], problem: str) -> None:
    assert f"r: {problem}" in find_broken(numbers)


def test_a_read_of_what_was_true_before_is_a_violation() -> None:
    history = Writers(list, random.Random(0), 0).history
    for number, (kind, told) in enumerate([("add", 1), ("add", 2), ("get", 1)]):
        argument = 1 if kind == "add" else None
        token = history.call("c", "r", kind, argument, at_ns=2 * number)
        history.returned(token, told, at_ns=2 * number + 1)
    found = check_linearizability(history.operations(), CounterSpecification())
    assert found.judgement is Judgement.VIOLATION
