"""The walk through an approved plan, as pure functions over its state.

Invariants: at most ``PLAN_UNITS_RUNNING_MAX`` units are in flight; a unit that ended badly stops
what depends on it and nothing else; the target is released exactly when the plan is over.
"""

from __future__ import annotations

from collections import Counter
from typing import Final

import msgspec

from kelpie.actors.commands import Command, Emit, Send
from kelpie.actors.machine import Decision, Turn
from kelpie.core.limits import PLAN_UNITS_RUNNING_MAX
from kelpie.effects.messages import CloseGrant
from kelpie.effects.model import EffectRecord
from kelpie.infra.messages import (
    PLAN_STATUSES_FINAL,
    UNIT_STATUSES_GOOD,
    UNIT_STATUSES_OPEN,
    PlanState,
    PlanStatus,
    ReleaseTarget,
    UnitRun,
    UnitStatus,
    target_actor,
)
from kelpie.infra.plan import AppliedUnit, Plan, PlanUnit
from kelpie.infra.wishes import GRANT_REF, make_unit_effect, unit_ref
from kelpie.storage.records import EffectState

_SETTLED: Final[dict[EffectState, UnitStatus]] = {
    "done": "done",
    "failed": "failed",
    "denied": "denied",
    "expired": "expired",
    "voided": "voided",
    "cancelled": "cancelled",
    "unknown": "unknown",
}


def check_run(state: PlanState) -> None:
    """Assert what holds of an apply between turns."""
    if state.plan is None or not state.units:
        assert not state.is_grant_open, "an approval belongs to a run"
        return
    runs = state.units
    assert list(runs) == [unit.unit_id for unit in state.plan.units], "each unit once, in order"
    open_ids = {unit_id for unit_id, run in runs.items() if run.status in UNIT_STATUSES_OPEN}
    started = [unit_id for unit_id in open_ids if runs[unit_id].status == "started"]
    assert len(started) <= PLAN_UNITS_RUNNING_MAX, "the fan-out is bounded"
    assert state.status == "applying" or not started, "units run only while the plan applies"
    if state.status in PLAN_STATUSES_FINAL:
        assert not open_ids, "a plan that is over has no open unit"
        assert not state.is_grant_open, "a plan that is over has closed its approval"
    for unit in state.plan.units:
        began = runs[unit.unit_id].started_ms or runs[unit.unit_id].status in UNIT_STATUSES_GOOD
        ready = all(runs[name].status in UNIT_STATUSES_GOOD for name in unit.depends_on)
        assert ready or not began, "a unit starts after everything it depends on"


def advance(state: PlanState, turn: Turn) -> Decision[PlanState]:
    """Start what may start, skip what cannot, and finish when nothing is left."""
    assert state.plan is not None, "only a plan can be applied"
    assert state.status == "applying", "only an approved plan advances"
    runs = dict(state.units)
    commands: list[Command] = []
    free = PLAN_UNITS_RUNNING_MAX - sum(run.status == "started" for run in runs.values())
    for unit in state.plan.units:
        if runs[unit.unit_id].status != "pending":
            continue
        status, error = _next_status(state, unit, runs, is_free=free > 0)
        if status == "pending":
            continue
        ended_ms = 0 if status == "started" else turn.now_ms
        runs[unit.unit_id] = run = UnitRun(
            status=status,
            error=error,
            started_ms=turn.now_ms if status == "started" else 0,
            finished_ms=ended_ms,
        )
        if status == "started":
            free -= 1
            commands.append(make_unit_effect(state.plan, unit, grant=state.grant))
            commands.append(_emit_started(state, unit))
        elif status == "skipped":
            commands.append(_emit_finished(state, unit, run))
    moved = msgspec.structs.replace(state, units=runs)
    if any(run.status in UNIT_STATUSES_OPEN for run in runs.values()):
        return Decision(state=moved, commands=tuple(commands))
    over = finish(moved, *_judge(moved), turn)
    return Decision(state=over.state, commands=(*commands, *over.commands))


def _next_status(
    state: PlanState, unit: PlanUnit, runs: dict[str, UnitRun], *, is_free: bool
) -> tuple[UnitStatus, str]:
    """Return what a pending unit becomes now, and why if it is skipped."""
    for name in unit.depends_on:
        if runs[name].status not in UNIT_STATUSES_GOOD | UNIT_STATUSES_OPEN:
            return "skipped", f"the unit {name!r}, which it depends on, is {runs[name].status}"
    if any(runs[name].status in UNIT_STATUSES_OPEN for name in unit.depends_on):
        return "pending", ""
    if unit.change is None:
        return "unchanged", ""
    if not state.is_grant_open:
        return "skipped", "the plan's approval ended before it could start"
    return ("started" if is_free else "pending"), ""


def _judge(state: PlanState) -> tuple[PlanStatus, str]:
    """Return what a run without open units came to, and what to tell people."""
    if all(run.status in UNIT_STATUSES_GOOD for run in state.units.values()):
        return "applied", ""
    bad = [name for name, run in state.units.items() if run.status not in UNIT_STATUSES_GOOD]
    if any(state.units[name].status == "voided" for name in bad):
        return "failed", "something else changed the target after the plan was made; plan again"
    note = f"{len(bad)} of {len(state.units)} units are not as planned; plan again"
    return "failed", state.note or note


def finish(state: PlanState, status: PlanStatus, note: str, turn: Turn) -> Decision[PlanState]:
    """End the run: close the approval, tell the target what was written, and let go of it."""
    assert state.plan is not None, "only a plan can end"
    assert status in PLAN_STATUSES_FINAL, "a plan ends in a final status"
    runs = {
        name: msgspec.structs.replace(run, status="skipped", finished_ms=turn.now_ms)
        if run.status == "pending"
        else run
        for name, run in state.units.items()
    }
    over = msgspec.structs.replace(
        state, status=status, note=note, units=runs, is_grant_open=False, finished_ms=turn.now_ms
    )
    commands: list[Command] = [CloseGrant(ref=GRANT_REF)] if state.is_grant_open else []
    release = _make_release(state.plan, over)
    target = target_actor(turn.actor.tenant, state.plan.root)
    body = {
        "plan_id": state.plan_id,
        "run_id": state.run_id,
        "status": status,
        "note": note,
        "units": dict(Counter(run.status for run in runs.values())),
    }
    commands += [
        Send(receiver=target, message=release),
        Emit(kind="plan.finished", body=body),
    ]
    return Decision(state=over, commands=tuple(commands))


def _make_release(plan: Plan, state: PlanState) -> ReleaseTarget:
    """Return what the target should remember of this run.

    A unit whose outcome is unknown may have been written, so it counts as written: forgetting it
    would leave a file behind that no later plan removes.
    """
    written: list[AppliedUnit] = []
    removed: list[str] = list(plan.forgets) if state.status == "applied" else []
    for unit in plan.units:
        status = state.units[unit.unit_id].status
        if unit.change is None:
            continue
        if unit.action != "delete" and status in {"done", "unknown"}:
            written.append(
                AppliedUnit(
                    unit_id=unit.unit_id,
                    type=unit.type,
                    path=unit.path,
                    digest=unit.change.after,
                )
            )
        elif unit.action == "delete" and status == "done":
            removed.append(unit.path)
    return ReleaseTarget(
        plan_id=state.plan_id,
        run_id=state.run_id,
        written=tuple(written),
        removed=tuple(removed),
    )


def settle_unit(
    state: PlanState, unit_id: str, record: EffectRecord, turn: Turn
) -> Decision[PlanState]:
    """Take in what a unit's effect came to; a late or repeated settlement changes nothing.

    An unknown outcome may be resolved as long as the plan is not over; what it made to be
    skipped stays skipped.
    """
    run = state.units.get(unit_id)
    if state.status != "applying" or run is None or run.status not in {"started", "unknown"}:
        return Decision(state=state)
    status = _SETTLED.get(record.state)
    if status is None or status == run.status:
        return Decision(state=state)
    assert state.plan is not None, "a run belongs to a plan"
    outcome = record.outcome
    error = "" if status == "done" else (outcome.error if outcome else "") or record.note
    settled = msgspec.structs.replace(
        run,
        status=status,
        effect_id=record.effect_id,
        error=error,
        finished_ms=turn.now_ms,
    )
    unit = next(unit for unit in state.plan.units if unit.unit_id == unit_id)
    moved = msgspec.structs.replace(state, units={**state.units, unit_id: settled})
    decision = advance(moved, turn)
    commands = (_emit_finished(state, unit, settled), *decision.commands)
    return Decision(state=decision.state, commands=commands)


def _emit_started(state: PlanState, unit: PlanUnit) -> Emit:
    return Emit(kind="unit.started", body=_unit_names(state, unit, ref=unit_ref(unit.unit_id)))


def _emit_finished(state: PlanState, unit: PlanUnit, run: UnitRun) -> Emit:
    more = {"status": run.status, "effect_id": run.effect_id, "error": run.error}
    return Emit(kind="unit.finished", body=_unit_names(state, unit, **more))


def _unit_names(state: PlanState, unit: PlanUnit, **more: str) -> dict[str, str]:
    names = {
        "plan_id": state.plan_id,
        "run_id": state.run_id,
        "unit_id": unit.unit_id,
        "path": unit.path,
        "action": unit.action,
    }
    return names | more
