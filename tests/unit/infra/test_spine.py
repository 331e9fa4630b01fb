"""A plan through the real gate and the real target actor, over a target in memory."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from kelpie.actors.commands import Message, WriteEffect
from kelpie.actors.machine import Turn
from kelpie.core.errors import InputError
from kelpie.core.ids import TENANT_DEFAULT, ActorId
from kelpie.effects.gate import Gated, GatedState
from kelpie.effects.messages import (
    ApproveEffect,
    DenyEffect,
    EffectFinished,
    EffectPrepared,
    StartEffect,
)
from kelpie.effects.model import DiffCard, EffectRecord, Outcome, Preparation
from kelpie.effects.policy import Policy
from kelpie.effects.rules import EffectKind, GateRules
from kelpie.infra.config import Desired, check_units
from kelpie.infra.executor import PlanExecutor
from kelpie.infra.machine import ApplyMachine
from kelpie.infra.messages import ApplyPlan, CreatePlan, PlanState, TargetState, target_actor
from kelpie.infra.plan import Plan
from kelpie.infra.service import plan_workspace
from kelpie.infra.target import TargetMachine
from kelpie.sandbox.protocol import FileChange
from kelpie.storage.records import EffectRow, StoredActor
from tests.unit.infra.test_plan import workspaces
from tests.unit.infra.world import (
    PLAN_ACTOR,
    ROOT,
    FileMap,
    a_directory,
    a_file,
    desire,
    file_state,
    sent,
)

RULES = GateRules(
    policy=Policy(),
    kinds={
        "plan.apply": EffectKind(
            name="plan.apply", prepares=True, promise=lambda args: "once", is_grant=True
        ),
        "files.apply": EffectKind(
            name="files.apply", prepares=True, promise=lambda args: "reconcilable"
        ),
    },
)
PLANS = Gated(ApplyMachine(), RULES)
TARGETS = TargetMachine()
TARGET_ACTOR = target_actor(TENANT_DEFAULT, ROOT)


@dataclass
class House:
    """Two actors, a dispatcher that does one step when told, and a person."""

    files: FileMap = field(default_factory=FileMap)
    target: TargetState = field(default_factory=TargetState)
    plan: GatedState[PlanState] = field(default_factory=lambda: PLANS.create(PLAN_ACTOR))
    rows: dict[str, EffectRow] = field(default_factory=dict)
    writes: list[str] = field(default_factory=list)
    turns: int = 0

    def look(self, desired: Desired) -> Plan:
        return asyncio.run(
            plan_workspace(desired=desired, root=ROOT, target=self.files, holding=self.target)
        )

    def apply(self, plan: Plan) -> None:
        self.plan, self.rows = PLANS.create(PLAN_ACTOR), {}
        self.tell(CreatePlan(plan=plan))
        self.tell(ApplyPlan(run_id="run-1"))

    def tell(self, message: Message) -> None:
        """One turn of the plan's actor, freshly loaded as after a crash; then its messages."""
        decision = PLANS.decide(PLANS.load(self.stored()), message, self.turn(PLAN_ACTOR))
        self.plan = decision.state
        for command in decision.commands:
            if isinstance(command, WriteEffect):
                self.rows[command.row.effect_id] = command.row
        for send in sent(decision.commands):
            assert send.receiver == TARGET_ACTOR
            answer = TARGETS.decide(self.target, send.message, self.turn(TARGET_ACTOR))
            self.target = answer.state
            for back in sent(answer.commands):
                assert back.receiver == PLAN_ACTOR
                self.tell(back.message)

    def turn(self, actor: ActorId) -> Turn:
        self.turns += 1
        seed = self.turns.to_bytes(16, "big")
        return Turn(actor=actor, now_ms=self.turns, seed=seed, principal="person")

    def stored(self) -> StoredActor:
        is_open = set(self.plan.effects)
        return StoredActor(
            actor=PLAN_ACTOR,
            incarnation=1,
            version=1,
            schema_version=1,
            state=PLANS.dump(self.plan),
            effects=tuple(row for name, row in self.rows.items() if name in is_open),
            event_sequence=0,
            tombstoned=False,
        )

    def steps(self) -> list[EffectRecord]:
        """The effects that somebody has to do something about."""
        return [
            record
            for record in self.plan.effects.values()
            if not (record.kind == "plan.apply" and record.state == "approved")
        ]

    def step(self, record: EffectRecord, *, yes: bool = True) -> None:
        match record.state:
            case "proposed":
                self.tell(self.prepared(record))
            case "waiting":
                answer = ApproveEffect if yes else DenyEffect
                self.tell(answer(effect_id=record.effect_id))
            case "approved":
                self.tell(StartEffect(effect_id=record.effect_id, session="s"))
            case _:
                self.tell(self.finished(record))

    def prepared(self, record: EffectRecord) -> EffectPrepared:
        preparation = Preparation(card=DiffCard(title=record.summary))
        if record.kind == "plan.apply":
            executor = PlanExecutor(open_target=lambda root: self.files)
            prepared = asyncio.run(executor.prepare(PLAN_ACTOR, record))
            if isinstance(prepared, Outcome):
                return EffectPrepared(effect_id=record.effect_id, failure=prepared)
            preparation = prepared
        return EffectPrepared(effect_id=record.effect_id, preparation=preparation)

    def finished(self, record: EffectRecord) -> EffectFinished:
        change = FileChange(**record.args["changes"][0])
        before = self.files.states.get(change.path)
        outcome = Outcome(status="voided", error="the target moved")
        if (before.digest if before else "") == change.before:
            self.files.apply(change)
            self.writes.append(change.path)
            outcome = Outcome(status="done")
        return EffectFinished(effect_id=record.effect_id, attempt=record.attempt, outcome=outcome)

    def run(self) -> PlanState:
        while steps := self.steps():
            self.step(steps[0])
        return self.plan.inner


SITE = desire(a_directory("etc", "etc"), a_file("motd", "etc/motd"), a_file("other", "other"))


def test_one_yes_carries_a_whole_plan_out_and_the_next_plan_is_empty() -> None:
    house = House()
    house.apply(house.look(SITE))
    asked: set[str] = set()
    while steps := house.steps():
        asked |= {record.kind for record in steps if record.state == "waiting"}
        house.step(steps[0])
    assert asked == {"plan.apply"}
    assert house.plan.inner.status == "applied"
    assert house.plan.effects == {}
    assert sorted(house.writes) == ["etc", "etc/motd", "other"]
    assert (house.target.holder, house.target.revision) == ("", 1)
    assert not house.look(SITE).has_changes


def test_a_no_touches_nothing_and_frees_the_target() -> None:
    house = House()
    house.apply(house.look(SITE))
    while steps := house.steps():
        house.step(steps[0], yes=False)
    assert house.plan.inner.status == "denied"
    assert house.files.states == {}
    assert house.target.holder == ""


def test_a_target_that_moves_before_the_question_ends_the_plan() -> None:
    house = House()
    house.apply(house.look(SITE))
    house.files.states["other"] = file_state("somebody else's")
    state = house.run()
    assert (state.status, state.units["other"].status) == ("failed", "skipped")
    assert "'other' changed after the plan was made" in state.note
    assert house.writes == []


def test_a_target_that_moves_after_the_yes_voids_its_unit_alone() -> None:
    house = House()
    house.apply(house.look(SITE))
    while house.plan.inner.status != "applying":
        house.step(house.steps()[0])
    house.files.states["other"] = file_state("somebody else's")
    state = house.run()
    assert state.status == "failed"
    assert "something else changed the target" in state.note
    assert {name: run.status for name, run in state.units.items()} == {
        "etc": "done",
        "other": "voided",
        "motd": "done",
    }
    assert house.files.states["other"] == file_state("somebody else's")
    assert set(house.target.applied) == {"etc", "etc/motd"}


@settings(deadline=None)
@given(st.lists(workspaces(), min_size=1, max_size=3), st.data())
def test_any_history_of_workspaces_in_any_order_of_steps_converges(
    history: list[Desired], data: Any
) -> None:
    house = House()
    for desired in history:
        try:
            check_units(desired.units, desired.source)
            plan = house.look(desired)
        except InputError:
            continue
        house.apply(plan)
        house.writes.clear()
        while steps := house.steps():
            house.step(data.draw(st.sampled_from(steps)))
        assert house.plan.inner.status == "applied"
        assert len(set(house.writes)) == len(house.writes)
        again = house.look(desired)
        assert not again.has_changes
        assert again.forgets == ()
