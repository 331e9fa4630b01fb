"""The gate keeps its laws in every order of events, and a gate that breaks one is caught."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, get_args

import msgspec
import pytest

from kelpie.actors.commands import WriteEffect
from kelpie.actors.machine import Decision, Turn
from kelpie.effects import messages as m
from kelpie.effects.gate import Gated, GatedState
from kelpie.effects.model import EffectRecord, Promise
from kelpie.sim.explore import Exploration, explore
from kelpie.sim.models.effects import (
    Decide,
    decide_as_shipped,
    effect_model,
    grant_model,
)
from kelpie.sim.models.wisher import Told

pytestmark = pytest.mark.requirement("K-07")

State = GatedState[Told]
EVERYTHING = {
    *("prepare", "start", "report", "late report", "crash", "recover"),
    *("yes", "no", "expire", "give up", "tick", "policy"),
}


@pytest.mark.parametrize("promise", get_args(Promise))
def test_the_life_of_one_effect_keeps_every_law(promise: Promise) -> None:
    found = explore(effect_model(promise))
    assert found.outcome == "holds", str(found.broken)
    assert set(found.taken) == EVERYTHING | ({"restore", "resolve"} if promise == "once" else set())
    assert found.states > 1_000
    assert 0 < found.goals < found.states


def test_a_grant_and_its_members_keep_every_law() -> None:
    found = explore(grant_model())
    assert found.outcome == "holds", str(found.broken)
    assert {"close", "start", "report", "yes", "no"} <= set(found.taken)
    assert found.states > 3_000


# --- saboteurs ----------------------------------------------------------------------------------


def change(
    decision: Decision[State],
    does_concern: Callable[[EffectRecord], bool],
    **changes: Any,
) -> Decision[State]:
    """Rewrite the records that the gate keeps, and the rows that it writes of them."""
    effects = {
        name: msgspec.structs.replace(record, **changes) if does_concern(record) else record
        for name, record in decision.state.effects.items()
    }
    commands = tuple(
        WriteEffect(row=replace(command.row, state=effects[command.row.effect_id].state))
        if isinstance(command, WriteEffect) and command.row.effect_id in effects
        else command
        for command in decision.commands
    )
    return Decision(state=GatedState(decision.state.inner, effects), commands=commands)


def say_yes_unasked(gate: Gated[Told], state: State, message: Any, turn: Turn) -> Decision[State]:
    """Approve what waits, without a person."""
    decision = gate.decide(state, message, turn)
    if not isinstance(message, m.EffectPrepared):
        return decision
    for record in decision.state.effects.values():
        if record.state == "waiting":
            yes = m.ApproveEffect(effect_id=record.effect_id)
            after = gate.decide(decision.state, yes, turn)
            commands = (*decision.commands, *after.commands)
            return Decision(state=after.state, commands=commands)
    return decision


def forget_the_end(gate: Gated[Told], state: State, message: Any, turn: Turn) -> Decision[State]:
    """Let an approval stand forever."""
    decision = gate.decide(state, message, turn)
    return change(decision, lambda record: record.state == "approved", due_ms=0)


def ignore_the_digest(gate: Gated[Told], state: State, message: Any, turn: Turn) -> Decision[State]:
    """Take a yes to any card for a yes to the present one."""
    if isinstance(message, m.ApproveEffect):
        message = m.ApproveEffect(effect_id=message.effect_id)
    return gate.decide(state, message, turn)


def keep_the_yes(gate: Gated[Told], state: State, message: Any, turn: Turn) -> Decision[State]:
    """Go back to approved when an attempt has failed, and use the yes again."""
    record = state.effects.get(getattr(message, "effect_id", ""))
    is_failure = isinstance(message, m.EffectFinished) and message.outcome.status == "failed"
    if is_failure and record is not None:
        message = m.RecoverEffect(
            effect_id=record.effect_id, attempt=record.attempt, ended_session=record.session
        )
    return start_what_was_cut_off(gate, state, message, turn)


def start_what_was_cut_off(
    gate: Gated[Told], state: State, message: Any, turn: Turn
) -> Decision[State]:
    """Run a once effect again after a crash."""
    if not isinstance(message, m.RecoverEffect) or message.restored:
        return gate.decide(state, message, turn)
    weaker = {
        name: msgspec.structs.replace(record, promise="repeatable")
        for name, record in state.effects.items()
    }
    decision = gate.decide(GatedState(state.inner, weaker), message, turn)
    return change(decision, lambda _: True, promise="once")


def reopen_what_is_denied(
    gate: Gated[Told], state: State, message: Any, turn: Turn
) -> Decision[State]:
    """Keep asking after a no."""
    decision = gate.decide(state, message, turn)
    if not isinstance(message, m.DenyEffect):
        return decision
    kept = dict(state.effects)
    return Decision(state=GatedState(decision.state.inner, kept), commands=decision.commands)


def reuse_members(gate: Gated[Told], state: State, message: Any, turn: Turn) -> Decision[State]:
    """Let a grant cover the same member again and again."""
    decision = gate.decide(state, message, turn)
    return change(decision, lambda record: bool(record.used), used=())


def cover_everything(gate: Gated[Told], state: State, message: Any, turn: Turn) -> Decision[State]:
    """Take a grant's yes for the yes to whatever names it, whether it is a member or not."""
    decision = gate.decide(state, message, turn)
    return say_yes_unasked_under_grants(gate, decision, turn)


def say_yes_unasked_under_grants(
    gate: Gated[Told], decision: Decision[State], turn: Turn
) -> Decision[State]:
    for record in decision.state.effects.values():
        if record.state == "waiting" and record.grant:
            yes = m.ApproveEffect(effect_id=record.effect_id)
            after = gate.decide(decision.state, yes, turn)
            commands = (*decision.commands, *after.commands)
            return Decision(state=after.state, commands=commands)
    return decision


def judge_broken(found: Exploration, law: str, *steps: str) -> None:
    assert found.outcome == "broken"
    assert found.broken is not None
    assert found.broken.law == law, str(found.broken)
    assert found.broken.trace == steps, str(found.broken)


def test_a_start_without_a_yes_is_found() -> None:
    found = explore(effect_model("once", decide=say_yes_unasked))
    judge_broken(
        found,
        "no order without a yes",
        "the write is prepared",
        "the dispatcher starts the write",
    )


def test_a_start_after_the_approval_expired_is_found() -> None:
    found = explore(effect_model("repeatable", decide=forget_the_end))
    judge_broken(
        found,
        "no order without a yes",
        "the write is prepared",
        "the person says yes to card 1 (the write)",
        "1500 ms pass",
        "1500 ms pass",
        "the dispatcher starts the write",
    )


def test_a_yes_to_an_older_card_that_counts_for_a_newer_one_is_found() -> None:
    found = explore(effect_model("keyed", decide=ignore_the_digest))
    judge_broken(
        found,
        "no order without a yes",
        "the write is prepared",
        "the person says yes to card 1 (the write)",
        "policy 2 comes into force",
        "the dispatcher starts the write",
        "the person says yes to card 1 (the write)",
        "the dispatcher starts the write",
    )


@pytest.mark.parametrize(
    ("saboteur", "how"),
    [
        (keep_the_yes, ["attempt 1 reports failed"]),
        (
            start_what_was_cut_off,
            [
                "the process dies and another takes over",
                "recovery finds the write cut off, its target touched",
            ],
        ),
    ],
)
def test_a_once_effect_that_runs_twice_is_found(saboteur: Decide, how: list[str]) -> None:
    found = explore(effect_model("once", decide=saboteur))
    judge_broken(
        found,
        "orders within the promise",
        "the write is prepared",
        "the person says yes to card 1 (the write)",
        "the dispatcher starts the write",
        *how,
        "the dispatcher starts the write",
    )


def test_a_no_that_ends_nothing_is_found() -> None:
    found = explore(effect_model("once", decide=reopen_what_is_denied))
    judge_broken(
        found,
        "rows are records",
        "the write is prepared",
        "the person says no to card 1 (the write)",
    )


@pytest.mark.parametrize(
    ("saboteur", "law"),
    [
        (reuse_members, "a grant covers each member once"),
        (cover_everything, "no order without a yes"),
    ],
)
def test_a_grant_that_covers_more_than_its_members_is_found(saboteur: Decide, law: str) -> None:
    found = explore(grant_model(decide=saboteur))
    assert found.broken is not None
    assert found.broken.law == law, str(found.broken)
    assert len(found.broken.trace) <= 6


def test_the_same_model_explores_the_same_states_again() -> None:
    first, second = (explore(effect_model("once", decide=decide_as_shipped)) for _ in range(2))
    assert first == second
    cut = explore(effect_model("once"), states_max=100)
    assert cut.outcome == "unknown"
