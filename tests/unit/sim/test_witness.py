"""The checker of versions finds what the black box finds, and what it cannot see."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest

from bench.histories import make_history, measure_witness
from kelpie.sim.history import Operation
from kelpie.sim.linearizability import Judgement, check_linearizability
from kelpie.sim.specifications import CounterSpecification, OnceSpecification
from kelpie.sim.witness import check_versions
from tests.unit.sim.histories import SUBJECTS, Subject, draw_history

pytestmark = pytest.mark.requirement("SIM-VERSIONS")

COUNTER = CounterSpecification()


def add(number: int, *, version: int | None = None, **changes: Any) -> Operation:
    """Return the n-th of a row of additions of 1 that do not overlap."""
    operation = Operation(
        client=f"c{number}",
        object="x",
        kind="add",
        argument=1,
        result=number,
        called_ns=10 * number,
        returned_ns=10 * number + 5,
        version=number if version is None else version,
    )
    return replace(operation, **changes)


def get(called_ns: int, result: int, version: int) -> Operation:
    return Operation(
        client="reader",
        object="x",
        kind="get",
        result=result,
        called_ns=called_ns,
        returned_ns=called_ns + 1,
        version=version,
    )


@pytest.mark.parametrize("subject", SUBJECTS, ids=lambda subject: subject.name)
@pytest.mark.parametrize("lies", [0.0, 0.25])
def test_whatever_it_lets_pass_the_black_box_lets_pass_too(subject: Subject, lies: float) -> None:
    verdicts: Counter[Judgement] = Counter()
    for seed in range(200):
        history = draw_history(subject, seed, count=6, lies=lies)
        report = check_versions(history, subject.specification)
        verdicts[report.judgement] += 1
        if report.judgement is Judgement.LINEARIZABLE:
            black_box = check_linearizability(history, subject.specification)
            assert black_box.judgement is Judgement.LINEARIZABLE, (seed, history)
    if lies:
        assert verdicts[Judgement.VIOLATION] > 20
    assert verdicts[Judgement.LINEARIZABLE] > 20


def test_a_history_in_the_order_of_its_commits_is_fine() -> None:
    history = [add(1), add(2), get(30, 2, 2), add(3, called_ns=40, returned_ns=45)]
    report = check_versions(history, COUNTER, commits={"x": [1, 2, 3]})
    assert report.judgement is Judgement.LINEARIZABLE
    assert report.problem == ""


@pytest.mark.parametrize(
    ("history", "commits", "problem"),
    [
        ([add(1), add(2, result=3)], [1, 2], r"add\(1\) -> 3 at version 2, where the answer is 2"),
        ([add(1), get(20, 0, 1)], [1], r"get\(\) -> 0 at version 1, where the answer is 1"),
        ([add(1), get(20, 0, 0)], [1], r"of version 0, but c1: .* version 1 had returned before"),
        ([add(1), get(3, 1, 1)], [1], r"get\(\) -> 1 saw c1: .* before its call"),
        ([add(1), add(2, version=1)], [1], "changed version 1 of x besides another"),
        ([add(1), add(2, version=3)], [1, 3], "commit 2 of x became version 3"),
        ([add(1), add(2)], [1, 1], "commit 2 of x became version 1"),
        ([add(1), add(2)], [1], "is of version 2, which was never committed"),
        ([add(1), add(2, version=3, result=2)], None, "version 2 of x is nobody's"),
        ([add(2, version=1, result=1), add(1, version=2, result=2)], [1, 2], "had returned before"),
        ([replace(add(1), version=None)], [1], "has no version"),
    ],
)
def test_what_is_wrong_is_named(
    history: list[Operation], commits: list[int] | None, problem: str
) -> None:
    stored = None if commits is None else {"x": commits}
    report = check_versions(history, COUNTER, commits=stored)
    assert report.judgement is Judgement.VIOLATION
    assert re.search(problem, report.problem)


def test_a_commit_that_nobody_accounts_for_leaves_the_answers_unknown() -> None:
    lost = replace(add(2), version=None, returned_ns=None)
    history = [add(1), lost, add(3)]
    with_commits = check_versions(history, COUNTER, commits={"x": [1, 2, 3]})
    assert with_commits.judgement is Judgement.UNKNOWN
    assert with_commits.unknown == ("x",)
    assert check_versions(history, COUNTER).judgement is Judgement.UNKNOWN
    known = [add(1), replace(lost, version=2), add(3)]
    assert check_versions(known, COUNTER).judgement is Judgement.LINEARIZABLE


def test_a_repeated_key_may_carry_the_version_that_it_saw() -> None:
    first = replace(add(1), argument=("k", 1))
    again = replace(add(2), argument=("k", 1), result=1, version=1)
    report = check_versions([first, again], OnceSpecification(), commits={"x": [1]})
    assert report.judgement is Judgement.LINEARIZABLE
    twice = replace(again, result=2, version=2)
    report = check_versions([first, twice], OnceSpecification(), commits={"x": [1, 2]})
    assert report.judgement is Judgement.VIOLATION


def test_a_hundred_thousand_operations_are_judged_in_one_pass() -> None:
    assert measure_witness(1_000).id == "sim.witness.cpu"
    history = list(make_history(100_000))
    report = check_versions(history, COUNTER)
    assert report.judgement is Judgement.LINEARIZABLE
    assert len(history) == 100_000
    history[70_000] = replace(history[70_000], result=-1)
    assert check_versions(history, COUNTER).judgement is Judgement.VIOLATION
