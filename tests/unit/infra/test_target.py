from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kelpie.actors.commands import Message
from kelpie.actors.machine import Decision
from kelpie.core.errors import InvalidFieldError, StoreVersionError
from kelpie.core.ids import TENANT_DEFAULT
from kelpie.infra.messages import (
    AcquireTarget,
    ReleaseTarget,
    ShowPlan,
    ShowTarget,
    TargetAcquired,
    TargetRefused,
    TargetState,
    plan_actor,
    target_actor,
)
from kelpie.infra.plan import AppliedUnit
from kelpie.infra.target import TargetMachine
from kelpie.storage.records import StoredActor
from tests.unit.infra.world import ROOT, events, sent, turn

MACHINE = TargetMachine()
ACTOR = target_actor(TENANT_DEFAULT, ROOT)
MOTD = AppliedUnit(unit_id="motd", type="linux.file", path="motd", digest="sha256:1")


def tell(state: TargetState, message: Message) -> Decision[TargetState]:
    stored = StoredActor(
        actor=ACTOR,
        incarnation=1,
        version=1,
        schema_version=1,
        state=MACHINE.dump(state),
        effects=(),
        event_sequence=0,
        tombstoned=False,
    )
    return MACHINE.decide(MACHINE.load(stored), message, turn(ACTOR))


def acquire(name: str, *, revision: int = 0, root: str = ROOT) -> AcquireTarget:
    return AcquireTarget(root=root, plan_id=f"plan-{name}", run_id=f"run-{name}", revision=revision)


def release(name: str, *written: AppliedUnit, removed: tuple[str, ...] = ()) -> ReleaseTarget:
    return ReleaseTarget(
        plan_id=f"plan-{name}", run_id=f"run-{name}", written=written, removed=removed
    )


FREE = MACHINE.create(ACTOR)
HELD = tell(FREE, acquire("a")).state


def test_a_free_target_is_held_by_who_asks() -> None:
    decision = tell(FREE, acquire("a"))
    (send,) = sent(decision.commands)
    assert send.receiver == plan_actor(TENANT_DEFAULT, "plan-a")
    assert send.message == TargetAcquired(run_id="run-a")
    assert (decision.state.holder, decision.state.root) == ("plan-a", ROOT)
    assert events(decision.commands) == ["target.acquired"]


def test_a_held_target_refuses_another_plan_and_says_who_holds_it() -> None:
    decision = tell(HELD, acquire("b"))
    (send,) = sent(decision.commands)
    assert send.message == TargetRefused(run_id="run-b", reason="busy", holder="plan-a")
    assert decision.state == HELD


def test_the_holder_that_asks_again_is_answered_again() -> None:
    decision = tell(HELD, acquire("a"))
    assert [send.message for send in sent(decision.commands)] == [TargetAcquired(run_id="run-a")]
    assert decision.state == HELD


def test_a_plan_of_an_older_revision_is_stale() -> None:
    state = tell(HELD, release("a", MOTD)).state
    assert state.revision == 1
    (send,) = sent(tell(state, acquire("b")).commands)
    assert send.message == TargetRefused(run_id="run-b", reason="stale")
    (send,) = sent(tell(state, acquire("b", revision=1)).commands)
    assert send.message == TargetAcquired(run_id="run-b")


def test_a_release_remembers_what_was_written_and_forgets_what_was_removed() -> None:
    written = tell(HELD, release("a", MOTD)).state
    assert written.applied == {"motd": MOTD}
    held = tell(written, acquire("b", revision=1)).state
    removed = tell(held, release("b", removed=("motd", "never")))
    assert removed.state.applied == {}
    assert (removed.state.revision, removed.state.holder) == (2, "")
    assert events(removed.commands) == ["target.released"]


def test_a_release_that_changed_nothing_keeps_other_plans_valid() -> None:
    assert tell(HELD, release("a")).state.revision == 0


def test_a_late_or_foreign_release_changes_nothing() -> None:
    assert tell(HELD, release("b", MOTD)).state == HELD
    freed = tell(HELD, release("a", MOTD)).state
    assert tell(freed, release("a", removed=("motd",))).state == freed


def test_another_root_unknown_messages_and_versions_are_refused() -> None:
    with pytest.raises(InvalidFieldError, match="another target's root"):
        tell(FREE, acquire("a", root="/elsewhere"))
    with pytest.raises(InvalidFieldError, match="is not for this actor"):
        tell(FREE, ShowPlan())
    with pytest.raises(InvalidFieldError):
        MACHINE.query(FREE, ShowPlan())
    assert MACHINE.query(FREE, ShowTarget()) is FREE
    stored = StoredActor(
        actor=ACTOR,
        incarnation=1,
        version=1,
        schema_version=9,
        state=b"",
        effects=(),
        event_sequence=0,
        tombstoned=False,
    )
    with pytest.raises(StoreVersionError, match="schema version 9"):
        MACHINE.load(stored)


STEPS = st.lists(
    st.tuples(st.sampled_from(["acquire", "write", "remove"]), st.sampled_from("abc")), max_size=30
)


@settings(deadline=None)
@given(STEPS)
def test_two_plans_never_hold_a_target_at_once(steps: list[tuple[str, str]]) -> None:
    state = FREE
    holders: set[str] = set()
    for step, name in steps:
        if step == "acquire":
            decision = tell(state, acquire(name, revision=state.revision))
            if any(isinstance(send.message, TargetAcquired) for send in sent(decision.commands)):
                holders.add(name)
        else:
            units = (MOTD,) if step == "write" else ()
            decision = tell(state, release(name, *units, removed=("motd",) if not units else ()))
            holders.discard(name)
        state = decision.state
        assert len(holders) <= 1
        assert {state.holder} - {""} == {f"plan-{name}" for name in holders}
