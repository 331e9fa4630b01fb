"""The black-box checker agrees with trying every order, and explains what it finds."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import pytest

from kelpie.sim.history import Operation
from kelpie.sim.linearizability import Judgement, check_linearizability
from kelpie.sim.specifications import (
    CounterSpecification,
    MapSpecification,
    OnceSpecification,
    RegisterSpecification,
)
from tests.unit.sim.histories import SUBJECTS, Subject, draw_history, is_linearizable

pytestmark = pytest.mark.requirement("SIM-LINEARIZABLE")

REGISTER = RegisterSpecification()
SEEDS = 150


def done(  # noqa: PLR0917  a history reads as a table
    client: str,
    kind: str,
    argument: Any,
    result: Any,
    called_ns: int,
    returned_ns: int | None,
    name: str = "x",
) -> Operation:
    return Operation(
        client=client,
        object=name,
        kind=kind,
        argument=argument,
        result=result,
        called_ns=called_ns,
        returned_ns=returned_ns,
    )


@pytest.mark.parametrize("subject", SUBJECTS, ids=lambda subject: subject.name)
@pytest.mark.parametrize("lies", [0.0, 0.25])
def test_it_agrees_with_trying_every_order(subject: Subject, lies: float) -> None:
    verdicts: Counter[Judgement] = Counter()
    for seed in range(SEEDS):
        history = draw_history(subject, seed, count=4 + seed % 3, lies=lies)
        report = check_linearizability(history, subject.specification)
        expected = is_linearizable(history, subject.specification)
        assert (report.judgement is Judgement.LINEARIZABLE) == expected, (seed, history)
        assert (report.counterexample is None) == expected
        verdicts[report.judgement] += 1
    assert verdicts[Judgement.UNKNOWN] == 0
    if lies:
        assert min(verdicts[Judgement.LINEARIZABLE], verdicts[Judgement.VIOLATION]) > SEEDS // 6
    else:
        assert verdicts[Judgement.LINEARIZABLE] == SEEDS


@pytest.mark.parametrize("subject", SUBJECTS, ids=lambda subject: subject.name)
def test_a_counterexample_contradicts_itself_and_needs_every_answer(subject: Subject) -> None:
    found = 0
    for seed in range(SEEDS):
        history = draw_history(subject, seed, count=6, lies=0.3)
        counterexample = check_linearizability(history, subject.specification).counterexample
        if counterexample is None:
            continue
        found += 1
        kept = list(counterexample.operations)
        assert not is_linearizable(kept, subject.specification)
        assert set(kept) <= set(history)
        assert counterexample.others == len(history) - len(kept)
        for index, operation in enumerate(kept):
            forgotten = [*kept[:index], replace(operation, returned_ns=None), *kept[index + 1 :]]
            end_ns = max(each.returned_ns or 0 for each in kept)
            others = [each for each in history if each not in kept and each.called_ns <= end_ns]
            others = [replace(each, returned_ns=None) for each in others]
            assert is_linearizable([*forgotten, *others], subject.specification)
    assert found > SEEDS // 6


def test_a_stale_read_is_explained_by_the_three_operations_that_matter() -> None:
    history = [
        done("ann", "write", 1, None, 0, 10_000_000),
        done("ben", "write", 2, None, 20_000_000, 30_000_000),
        done("cay", "read", None, 2, 31_000_000, 32_000_000),
        done("dan", "read", None, 1, 40_000_000, 50_000_000),
        done("eve", "write", 3, None, 45_000_000, None),
        done("fay", "write", 4, None, 60_000_000, 70_000_000),
    ]
    report = check_linearizability(history, REGISTER)
    assert report.judgement is Judgement.VIOLATION
    assert str(report.counterexample) == (
        "no order of these operations on x explains every answer:\n"
        "  [0 .. 10] ms  ann: x.write(1) -> None\n"
        "  [20 .. 30] ms  ben: x.write(2) -> None\n"
        "  [40 .. 50] ms  dan: x.read() -> 1\n"
        "  (3 more of this object make no difference)\n"
        "  furthest explanation: ann: x.write(1) -> None, ben: x.write(2) -> None; "
        "then the state is 2\n"
        "  which leaves: dan: x.read() -> 1"
    )


def test_overlapping_operations_may_take_effect_in_any_order() -> None:
    history = [
        done("ann", "write", 1, None, 0, 10),
        done("ben", "write", 2, None, 0, 10),
        done("cay", "read", None, 1, 11, 12),
    ]
    assert check_linearizability(history, REGISTER).judgement is Judgement.LINEARIZABLE
    history.append(done("dan", "read", None, 2, 13, 14))
    assert check_linearizability(history, REGISTER).judgement is Judgement.VIOLATION


def test_a_pending_operation_may_have_happened_and_may_not() -> None:
    lost = done("ann", "write", 1, None, 0, None)
    seen = done("ben", "read", None, 1, 5, 6)
    unseen = done("cay", "read", None, None, 7, 8)
    for reads in ([seen], [unseen], []):
        assert check_linearizability([lost, *reads], REGISTER).judgement is Judgement.LINEARIZABLE
    assert check_linearizability([lost, seen, unseen], REGISTER).judgement is Judgement.VIOLATION
    early = done("dan", "read", None, 1, -5, -1)
    assert check_linearizability([lost, early], REGISTER).judgement is Judgement.VIOLATION


def test_objects_are_judged_apart() -> None:
    fine = done("ann", "write", 1, None, 0, 10, name="a")
    wrong = done("ben", "read", None, 1, 20, 30, name="b")
    report = check_linearizability([fine, wrong], REGISTER)
    assert report.counterexample is not None
    assert report.counterexample.object == "b"
    assert report.counterexample.operations == (wrong,)


def test_over_its_budget_the_answer_is_unknown_and_never_a_pass() -> None:
    crowd = [done(f"c{n}", "write", n, None, 0, 1_000) for n in range(12)]
    crowd.append(done("late", "read", None, 99, 2_000, 3_000))
    report = check_linearizability(crowd, REGISTER, budget_steps=5_000)
    assert report.judgement is Judgement.UNKNOWN
    assert report.unknown == ("x",)
    certain = [done("ann", "read", None, 7, 0, 1, name="y")]
    report = check_linearizability([*crowd, *certain], REGISTER, budget_steps=5_000)
    assert report.judgement is Judgement.VIOLATION
    assert report.unknown == ("x",)


def test_the_memory_of_what_was_tried_makes_long_histories_short_work() -> None:
    history = []
    for number in range(2_000):
        start = 10 * number
        history.append(done(f"w{number}", "add", 1, number + 1, start, start + 25))
    report = check_linearizability(history, CounterSpecification())
    assert report.judgement is Judgement.LINEARIZABLE
    assert report.steps < 20_000


@pytest.mark.parametrize(
    "specification",
    [RegisterSpecification(), CounterSpecification(), MapSpecification(), OnceSpecification()],
)
def test_an_operation_that_no_object_has_is_a_mistake_in_the_test(specification: Any) -> None:
    with pytest.raises(ValueError, match="has no operation 'fly'"):
        check_linearizability([done("ann", "fly", None, None, 0, 1)], specification)


def test_a_repeated_key_changes_nothing_and_answers_the_same_again() -> None:
    once = OnceSpecification()
    history = [
        done("ann", "add", ("k", 5), 5, 0, 10),
        done("ben", "add", ("l", 1), 6, 20, 30),
        done("ann", "add", ("k", 5), 5, 40, 50),
        done("cay", "get", None, 6, 60, 70),
    ]
    assert check_linearizability(history, once).judgement is Judgement.LINEARIZABLE
    history[-1] = replace(history[-1], result=11)
    assert check_linearizability(history, once).judgement is Judgement.VIOLATION
