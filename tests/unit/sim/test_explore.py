"""The model checker finds the nearest violation, and never takes a part for the whole."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import NamedTuple

import pytest

from kelpie.sim.explore import Action, Exploration, Law, Model, StepLaw, explore

pytestmark = pytest.mark.requirement("SIM-EXPLORED")


class Jugs(NamedTuple):
    """Two jugs, of three and of five litres."""

    small: int = 0
    large: int = 0


def pour(jugs: Jugs) -> Iterable[Action]:
    small, large = jugs
    yield Action("fill", "fill the small jug", lambda: Jugs(3, large))
    yield Action("fill", "fill the large jug", lambda: Jugs(small, 5))
    yield Action("empty", "empty the small jug", lambda: Jugs(0, large))
    yield Action("empty", "empty the large jug", lambda: Jugs(small, 0))
    over = min(small, 5 - large)
    yield Action("pour", "pour small into large", lambda: Jugs(small - over, large + over))
    back = min(large, 3 - small)
    yield Action("pour", "pour large into small", lambda: Jugs(small + back, large - back))


def test_the_first_violation_has_the_shortest_trace_there_is() -> None:
    no_four = Law("no four", lambda jugs: "there are four litres" if jugs.large == 4 else None)
    found = explore(Model(name="jugs", initial=[Jugs()], actions=pour, laws=[no_four]))
    assert found.outcome == "broken"
    assert str(found.broken) == (
        "no four: there are four litres\n"
        "  1. fill the large jug\n"
        "  2. pour large into small\n"
        "  3. empty the small jug\n"
        "  4. pour large into small\n"
        "  5. fill the large jug\n"
        "  6. pour large into small\n"
        "  => Jugs(small=3, large=4)"
    )


def test_every_state_is_seen_and_every_kind_of_action_counted() -> None:
    found = explore(Model(name="jugs", initial=[Jugs()], actions=pour))
    assert found.outcome == "holds"
    assert found.states == 16
    assert found.steps == 16 * 6
    assert set(found.taken) == {"fill", "empty", "pour"}
    assert found.taken["pour"] == 32


def test_a_search_that_its_bound_cut_off_holds_nothing() -> None:
    found = explore(Model(name="jugs", initial=[Jugs()], actions=pour), states_max=10)
    assert found.outcome == "unknown"
    assert found.states == 10
    assert found.broken is None


def test_a_violation_is_one_also_when_the_search_is_cut_off_later() -> None:
    full = Law("not full", lambda jugs: "it is full" if jugs.small == 3 else None)
    found = explore(Model(name="jugs", initial=[Jugs()], actions=pour, laws=[full]), states_max=2)
    assert found.outcome == "broken"
    assert found.broken is not None
    assert found.broken.trace == ("fill the small jug",)


def count_to(last: int) -> Model[int]:
    return Model(
        name="count",
        initial=[0],
        actions=lambda n: [Action("up", f"count {n + 1}", lambda: n + 1)] if n < last else [],
        is_over=lambda n: n == 3,
    )


def test_a_state_in_which_nothing_can_happen_is_a_deadlock_unless_all_is_over() -> None:
    assert explore(count_to(3)).outcome == "holds"
    found = explore(count_to(2))
    assert found.broken is not None
    assert found.broken.law == "deadlock"
    assert found.broken.trace == ("count 1", "count 2")


def test_a_law_of_steps_sees_before_and_after() -> None:
    def problem(before: int, text: str, after: int) -> str | None:
        return f"{text}: {before} to {after}" if after == 2 else None

    model = Model(
        name="count",
        initial=[0],
        actions=lambda n: [Action("up", f"count {n + 1}", lambda: n + 1)],
        step_laws=[StepLaw("never two", problem)],
    )
    found = explore(model)
    assert found.broken is not None
    assert found.broken.problem == "count 2: 1 to 2"
    assert found.broken.end == "2"


def test_an_assertion_of_the_code_under_test_is_a_violation_with_its_trace() -> None:
    def divide(n: int) -> int:
        assert n != 2, "two is not divided"
        return n + 1

    def actions(n: int) -> Iterable[Action]:
        return [Action("divide", f"divide {n}", lambda: divide(n))]

    found = explore(Model(name="divide", initial=[0], actions=actions))
    assert found.broken is not None
    assert (found.broken.law, found.broken.problem) == ("assertion", "two is not divided")
    assert found.broken.trace == ("divide 0", "divide 1", "divide 2")


def wander(place: str) -> Iterable[Action]:
    ways = {"home": ["road"], "road": ["home", "hole", "hill"], "hill": ["road"], "hole": ["hole"]}
    return [Action("walk", f"go to the {to}", partial(str, to)) for to in ways[place]]


def test_a_state_from_which_no_goal_can_be_reached_is_found() -> None:
    model = Model(
        name="walk", initial=["home"], actions=wander, is_goal=lambda place: place == "hill"
    )
    found = explore(model)
    assert found.broken is not None
    assert found.broken.law == "goal within reach"
    assert found.broken.trace == ("go to the road", "go to the hole")
    assert found.goals == 1


def wash(cups: tuple[int, ...]) -> Iterable[Action]:
    for index, dirt in enumerate(cups):
        after = (*cups[:index], (dirt + 1) % 3, *cups[index + 1 :])
        yield Action("use", f"use cup {index}", partial(tuple, after))


def sorted_cups(cups: Iterable[int]) -> tuple[int, ...]:
    return tuple(sorted(cups))


def explore_cups(*, by_name: bool) -> Exploration:
    all_dirty = Law("one clean", lambda cups: "no clean cup" if min(cups) > 1 else None)
    canonical = tuple if by_name else sorted_cups
    return explore(
        Model(
            name="cups",
            initial=[(0, 0, 0, 0)],
            actions=wash,
            canonical=canonical,
            laws=[all_dirty],
        )
    )


def test_symmetric_states_are_explored_once_and_the_verdict_is_the_same() -> None:
    apart, together = explore_cups(by_name=True), explore_cups(by_name=False)
    assert apart.broken is not None
    assert together.broken is not None
    assert together.states < apart.states / 3
    assert len(together.broken.trace) == len(apart.broken.trace) == 8
