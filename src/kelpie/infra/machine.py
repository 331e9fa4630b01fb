"""The actor that applies a plan: hold the target, ask once, then change unit by unit.

    planned -> acquiring -> proposed -> waiting -> applying -> applied | failed
               refused (apply again)    denied | expired | failed

Every step is a turn, so a crash at any point resumes where the last commit was. Invariants: a unit
starts only when everything it depends on is done and the plan was approved; a unit's effect is
asked for once; a late or repeated message changes nothing; a plan that is over stays over.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

from kelpie.actors.commands import Command, Emit, Message, PutListItem, Reply, Send
from kelpie.actors.machine import Decision, Turn
from kelpie.core.errors import ConflictError, InvalidFieldError, NotFoundError
from kelpie.core.ids import ActorId
from kelpie.core.limits import NAME_CHARS_MAX
from kelpie.effects.messages import EffectApproved, EffectSettled, EffectWaiting
from kelpie.infra.messages import (
    COLLECTION,
    PLAN_STATUSES_FINAL,
    PLAN_TYPE,
    AcquireTarget,
    ApplyPlan,
    CreatePlan,
    PlanState,
    PlanSummary,
    ShowPlan,
    TargetAcquired,
    TargetRefused,
    UnitRun,
    target_actor,
)
from kelpie.infra.plan import Plan, check_plan
from kelpie.infra.run import (
    advance,
    check_run,
    finish,
    settle_unit,
)
from kelpie.infra.target import require_schema, unknown_message
from kelpie.infra.wishes import GRANT_REF, make_grant_effect, unit_of_ref
from kelpie.storage.records import StoredActor

_decoder: Final = msgspec.msgpack.Decoder(PlanState)
_encoder: Final = msgspec.msgpack.Encoder()
_RUN_ID_PROBLEM: Final = f"must have 1 to {NAME_CHARS_MAX} characters"


class ApplyMachine:
    """The transition function of actors of type ``plan``.

    Verdicts of the gate are handed to ``decide`` directly; they are not in ``message_type``, so
    that no other actor can send one.
    """

    type_name: str = PLAN_TYPE
    schema_version: int = 1
    message_type: Any = CreatePlan | ApplyPlan | TargetAcquired | TargetRefused | ShowPlan

    def create(self, actor: ActorId) -> PlanState:
        """Return the state of a plan that was not created yet."""
        assert actor.type == PLAN_TYPE, "an apply machine runs plans"
        return PlanState(plan_id=actor.key)

    def load(self, stored: StoredActor) -> PlanState:
        """Decode a stored state.

        Raises:
            StoreVersionError: ``stored.schema_version`` is unknown to this program.
        """
        require_schema(stored, self.schema_version)
        return _decoder.decode(stored.state)

    def dump(self, state: PlanState) -> bytes:
        """Encode a state at ``schema_version``."""
        return _encoder.encode(state)

    def decide(self, state: PlanState, message: Message, turn: Turn) -> Decision[PlanState]:
        """Return what follows from ``message``.

        Raises:
            ConflictError: The plan exists with another content, or was applied before.
            InvalidFieldError: The plan was tampered with, or the message is not for a plan.
            NotFoundError: There is no such plan.
        """
        self.check_invariants(state)
        decision = _decide(state, message, turn)
        self.check_invariants(decision.state)
        was_over = state.status in PLAN_STATUSES_FINAL
        assert not was_over or decision.state == state, "a plan that is over stays over"
        return _with_list_item(state, decision, turn)

    def query(self, state: PlanState, query: Message) -> PlanState:
        """Answer `ShowPlan`.

        Raises:
            NotFoundError: There is no such plan.
            InvalidFieldError: The question is another.
        """
        if not isinstance(query, ShowPlan):
            raise unknown_message(query)
        _require_plan(state)
        return state

    def check_invariants(self, state: PlanState) -> None:
        """Assert what holds of every plan between turns."""
        assert state.plan is not None or state == PlanState(plan_id=state.plan_id), "no plan yet"
        assert bool(state.run_id) == (state.status != "planned"), "a run has an id"
        check_run(state)


def _decide(state: PlanState, message: Message, turn: Turn) -> Decision[PlanState]:
    match message:
        case CreatePlan():
            return _create(state, message, turn)
        case ApplyPlan():
            return _apply(state, message, turn)
        case TargetAcquired():
            return _acquired(state, message, turn)
        case TargetRefused():
            return _refused(state, message, turn)
        case EffectSettled() if message.ref != GRANT_REF:
            return settle_unit(state, unit_of_ref(message.ref), message.record, turn)
        case EffectWaiting() | EffectApproved() | EffectSettled():
            return _answered(state, message, turn)
        case _:
            raise unknown_message(message)


def _answered(
    state: PlanState, message: EffectWaiting | EffectApproved | EffectSettled, turn: Turn
) -> Decision[PlanState]:
    if message.ref != GRANT_REF:
        # A unit that the approval does not cover asks for itself; its settlement follows.
        return Decision(state=state)
    match message:
        case EffectWaiting():
            return _waiting(state, message)
        case EffectApproved():
            return _approved(state, message, turn)
        case EffectSettled():
            return _grant_settled(state, message, turn)


def _require_plan(state: PlanState) -> Plan:
    if state.plan is None:
        raise NotFoundError("plan", state.plan_id)
    return state.plan


def summarize(state: PlanState) -> PlanSummary:
    """Return a plan as a list shows it.

    Raises:
        NotFoundError: There is no such plan.
    """
    plan = _require_plan(state)
    return PlanSummary(
        plan_id=state.plan_id,
        digest=plan.digest,
        root=plan.root,
        source=plan.source,
        status=state.status,
        counts=plan.count_actions(),
        has_changes=plan.has_changes,
        run_id=state.run_id,
        grant=state.grant,
        note=state.note,
        created_ms=state.created_ms,
        updated_ms=state.updated_ms,
        finished_ms=state.finished_ms,
    )


def _with_list_item(
    before: PlanState, decision: Decision[PlanState], turn: Turn
) -> Decision[PlanState]:
    """Stamp a changed plan and keep its row in the list of plans true."""
    after = decision.state
    if after == before:
        return decision
    after = msgspec.structs.replace(after, updated_ms=turn.now_ms)
    summary = summarize(after)
    if before.plan is not None and before.status == after.status:
        return Decision(state=after, commands=decision.commands)
    item = PutListItem(
        collection=COLLECTION,
        item_id=after.plan_id,
        sort_key=f"{after.created_ms:020d}",
        body=summary,
    )
    return Decision(state=after, commands=(*decision.commands, item))


def _create(state: PlanState, message: CreatePlan, turn: Turn) -> Decision[PlanState]:
    check_plan(message.plan)
    if state.plan is not None:
        if state.plan.digest == message.plan.digest:
            return Decision(state=state, commands=(Reply(value=summarize(state)),))
        problem = f"plan {state.plan_id!r} exists with another content; use a new plan id"
        raise ConflictError(problem, plan=state.plan_id)
    plan = message.plan
    created = msgspec.structs.replace(
        state, plan=plan, created_ms=turn.now_ms, updated_ms=turn.now_ms
    )
    body = {"plan_id": state.plan_id, "digest": plan.digest, "counts": plan.count_actions()}
    commands: tuple[Command, ...] = (
        Emit(kind="plan.created", body=body),
        Reply(value=summarize(created)),
    )
    return Decision(state=created, commands=commands)


def _apply(state: PlanState, message: ApplyPlan, turn: Turn) -> Decision[PlanState]:
    plan = _require_plan(state)
    if not 1 <= len(message.run_id) <= NAME_CHARS_MAX:
        raise InvalidFieldError("run_id", _RUN_ID_PROBLEM)
    if state.status not in {"planned", "refused"}:
        if message.run_id == state.run_id and state.status not in PLAN_STATUSES_FINAL:
            return Decision(state=state, commands=(Reply(value=summarize(state)),))
        problem = f"plan {state.plan_id!r} is {state.status}; plan again to apply again"
        raise ConflictError(problem, plan=state.plan_id, status=state.status)
    acquiring = msgspec.structs.replace(state, status="acquiring", run_id=message.run_id, note="")
    claim = AcquireTarget(
        root=plan.root,
        plan_id=state.plan_id,
        run_id=message.run_id,
        revision=plan.revision,
    )
    commands: tuple[Command, ...] = (
        Send(receiver=target_actor(turn.actor.tenant, plan.root), message=claim),
        Emit(kind="plan.applying", body=_names(acquiring)),
        Reply(value=summarize(acquiring)),
    )
    return Decision(state=acquiring, commands=commands)


def _names(state: PlanState, **more: object) -> dict[str, object]:
    return {"plan_id": state.plan_id, "run_id": state.run_id, **more}


def _acquired(state: PlanState, message: TargetAcquired, turn: Turn) -> Decision[PlanState]:
    if state.status != "acquiring" or message.run_id != state.run_id:
        return Decision(state=state)
    plan = _require_plan(state)
    units = {unit.unit_id: UnitRun() for unit in plan.units}
    if not plan.has_changes:
        # Nothing outside changes, so there is nothing to ask a person for.
        return advance(msgspec.structs.replace(state, status="applying", units=units), turn)
    proposed = msgspec.structs.replace(state, status="proposed", units=units)
    return Decision(state=proposed, commands=(make_grant_effect(plan),))


def _refused(state: PlanState, message: TargetRefused, turn: Turn) -> Decision[PlanState]:
    if state.status != "acquiring" or message.run_id != state.run_id:
        return Decision(state=state)
    if message.reason == "stale":
        note = "another plan was applied to this root since this one was made; plan again"
        failed = msgspec.structs.replace(state, status="failed", note=note, finished_ms=turn.now_ms)
        body = _names(failed, status="failed", note=note, units={})
        return Decision(state=failed, commands=(Emit(kind="plan.finished", body=body),))
    note = f"plan {message.holder!r} is being applied to this root; apply again when it is over"
    refused = msgspec.structs.replace(state, status="refused", note=note)
    body = _names(refused, note=note, holder=message.holder)
    return Decision(state=refused, commands=(Emit(kind="plan.refused", body=body),))


def _waiting(state: PlanState, message: EffectWaiting) -> Decision[PlanState]:
    if state.status != "proposed":
        return Decision(state=state)
    waiting = msgspec.structs.replace(state, status="waiting", grant=message.effect_id)
    body = _names(waiting, effect_id=message.effect_id)
    return Decision(state=waiting, commands=(Emit(kind="plan.waiting", body=body),))


def _approved(state: PlanState, message: EffectApproved, turn: Turn) -> Decision[PlanState]:
    if state.status not in {"proposed", "waiting"}:
        return Decision(state=state)
    assert not state.is_grant_open, "a plan is approved once"
    applying = msgspec.structs.replace(
        state, status="applying", grant=message.effect_id, is_grant_open=True
    )
    body = _names(applying, effect_id=message.effect_id)
    decision = advance(applying, turn)
    commands = (Emit(kind="plan.approved", body=body), *decision.commands)
    return Decision(state=decision.state, commands=commands)


def _grant_settled(state: PlanState, message: EffectSettled, turn: Turn) -> Decision[PlanState]:
    """The question was answered with no, or the approval ended while units were left."""
    record = message.record
    outcome = record.outcome
    reason = (outcome.error if outcome else "") or record.note
    if state.status == "applying" and state.is_grant_open:
        note = f"the plan's approval ended as {record.state}; plan again. {reason}".strip()
        closed = msgspec.structs.replace(state, is_grant_open=False, note=note)
        return advance(closed, turn)
    if state.status not in {"proposed", "waiting"}:
        return Decision(state=state)
    asked = msgspec.structs.replace(state, grant=message.effect_id)
    if record.state == "denied":
        return finish(asked, "denied", reason or "a person or the policy said no", turn)
    if record.state == "expired":
        return finish(asked, "expired", reason or "nobody answered in time; plan again", turn)
    return finish(asked, "failed", reason or f"the approval ended as {record.state}", turn)
