"""Plans of faults: drawn from a seed, bounded, healed, repeated from a script."""

from __future__ import annotations

import pytest

from kelpie.ports.faults import fault, faults_from
from kelpie.sim.faults.catalogue import CATALOGUE, GROUPS, built, find_kind
from kelpie.sim.faults.plan import (
    FaultPlan,
    FaultRule,
    Injection,
    NoFaults,
    draw_rules,
)

SECOND = 1_000_000_000


class Moment:
    """Virtual time that a test moves."""

    def __init__(self) -> None:
        self.ns = 0

    def __call__(self) -> int:
        return self.ns


def plan_of(*rules: FaultRule, seed: int = 1, moment: Moment | None = None) -> FaultPlan:
    return FaultPlan(rules, seed=seed, now_ns=moment or Moment())


def rule(name: str = "storage.write_fail", rate: float = 0.5, count_max: int = 1000) -> FaultRule:
    return FaultRule(name=name, rate=rate, count_max=count_max)


def ask(plan: FaultPlan, name: str, times: int) -> list[bool]:
    return [plan.fires(name) for _ in range(times)]


def test_a_fault_point_is_false_without_a_source_and_asks_the_one_that_is_installed() -> None:
    plan = plan_of(rule(rate=1.0))
    assert not fault("storage.write_fail")
    with faults_from(plan):
        assert fault("storage.write_fail")
        assert not fault("storage.read_fail")
    assert not fault("storage.write_fail")
    assert plan.injected == {"storage.write_fail": 1}


def test_two_worlds_at_once_are_a_mistake() -> None:
    with (
        faults_from(NoFaults()),
        pytest.raises(AssertionError, match="two simulated worlds"),
        faults_from(NoFaults()),
    ):
        pass
    assert not fault("storage.write_fail")


def test_the_same_seed_injects_the_same_and_another_seed_does_not() -> None:
    runs = [ask(plan_of(rule(), seed=seed), "storage.write_fail", 200) for seed in (1, 1, 2)]
    assert runs[0] == runs[1]
    assert runs[0] != runs[2]
    assert 50 < sum(runs[0]) < 150


def test_taking_one_fault_out_of_a_plan_moves_no_other() -> None:
    both = plan_of(rule(), rule("storage.read_fail"))
    alone = plan_of(rule("storage.read_fail"))
    ask(both, "storage.write_fail", 13)
    assert ask(both, "storage.read_fail", 100) == ask(alone, "storage.read_fail", 100)


def test_a_fault_happens_within_its_window_and_no_more_often_than_it_may() -> None:
    moment = Moment()
    window = FaultRule(
        name="storage.write_fail", rate=1.0, count_max=3, from_ns=5 * SECOND, until_ns=9 * SECOND
    )
    plan = plan_of(window, moment=moment)
    assert not plan.fires("storage.write_fail")
    moment.ns = 5 * SECOND
    assert ask(plan, "storage.write_fail", 5) == [True, True, True, False, False]
    assert [each.at_ns for each in plan.log] == [5 * SECOND] * 3
    late = plan_of(window, moment=moment)
    moment.ns = 9 * SECOND
    assert not late.fires("storage.write_fail")
    plan.check_invariants()


def test_nothing_happens_once_the_world_is_healed() -> None:
    plan = plan_of(rule(rate=1.0))
    assert plan.fires("storage.write_fail")
    plan.heal()
    assert not any(ask(plan, "storage.write_fail", 50))
    assert plan.injected.total() == 1


def test_a_script_repeats_what_happened_with_the_same_amounts() -> None:
    rules = (rule("storage.latency"), rule("network.packet_loss"))
    first = plan_of(*rules, seed=7)
    amounts = [
        first.seconds("storage.latency") for _ in range(50) if first.fires("storage.latency")
    ]
    again = FaultPlan(rules, seed=7, now_ns=Moment(), script=first.log)
    repeated = [
        again.seconds("storage.latency") for _ in range(50) if again.fires("storage.latency")
    ]
    assert repeated == amounts
    assert len(set(amounts)) > 10
    assert again.log == first.log
    shorter = FaultPlan(rules, seed=7, now_ns=Moment(), script=first.log[3:])
    kept = [
        shorter.seconds("storage.latency") for _ in range(50) if shorter.fires("storage.latency")
    ]
    assert kept == amounts[3:], "what is left of a script happens as it did"


def test_occasions_are_counted_for_each_node() -> None:
    nodes = iter(["n1", "n2", "n1"])
    plan = FaultPlan(
        [rule()],
        seed=1,
        now_ns=Moment(),
        node=lambda: next(nodes),
        script=[Injection("storage.write_fail", "n1", 2, 0)],
    )
    assert ask(plan, "storage.write_fail", 3) == [False, False, True]
    assert plan.log[0].node == "n1"


def test_a_crash_ends_the_process_instead_of_answering() -> None:
    class Died(BaseException):
        pass

    def die(name: str) -> None:
        raise Died(name)

    plan = FaultPlan([rule("crash.after_write", rate=1.0)], seed=1, now_ns=Moment(), die=die)
    with pytest.raises(Died, match=r"crash\.after_write"):
        plan.fires("crash.after_write")
    assert plan.injected == {"crash.after_write": 1}


def test_a_fault_that_is_due_or_unknown_cannot_be_switched_on() -> None:
    with pytest.raises(KeyError, match="comes with MCP"):
        plan_of(rule("mcp.tool_fail"))
    with pytest.raises(KeyError, match="not in the catalogue"):
        plan_of(rule("storage.gremlins"))
    with pytest.raises(AssertionError, match="not in the catalogue"):
        plan_of().fires("storage.gremlins")


def test_a_swarm_draws_each_fault_sometimes() -> None:
    drawn: set[str] = set()
    for seed in range(200):
        rules = draw_rules(seed, duration_ns=60 * SECOND)
        assert rules == draw_rules(seed, duration_ns=60 * SECOND)
        assert len(rules) < len(built())
        assert all(0 < each.rate <= 1 and each.count_max >= 1 for each in rules)
        drawn |= {each.name for each in rules}
    assert drawn == {kind.name for kind in built()}


def test_the_catalogue_has_its_groups_and_what_is_due_has_no_place() -> None:
    assert {kind.group for kind in CATALOGUE.values()} == set(GROUPS)
    assert len(GROUPS) == 11
    assert len(CATALOGUE) >= 60
    assert len(built()) >= 35
    assert all(bool(kind.place) != bool(kind.due) for kind in CATALOGUE.values())
    assert all(kind.name == name and kind.text for name, kind in CATALOGUE.items())
    assert find_kind("storage.write_fail").reference == "WriteFail"


def test_no_faults_means_that_nothing_fires() -> None:
    calm = NoFaults()
    assert not calm.fires("storage.write_fail")
    with pytest.raises(AssertionError, match="did not fire"):
        calm.seconds("storage.latency")
    with pytest.raises(AssertionError, match="did not fire"):
        calm.below("storage.latency", 3)
