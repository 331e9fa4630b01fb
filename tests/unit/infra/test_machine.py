from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kelpie.actors.commands import Emit, Message, PutListItem, Reply
from kelpie.actors.machine import Decision
from kelpie.core import limits
from kelpie.core.errors import (
    ConflictError,
    InvalidFieldError,
    NotFoundError,
    StoreVersionError,
)
from kelpie.core.ids import TENANT_DEFAULT
from kelpie.effects.messages import CloseGrant, EffectApproved, EffectSettled, EffectWaiting
from kelpie.effects.model import DiffCard, Effect, wish_digest
from kelpie.infra.config import UnitSpec
from kelpie.infra.machine import ApplyMachine
from kelpie.infra.messages import (
    AcquireTarget,
    ApplyPlan,
    CreatePlan,
    PlanState,
    ReleaseTarget,
    ShowPlan,
    ShowTarget,
    TargetAcquired,
    TargetRefused,
    target_actor,
)
from kelpie.infra.plan import AppliedUnit, Plan
from kelpie.storage.records import EffectState, StoredActor
from tests.unit.infra.world import (
    PLAN_ACTOR,
    PLAN_ID,
    ROOT,
    FileMap,
    a_directory,
    a_file,
    applied,
    desire,
    events,
    gone,
    record,
    sent,
    turn,
)

MACHINE = ApplyMachine()
CARD = DiffCard(title="a plan")
GRANT_ID = "effect-grant"


def make(
    *units: UnitSpec,
    target: FileMap | None = None,
    previous: dict[str, AppliedUnit] | None = None,
) -> Plan:
    return asyncio.run((target or FileMap()).look(desire(*units), previous or {}))


class Run:
    """A plan's actor under test: keeps the state and everything it asked for."""

    def __init__(self, plan: Plan) -> None:
        self.state = MACHINE.create(PLAN_ACTOR)
        self.effects: list[Effect] = []
        self.log: list[str] = []
        self.tell(CreatePlan(plan=plan))

    def tell(self, message: Message) -> Decision[PlanState]:
        # Through the codec each time: every turn may be the first after a crash.
        loaded = MACHINE.load(stored(self.state))
        decision = MACHINE.decide(loaded, message, turn())
        self.state = decision.state
        self.effects += [each for each in decision.commands if isinstance(each, Effect)]
        self.log += events(decision.commands)
        return decision

    def begin(self) -> Decision[PlanState]:
        self.tell(ApplyPlan(run_id="run-1"))
        return self.tell(TargetAcquired(run_id="run-1"))

    def approve(self) -> Decision[PlanState]:
        self.begin()
        self.tell(EffectWaiting(effect_id=GRANT_ID, ref="grant", card=CARD))
        return self.tell(EffectApproved(effect_id=GRANT_ID, ref="grant"))

    def settle(
        self, ref: str, state: EffectState = "done", *, error: str = ""
    ) -> Decision[PlanState]:
        settled = record(ref, state, error=error)
        return self.tell(EffectSettled(effect_id=settled.effect_id, ref=ref, record=settled))

    @property
    def status(self) -> str:
        return self.state.status

    def statuses(self) -> dict[str, str]:
        return {name: run.status for name, run in self.state.units.items()}

    def started(self) -> list[str]:
        return [effect.ref for effect in self.effects if effect.kind == "files.apply"]


def stored(state: PlanState, schema_version: int = 1) -> StoredActor:
    return StoredActor(
        actor=PLAN_ACTOR,
        incarnation=1,
        version=1,
        schema_version=schema_version,
        state=MACHINE.dump(state),
        effects=(),
        event_sequence=0,
        tombstoned=False,
    )


ETC = a_directory("etc", "etc")
MOTD = a_file("motd", "etc/motd")
OTHER = a_file("other", "other")


def released(decision: Decision[PlanState]) -> ReleaseTarget:
    (send,) = sent(decision.commands)
    assert send.receiver == target_actor(TENANT_DEFAULT, ROOT)
    assert isinstance(send.message, ReleaseTarget)
    return send.message


def test_a_plan_goes_from_created_to_applied() -> None:
    plan = make(ETC, MOTD)
    run = Run(plan)
    (send,) = sent(run.tell(ApplyPlan(run_id="run-1")).commands)
    assert send.message == AcquireTarget(root=ROOT, plan_id=PLAN_ID, run_id="run-1", revision=0)
    run.tell(TargetAcquired(run_id="run-1"))
    (grant,) = run.effects
    assert (grant.kind, grant.ref) == ("plan.apply", "grant")
    run.tell(EffectWaiting(effect_id=GRANT_ID, ref="grant", card=CARD))
    assert run.status == "waiting"
    run.tell(EffectApproved(effect_id=GRANT_ID, ref="grant"))
    assert run.started() == ["unit/etc"]
    run.settle("unit/etc")
    assert run.started() == ["unit/etc", "unit/motd"]
    last = run.settle("unit/motd")
    assert run.status == "applied"
    assert CloseGrant(ref="grant") in last.commands
    assert {unit.path: unit.unit_id for unit in released(last).written} == {
        "etc": "etc",
        "etc/motd": "motd",
    }
    assert run.log == [
        "plan.created",
        "plan.applying",
        "plan.waiting",
        "plan.approved",
        "unit.started",
        "unit.finished",
        "unit.started",
        "unit.finished",
        "plan.finished",
    ]


def test_the_approval_covers_exactly_the_unit_effects() -> None:
    run = Run(make(ETC, MOTD, OTHER))
    run.approve()
    for ref in ("unit/etc", "unit/other", "unit/motd"):
        run.settle(ref)
    grant, *units = run.effects
    assert {wish_digest(unit) for unit in units} == set(grant.covers)
    assert len(grant.covers) == 3
    assert {unit.grant for unit in units} == {GRANT_ID}
    assert units[0].args == {
        "root": ROOT,
        "unit": "etc",
        "changes": [msgspec.to_builtins(run.state.plan.units[0].change)],  # type: ignore[union-attr]
    }


def test_a_green_approval_needs_no_question() -> None:
    run = Run(make(OTHER))
    run.begin()
    run.tell(EffectApproved(effect_id=GRANT_ID, ref="grant"))
    run.settle("unit/other")
    assert run.status == "applied"


def test_an_empty_plan_is_applied_without_asking_and_forgets_what_is_gone() -> None:
    run = Run(make(previous=applied(OTHER)))
    last = run.begin()
    assert run.status == "applied"
    assert run.effects == []
    assert released(last).removed == ("other",)


def test_a_unit_that_needs_nothing_does_not_stop_its_dependents() -> None:
    target = FileMap()
    target.apply(make(ETC).units[0].change)  # type: ignore[arg-type]
    run = Run(make(ETC, MOTD, target=target))
    run.approve()
    run.settle("unit/motd")
    assert run.statuses() == {"etc": "unchanged", "motd": "done"}
    assert run.status == "applied"


@pytest.mark.parametrize(
    ("state", "status", "said"),
    [
        ("denied", "denied", "said no"),
        ("expired", "expired", "nobody answered"),
        ("failed", "failed", "ended as failed"),
        ("voided", "failed", "ended as voided"),
    ],
)
def test_a_question_without_a_yes_ends_the_plan_and_touches_nothing(
    state: EffectState, status: str, said: str
) -> None:
    run = Run(make(ETC, MOTD))
    run.begin()
    run.tell(EffectWaiting(effect_id=GRANT_ID, ref="grant", card=CARD))
    last = run.settle("grant", state)
    assert run.status == status
    assert said in run.state.note
    assert run.started() == []
    assert released(last) == ReleaseTarget(plan_id=PLAN_ID, run_id="run-1")
    assert set(run.statuses().values()) == {"skipped"}


def test_a_plan_that_cannot_be_prepared_says_why() -> None:
    run = Run(make(OTHER))
    run.begin()
    run.settle("grant", "failed", error="'other' changed after the plan was made; plan again")
    assert run.state.note == "'other' changed after the plan was made; plan again"


@pytest.mark.parametrize("state", ["failed", "voided", "denied", "expired", "cancelled", "unknown"])
def test_a_unit_that_ends_badly_stops_its_dependents_and_no_others(state: EffectState) -> None:
    run = Run(make(ETC, MOTD, OTHER))
    run.approve()
    run.settle("unit/etc", state, error="no space")
    assert run.statuses() == {"etc": state, "motd": "skipped", "other": "started"}
    assert run.state.units["etc"].error == "no space"
    assert run.state.units["motd"].error == f"the unit 'etc', which it depends on, is {state}"
    last = run.settle("unit/other")
    assert run.status == "failed"
    assert "plan again" in run.state.note
    written = {unit.path for unit in released(last).written}
    assert written == ({"etc", "other"} if state == "unknown" else {"other"})


def test_a_deletion_is_remembered_only_when_it_was_done() -> None:
    target = FileMap()
    for unit in make(OTHER, ETC).units:
        target.apply(unit.change)  # type: ignore[arg-type]
    plan = make(gone(OTHER), target=target, previous=applied(OTHER, ETC))
    run = Run(plan)
    run.approve()
    run.settle("unit/other", "failed")
    assert released(run.settle("unit/etc")).removed == ("etc",)


def test_an_unknown_unit_may_be_resolved_while_the_plan_runs_and_not_after() -> None:
    run = Run(make(ETC, MOTD, OTHER))
    run.approve()
    run.settle("unit/etc", "unknown")
    run.settle("unit/etc", "unknown")
    run.settle("unit/etc", "done")
    assert run.statuses() == {"etc": "done", "motd": "skipped", "other": "started"}
    run.settle("unit/other", "unknown")
    assert run.status == "failed"
    over = run.state
    run.settle("unit/other", "done")
    assert run.state == over


def test_an_approval_that_ends_early_stops_what_has_not_started() -> None:
    run = Run(make(ETC, MOTD))
    run.approve()
    run.settle("grant", "unknown")
    assert run.status == "applying"
    last = run.settle("unit/etc")
    assert run.statuses() == {"etc": "done", "motd": "skipped"}
    assert run.status == "failed"
    assert "approval ended as unknown" in run.state.note
    assert CloseGrant(ref="grant") not in last.commands


def test_no_more_units_run_at_once_than_the_limit_allows() -> None:
    count = limits.PLAN_UNITS_RUNNING_MAX * 2 + 1
    run = Run(make(*(a_file(f"u{n:02d}", f"p{n:02d}") for n in range(count))))
    run.approve()
    assert len(run.started()) == limits.PLAN_UNITS_RUNNING_MAX
    run.settle("unit/u03")
    assert len(run.started()) == limits.PLAN_UNITS_RUNNING_MAX + 1


def test_late_and_repeated_messages_change_nothing() -> None:
    run = Run(make(ETC, MOTD))
    run.tell(TargetAcquired(run_id="run-1"))
    assert run.status == "planned"
    run.approve()
    run.settle("unit/etc")
    before = run.state
    for message in (
        TargetAcquired(run_id="run-1"),
        TargetRefused(run_id="run-1", reason="busy"),
        EffectWaiting(effect_id=GRANT_ID, ref="grant", card=CARD),
        EffectApproved(effect_id=GRANT_ID, ref="grant"),
        EffectWaiting(effect_id="e", ref="unit/motd", card=CARD),
        EffectApproved(effect_id="e", ref="unit/motd"),
    ):
        assert run.tell(message).commands == ()
    for ref in ("unit/etc", "unit/nobody", "elsewhere"):
        assert run.settle(ref, "failed").commands == ()
    assert run.settle("unit/motd", "proposed").commands == ()
    assert run.state == before
    run.settle("unit/motd")
    over = run.state
    assert run.settle("grant").commands == ()
    assert run.state == over


def test_a_busy_target_refuses_and_the_plan_may_be_applied_again() -> None:
    run = Run(make(OTHER))
    run.tell(ApplyPlan(run_id="run-1"))
    run.tell(TargetRefused(run_id="run-0", reason="busy", holder="plan-0"))
    assert run.status == "acquiring"
    decision = run.tell(TargetRefused(run_id="run-1", reason="busy", holder="plan-2"))
    assert run.status == "refused"
    assert events(decision.commands) == ["plan.refused"]
    assert "plan 'plan-2' is being applied" in run.state.note
    run.tell(ApplyPlan(run_id="run-2"))
    assert (run.status, run.state.run_id, run.state.note) == ("acquiring", "run-2", "")
    assert run.tell(TargetAcquired(run_id="run-1")).commands == ()
    assert run.status == "acquiring"


def test_a_stale_plan_fails_and_says_plan_again() -> None:
    run = Run(make(OTHER))
    run.tell(ApplyPlan(run_id="run-1"))
    run.tell(TargetRefused(run_id="run-1", reason="stale"))
    assert run.status == "failed"
    assert "plan again" in run.state.note


def test_a_finished_plan_is_not_applied_again() -> None:
    run = Run(make())
    run.begin()
    with pytest.raises(ConflictError, match="is applied; plan again"):
        run.tell(ApplyPlan(run_id="run-1"))


def test_a_repeated_request_of_a_running_apply_gets_the_same_answer() -> None:
    run = Run(make(OTHER))
    run.tell(ApplyPlan(run_id="run-1"))
    (reply,) = run.tell(ApplyPlan(run_id="run-1")).commands
    assert isinstance(reply, Reply)
    assert reply.value.status == "acquiring"
    with pytest.raises(ConflictError, match="is acquiring"):
        run.tell(ApplyPlan(run_id="run-2"))


def test_the_same_plan_twice_is_one_plan_and_another_is_a_conflict() -> None:
    run = Run(make(OTHER))
    before = run.state
    (reply,) = run.tell(CreatePlan(plan=make(OTHER))).commands
    assert isinstance(reply, Reply)
    assert run.state == before
    with pytest.raises(ConflictError, match="another content"):
        run.tell(CreatePlan(plan=make(ETC)))
    tampered = msgspec.structs.replace(make(OTHER), root="/")
    with pytest.raises(InvalidFieldError, match="does not match"):
        run.tell(CreatePlan(plan=tampered))


def test_what_does_not_exist_or_is_no_question_is_refused() -> None:
    empty = MACHINE.create(PLAN_ACTOR)
    with pytest.raises(NotFoundError):
        MACHINE.decide(empty, ApplyPlan(run_id="run-1"), turn())
    with pytest.raises(NotFoundError):
        MACHINE.query(empty, ShowPlan())
    with pytest.raises(InvalidFieldError):
        MACHINE.query(empty, ShowTarget())
    with pytest.raises(InvalidFieldError):
        MACHINE.decide(empty, ShowTarget(), turn())
    with pytest.raises(InvalidFieldError, match="run_id"):
        Run(make()).tell(ApplyPlan(run_id=""))
    with pytest.raises(StoreVersionError):
        MACHINE.load(stored(empty, schema_version=2))


def test_a_plan_can_be_shown_and_its_list_item_follows_its_status() -> None:
    run = Run(make(OTHER))
    assert MACHINE.query(run.state, ShowPlan()) is run.state
    items = [
        command
        for command in run.tell(ApplyPlan(run_id="run-1")).commands
        if isinstance(command, PutListItem)
    ]
    assert [(item.collection, item.item_id, item.body.status) for item in items] == [
        ("plans", PLAN_ID, "acquiring")
    ]


def test_events_fit_the_event_log_whatever_the_size_of_the_plan() -> None:
    plan = make(*(a_file(f"u{n:04d}", f"p{n:04d}") for n in range(limits.PLAN_UNITS_MAX)))
    run = Run(plan)
    decision = run.approve()
    bodies = [each.body for each in decision.commands if isinstance(each, Emit)]
    assert all(len(msgspec.msgpack.encode(body)) < 1_024 for body in bodies)
    args = msgspec.msgpack.encode(run.effects[0].args)
    assert len(args) < limits.PLAN_BYTES_MAX


# --- interleavings ------------------------------------------------------------------------------

GRAPH = (
    ETC,
    a_directory("deep", "etc/deep"),
    MOTD,
    a_file("x", "etc/deep/x", depends_on=("motd",)),
    OTHER,
    a_file("y", "y", depends_on=("other", "x")),
    a_file("z", "z"),
)
ENDS: tuple[EffectState, ...] = ("done", "done", "done", "failed", "voided", "unknown", "expired")


@settings(deadline=None)
@given(st.data())
def test_whatever_the_order_of_settlements_a_unit_follows_its_dependencies(data: Any) -> None:
    run = Run(make(*GRAPH))
    run.approve()
    assert run.state.plan is not None
    before = {unit.unit_id: unit.depends_on for unit in run.state.plan.units}
    settled: dict[str, str] = {}
    while run.status == "applying":
        asked = [ref.removeprefix("unit/") for ref in run.started()]
        assert len(set(asked)) == len(asked), "a unit is asked for once"
        for unit_id in asked:
            assert all(settled.get(name) == "done" for name in before[unit_id])
        open_ids = sorted(set(asked) - set(settled))
        unit_id = data.draw(st.sampled_from(open_ids))
        end = data.draw(st.sampled_from(ENDS))
        settled[unit_id] = end
        run.settle(f"unit/{unit_id}", end)
        if data.draw(st.booleans()):
            late = data.draw(st.sampled_from(sorted(settled)))
            if settled[late] != "unknown":
                run.settle(f"unit/{late}", data.draw(st.sampled_from(ENDS)))
        if data.draw(st.integers(0, 9)) == 0:
            run.settle("grant", "expired")
    all_done = set(run.statuses().values()) == {"done"}
    assert (run.status == "applied") == all_done
    assert {name: end for name, end in run.statuses().items() if end != "skipped"} == settled
    assert run.log.count("plan.finished") == 1
    assert run.log.count("unit.finished") == len(before)
