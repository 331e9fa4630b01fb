"""Invariants of plans: what was approved is what is applied, in the order that it depends on."""

from __future__ import annotations

from typing import Final, NamedTuple

import msgspec

from kelpie.effects.model import EffectRecord
from kelpie.infra.messages import (
    PLAN_TYPE,
    UNIT_STATUSES_GOOD,
    PlanState,
)
from kelpie.infra.plan import Plan, digest_plan
from kelpie.infra.wishes import GRANT_KIND, unit_of_ref
from kelpie.sim.view import View

_decode_state: Final = msgspec.msgpack.Decoder(PlanState).decode
_decode_effect: Final = msgspec.msgpack.Decoder(EffectRecord).decode


class ReplanSeen(NamedTuple):
    """The plan that was made right after another was applied."""

    root: str
    has_changes: bool


def _state_of(view: View) -> PlanState | None:
    """Return the plan that the last commit wrote, if it wrote one."""
    commit = view.last.commit if view.last else None
    if commit is None or commit.actor.type != PLAN_TYPE or not commit.state:
        return None
    return _decode_state(commit.state)


class UnitsFollowTheirDependencies:
    """A unit's effect exists only once every unit that it depends on is done."""

    name = "unit-after-its-dependencies"

    def __init__(self) -> None:
        self._done: set[tuple[str, str]] = set()
        self._plans: dict[str, Plan] = {}

    def check(self, view: View) -> str | None:
        """Judge the units that the last commit asks effects for."""
        state = _state_of(view)
        if state is not None and state.plan is not None:
            assert state.plan_id, "a plan has an id"
            assert len(state.plan.units) >= len(state.units), "only units of the plan run"
            self._plans[state.plan_id] = state.plan
            for unit_id, run in state.units.items():
                if run.status in UNIT_STATUSES_GOOD:
                    self._done.add((state.plan_id, unit_id))
        for row in view.last.commit.effects if view.last else ():
            record = _decode_effect(row.body)
            plan_id, unit_id = row.actor.key, unit_of_ref(record.ref)
            if row.actor.type != PLAN_TYPE or not unit_id or row.state != "started":
                continue
            missing = self._missing(plan_id, unit_id)
            if missing:
                return f"unit {unit_id!r} of {plan_id} started before {', '.join(missing)}"
        return None

    def _missing(self, plan_id: str, unit_id: str) -> list[str]:
        plan = self._plans.get(plan_id)
        for unit in plan.units if plan else ():
            if unit.unit_id == unit_id:
                return [each for each in unit.depends_on if (plan_id, each) not in self._done]
        return [f"the plan has a unit {unit_id!r}"]


class AppliedIsApproved:
    """A plan's content never changes, and every unit that starts is as the plan says."""

    name = "applied-plan-is-the-approved-one"

    def __init__(self) -> None:
        self._plans: dict[str, Plan] = {}

    def check(self, view: View) -> str | None:
        """Judge the last commit of a plan."""
        state = _state_of(view)
        if state is not None and state.plan is not None:
            assert state.plan_id, "a plan has an id"
            assert state.plan.digest, "a plan that was made has a digest"
            first = self._plans.setdefault(state.plan_id, state.plan)
            if digest_plan(state.plan) != state.plan.digest or first != state.plan:
                return f"{state.plan_id} is not the plan any more that was made"
        for row in view.last.commit.effects if view.last else ():
            if row.actor.type == PLAN_TYPE:
                problem = self._judge(row.actor.key, _decode_effect(row.body))
                if problem is not None:
                    return f"{row.actor.key}: {problem}"
        return None

    def _judge(self, plan_id: str, record: EffectRecord) -> str | None:
        plan = self._plans.get(plan_id)
        if plan is None:
            return "there are effects of a plan that was never made"
        if record.kind == GRANT_KIND:
            if record.args["plan"] != plan.digest:
                return f"a person is asked about {record.args['plan']}, the plan is {plan.digest}"
            return None
        unit_id = unit_of_ref(record.ref)
        unit = next((unit for unit in plan.units if unit.unit_id == unit_id), None)
        if unit is None or unit.change is None:
            return f"effect {record.ref!r} is of no unit that changes anything"
        if record.args["changes"] != [msgspec.to_builtins(unit.change)]:
            return f"unit {unit_id!r} is carried out otherwise than planned"
        return None


class ReplansAreEmpty:
    """Planning again right after a plan was applied finds nothing to do."""

    name = "re-plan-is-empty"

    def check(self, view: View) -> str | None:
        """Judge what was planned again."""
        for again in view.said.get("re-planned", ()):
            assert isinstance(again, ReplanSeen), "who plans again says what there is to do"
            if again.has_changes:
                return f"{again.root}: a plan was applied, and planning again is not empty"
        return None
