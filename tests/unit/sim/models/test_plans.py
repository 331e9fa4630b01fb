"""Plans keep their laws in every order of events, and a plan that breaks one is caught."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from kelpie.actors.commands import Send
from kelpie.actors.machine import Decision, Turn
from kelpie.effects import messages as m
from kelpie.effects.gate import Gated
from kelpie.infra.messages import (
    AcquireTarget,
    PlanState,
    ReleaseTarget,
    TargetAcquired,
    TargetState,
)
from kelpie.infra.plan import Plan, digest_plan
from kelpie.infra.target import TargetMachine
from kelpie.sim.explore import Exploration, explore
from kelpie.sim.models.plans import Plans, make_example_plan, plan_model

pytestmark = pytest.mark.requirement("K-07")


def test_two_plans_for_one_target_keep_every_law() -> None:
    found = explore(plan_model())
    assert found.outcome == "holds", str(found.broken)
    assert set(found.taken) == {
        *("apply", "ask", "answer", "yes", "no", "expire", "unit", "late unit", "resolve"),
    }
    assert found.states > 2_000
    assert 0 < found.goals < found.states


def test_the_example_has_a_dependency_to_break() -> None:
    units = {unit.unit_id: unit.depends_on for unit in make_example_plan().units}
    assert units == {"directory": (), "page": ("directory",), "note": ()}


# --- saboteurs ----------------------------------------------------------------------------------


def answer_for_people(
    gate: Gated[PlanState], state: Plans, message: Any, turn: Turn
) -> Decision[Plans]:
    """Say yes to a plan as soon as it asks."""
    decision = gate.decide(state, message, turn)
    for record in decision.state.effects.values():
        if isinstance(message, TargetAcquired) and record.state == "waiting":
            yes = m.ApproveEffect(effect_id=record.effect_id)
            after = gate.decide(decision.state, yes, turn)
            commands = (*decision.commands, *after.commands)
            return Decision(state=after.state, commands=commands)
    return decision


def keep_the_target(
    gate: Gated[PlanState], state: Plans, message: Any, turn: Turn
) -> Decision[Plans]:
    """Never let go of the target."""
    decision = gate.decide(state, message, turn)
    kept = tuple(
        command
        for command in decision.commands
        if not (isinstance(command, Send) and isinstance(command.message, ReleaseTarget))
    )
    return Decision(state=decision.state, commands=kept)


def forget_dependencies(plan: Plan) -> Plan:
    units = tuple(msgspec.structs.replace(unit, depends_on=()) for unit in plan.units)
    loose = msgspec.structs.replace(plan, units=units)
    return msgspec.structs.replace(loose, digest=digest_plan(loose))


def let_everybody_in(
    machine: TargetMachine, state: TargetState, message: Any, turn: Turn
) -> Decision[TargetState]:
    """Give a held target to whoever asks."""
    if isinstance(message, AcquireTarget):
        state = msgspec.structs.replace(state, holder="", holder_run="")
    return machine.decide(state, message, turn)


def judge_broken(found: Exploration, law: str, *steps: str) -> None:
    assert found.broken is not None
    assert found.broken.law == law, str(found.broken)
    assert found.broken.trace == steps, str(found.broken)


ACQUIRED = (
    "plan-a is applied",
    "AcquireTarget of plan-a arrives",
    "TargetAcquired reaches plan-a",
)


def test_a_unit_that_starts_without_a_yes_is_found() -> None:
    found = explore(plan_model(decide_plan=answer_for_people))
    law = "units start when they may"
    judge_broken(found, law, *ACQUIRED, "plan-a's unit/directory ends done")
    assert "nobody had said yes" in str(found.broken)


def test_a_unit_that_starts_before_what_it_needs_is_found() -> None:
    found = explore(plan_model(order=forget_dependencies))
    yes = "yes to plan-a's grant"
    judge_broken(found, "units start in order", *ACQUIRED, yes, "plan-a's unit/page ends done")
    assert "page of plan-a started before directory was done" in str(found.broken)


def test_two_plans_that_hold_one_target_are_found() -> None:
    found = explore(plan_model(decide_target=let_everybody_in))
    assert found.broken is not None
    assert found.broken.law == "units start when they may"
    assert "did not hold the target" in found.broken.problem
    assert len(found.broken.trace) == 7


def test_a_plan_that_keeps_the_target_for_good_is_found() -> None:
    found = explore(plan_model(decide_plan=keep_the_target))
    assert found.broken is not None
    assert found.broken.law in {"deadlock", "goal within reach"}
    assert "the target is held by plan-a" in str(found.broken)
