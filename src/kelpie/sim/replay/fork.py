"""Forks a recorded run at a step: what would have happened with another answer, or a fault.

From the fork on the machine and the gate go on by themselves. What they ask for is answered by what
was given, then by what the record has for the same request, then by the shipped executors over
nothing real (`kelpie.sim.replay.hands`). A question to a person is answered as it was then, if it
is about exactly the same effect; else it waits, unless the fork was told to say yes.

Invariants: nothing outside is read or touched; every step says where its answer came from.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, NamedTuple

import msgspec

from kelpie.actors.commands import Message, PutKv
from kelpie.agents.model import AgentState
from kelpie.agents.model_executor import KIND as MODEL_KIND
from kelpie.core.errors import InvalidFieldError, NotFoundError
from kelpie.effects import messages as m
from kelpie.effects.gate import Gated
from kelpie.effects.model import EffectRecord, Outcome
from kelpie.llm.model import ModelAnswer
from kelpie.sim.escape import sealed
from kelpie.sim.loop import SimulatedLoop
from kelpie.sim.replay.again import Replayed, State, Step, make_turn, take_turn
from kelpie.sim.replay.causes import SYSTEM, Cause, show_outcome
from kelpie.sim.replay.hands import MODEL_FAULTS, SANDBOX_FAULTS, SANDBOX_KINDS, Hands, spoil
from kelpie.sim.replay.record import RunRecord

CRASH: Final = "crash.at_any_step"
LATE_YES: Final = "concurrency.approval_late"
FAULTS: Final = MODEL_FAULTS | SANDBOX_FAULTS | {CRASH, LATE_YES}
"""The faults of the catalogue that a fork can have."""
STEPS_MAX: Final = 1_000
SESSION: Final = "fork"


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """Where a run is forked, and what is different from there.

    Attributes:
        step: The number of the step that goes differently.
        answers: What the model says from there on, in order.
        result: What the tool's effect of that step came to; None to leave it.
        fault: A fault of the catalogue that happens at that step; empty for none.
        deny: Whether the person of that step says no instead.
        approve: Whether questions that nobody answered in the record are answered with yes.
    """

    step: int
    answers: tuple[ModelAnswer, ...] = ()
    result: Outcome | None = None
    fault: str = ""
    deny: bool = False
    approve: bool = False


class Forked(NamedTuple):
    """What would have happened: the steps from the fork on, and why there are no more."""

    steps: tuple[Step, ...]
    ending: str


def fork(
    record: RunRecord,
    replayed: Replayed,
    machine: Gated[AgentState],
    change: Change,
    hands: Hands,
) -> Forked:
    """Return what would have happened.

    Raises:
        NotFoundError: The record has no such step, or differs before it.
        InvalidFieldError: The change cannot be made at that step.
    """
    steps = replayed.steps
    if not 1 <= change.step <= len(steps) or steps[change.step - 1].problem:
        raise NotFoundError("step", str(change.step))
    at = steps[change.step - 1]
    _require_fitting(change, at, steps)
    _write(hands, steps[: change.step - 1])
    loop = SimulatedLoop()
    try:
        with sealed():
            return loop.run_until_complete(_Fork(record, machine, change, hands, steps).live())
    finally:
        loop.close()


def _write(hands: Hands, steps: Iterable[Step]) -> None:
    """Let the conversation hold what these turns wrote."""
    for step in steps:
        for command in step.commands:
            if isinstance(command, PutKv):
                hands.conversation.rows[command.key] = msgspec.msgpack.encode(command.value)


def _require_fitting(change: Change, at: Step, steps: tuple[Step, ...]) -> None:
    """Refuse a change that the step has no place for."""
    message, effect = at.cause.message, at.before.effects.get(at.cause.effect_id)
    ends = isinstance(message, m.EffectFinished | m.RecoverEffect)
    kind = effect.kind if effect is not None and ends else ""
    is_yes = isinstance(message, m.ApproveEffect)
    fits = {
        "--model-says or --model-answer": (bool(change.answers), kind == MODEL_KIND),
        "--tool-result": (change.result is not None, kind not in {"", MODEL_KIND}),
        "--deny": (change.deny, is_yes),
        f"--fault {change.fault}": (bool(change.fault), _has_place(change.fault, kind, is_yes)),
    }
    if change.fault and change.fault not in FAULTS:
        known = ", ".join(sorted(FAULTS))
        raise InvalidFieldError("fault", f"{change.fault!r} is none that a fork has: {known}")
    for option, (is_wanted, is_fitting) in fits.items():
        if is_wanted and not is_fitting:
            places = ", ".join(f"{each.number} ({each.cause.title})" for each in steps)
            problem = f"step {at.number} is {at.cause.title!r}, no place for {option}; {places}"
            raise InvalidFieldError("fork", problem)


def _has_place(fault: str, kind: str, is_yes: bool) -> bool:  # noqa: FBT001
    if fault in MODEL_FAULTS:
        return kind == MODEL_KIND
    if fault in SANDBOX_FAULTS:
        return kind in SANDBOX_KINDS
    return is_yes if fault == LATE_YES else bool(kind)


class _Fork:
    def __init__(
        self,
        record: RunRecord,
        machine: Gated[AgentState],
        change: Change,
        hands: Hands,
        steps: tuple[Step, ...],
    ) -> None:
        at = steps[change.step - 1]
        self._record = record
        self._machine = machine
        self._change = change
        self._hands = hands
        self._state: State = at.before
        self._at_ms = at.at_ms
        self._first = at
        self._answers = deque(change.answers)
        ended = {each for step in steps[: change.step - 1] for each in step.records}
        ended -= at.before.effects.keys()
        self._unused = {key: each for key, each in record.effects.items() if key not in ended}
        self._mine: dict[str, EffectRecord] = {}
        self._steps: list[Step] = []

    async def live(self) -> Forked:
        """Go on until the run has ended or nobody answers."""
        assert not self._steps, "a fork lives once"
        while self._state.inner.run is not None or not self._steps:
            if len(self._steps) >= STEPS_MAX:
                return Forked(tuple(self._steps), f"stopped after {STEPS_MAX:,} steps")
            found = await self._next()
            if found is None:
                return Forked(tuple(self._steps), self._waiting())
            cause, source = found
            number = self._change.step + len(self._steps)
            turn = make_turn(self._record, cause, self._at_ms, {}, number=number)
            step = take_turn(self._machine, self._state, cause, turn, number=number, source=source)
            self._steps.append(step)
            if step.problem:
                return Forked(tuple(self._steps), step.problem)
            self._state = step.after
            self._at_ms += 1
            _write(self._hands, (step,))
        last = self._state.inner.last_run
        assert last is not None, "a run that ended is remembered"
        return Forked(tuple(self._steps), f"the run ended: {last.status}, {last.stop_reason}")

    async def _next(self) -> tuple[Cause, str] | None:
        self._hands.clock.at_ms = self._at_ms
        if not self._steps:
            forced = await self._forced()
            if forced is not None:
                return forced
        for record in self._state.effects.values():
            found = await self._step_of(record)
            if found is not None:
                return found
        return None

    async def _forced(self) -> tuple[Cause, str] | None:
        """Return how the step goes that is forked; None for a step that has no effect."""
        change, cause = self._change, self._first.cause
        record = self._state.effects.get(cause.effect_id)
        if record is None:
            return cause, "recorded"
        if change.deny:
            message = m.DenyEffect(effect_id=record.effect_id, reason="forked")
            return Cause("a person says no", message, SYSTEM, record.effect_id), "given: --deny"
        if change.fault == LATE_YES:
            self._at_ms = record.due_ms + 1
            return cause, f"fault {LATE_YES}"
        if change.fault == CRASH:
            self._at_ms = max(self._at_ms, record.due_ms + 1)
            end = m.RecoverEffect(
                effect_id=record.effect_id,
                attempt=record.attempt,
                ended_session=record.session,
                untouched=True,
            )
            return _about(record, "loses its process", end), f"fault {CRASH}"
        if record.state == "started":
            return await self._step_of(record)
        return cause, "recorded"

    async def _step_of(self, record: EffectRecord) -> tuple[Cause, str] | None:
        """Return what happens to an open effect next, and who says so; None if nothing does."""
        match record.state:
            case "proposed":
                return await self._prepare(record)
            case "waiting":
                return self._decide(record)
            case "approved":
                message = m.StartEffect(effect_id=record.effect_id, session=SESSION)
                return _about(record, "starts", message), "the gate"
            case "started":
                return await self._finish(record)
            case _:
                return None

    async def _prepare(self, record: EffectRecord) -> tuple[Cause, str]:
        known = self._find(record)
        effect_id = record.effect_id
        preparation = self._record.preparation_of(known.effect_id) if known else None
        source = "recorded"
        message = m.EffectPrepared(effect_id=effect_id, preparation=preparation)
        if preparation is None:
            prepared = await self._hands.prepare(self._record.actor, record)
            source = "executor over an empty directory"
            if isinstance(prepared, Outcome):
                message = m.EffectPrepared(effect_id=effect_id, failure=prepared)
            else:
                message = m.EffectPrepared(effect_id=effect_id, preparation=prepared)
        return _about(record, "is prepared", message), source

    def _decide(self, record: EffectRecord) -> tuple[Cause, str] | None:
        effect_id, known = record.effect_id, self._find(record)
        if known is not None and known.digest == record.digest:
            if known.approval is not None and known.approval.by != "policy":
                by, reason = known.approval.by, known.approval.reason
                yes = m.ApproveEffect(effect_id=effect_id, reason=reason)
                return Cause(f"{by} says yes", yes, by, effect_id), "recorded"
            if known.state == "denied":
                by, _, reason = known.note.removeprefix("denied by ").partition(": ")
                no = m.DenyEffect(effect_id=effect_id, reason=reason)
                return Cause(f"{by} says no", no, by, effect_id), "recorded"
        if not self._change.approve:
            return None
        message = m.ApproveEffect(effect_id=effect_id, reason="forked")
        return Cause("a person says yes", message, SYSTEM, effect_id), "given: --approve"

    async def _finish(self, record: EffectRecord) -> tuple[Cause, str] | None:
        found = await (self._ask(record) if record.kind == MODEL_KIND else self._execute(record))
        if found is None:
            return None
        outcome, source = found
        message = m.EffectFinished(
            effect_id=record.effect_id, attempt=record.attempt, outcome=outcome
        )
        return _about(record, f"ends: {show_outcome(outcome)}", message), source

    async def _ask(self, record: EffectRecord) -> tuple[Outcome, str] | None:
        fault = "" if self._steps or self._change.fault == CRASH else self._change.fault
        known = self._find(record)
        outcome = known.outcome if known else None
        source = "recorded"
        said: ModelAnswer | None = None
        if self._answers:
            said, source = self._answers.popleft(), "given"
        elif outcome is not None and outcome.status == "done":
            said = msgspec.convert(outcome.result, ModelAnswer)
        elif outcome is not None and not fault:
            return outcome, source
        if fault:
            said = said or ModelAnswer(text="", finish="stop")
            spoilt = spoil(said, fault)
            return await self._hands.ask(self._record.actor, record, spoilt), f"fault {fault}"
        if said is None:
            return None
        return await self._hands.ask(self._record.actor, record, said), source

    async def _execute(self, record: EffectRecord) -> tuple[Outcome, str]:
        known = self._find(record)
        is_first = not self._steps
        if is_first and self._change.result is not None:
            return self._change.result, "given"
        fault = self._change.fault if is_first and self._change.fault != CRASH else ""
        if not fault and known is not None and known.outcome is not None:
            return known.outcome, "recorded"
        outcome = await self._hands.execute(self._record.actor, record, fault)
        source = f"fault {fault}" if fault else "simulated sandbox over an empty directory"
        return outcome, source

    # --- what the record has --------------------------------------------------------------------

    def _find(self, record: EffectRecord) -> EffectRecord | None:
        """Return what the record has for the same request, kept for this effect from now on.

        A model's answers come in their order, whatever it is asked: a fork's conversation is
        another one by nature.
        """
        effect_id = record.effect_id
        if effect_id in self._mine:
            return self._mine[effect_id]
        found = self._unused.get(effect_id) or next(
            (each for each in self._unused.values() if _is_same_request(each, record)), None
        )
        if found is not None:
            del self._unused[found.effect_id]
            self._mine[effect_id] = found
        return found

    def _waiting(self) -> str:
        run = self._state.inner.run
        if run is None:
            return "the run has ended"
        states = [f"{each.kind} is {each.state}" for each in self._state.effects.values()]
        if any(each.state == "waiting" for each in self._state.effects.values()):
            return f"a person is asked, and the record has no answer to this: {', '.join(states)}"
        return f"nobody answers any more: {', '.join(states)}"


def _is_same_request(known: EffectRecord, record: EffectRecord) -> bool:
    if known.kind != record.kind:
        return False
    if known.kind == MODEL_KIND:
        return True
    return (known.tool, known.definition, known.args) == (
        record.tool,
        record.definition,
        record.args,
    )


def _about(record: EffectRecord, what: str, message: Message) -> Cause:
    return Cause(f"{record.kind} {what}", message, effect_id=record.effect_id)
