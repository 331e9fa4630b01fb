"""Lives through a recorded run again: the shipped machine behind the shipped gate, turn by turn.

Pure. Every turn is held against the record: the same events, the same effects with the same
arguments, verdicts, digests and ends. The first difference ends the replay and is said; what comes
after it in the record is not shown as if it had followed.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import msgspec

from kelpie.actors.commands import Command, Emit, WriteEffect
from kelpie.agents.machine import AgentMachine
from kelpie.agents.model import AgentState, QueuedRun
from kelpie.agents.model_executor import KIND as MODEL_KIND
from kelpie.core.errors import KelpieError
from kelpie.effects.gate import Gated, GatedState
from kelpie.effects.model import EffectRecord
from kelpie.effects.policy import Policy
from kelpie.effects.rules import EffectKind, GateRules
from kelpie.sim.replay.causes import (
    Cause,
    RecordedTurn,
    beginning,
    find_cause,
    is_foreign,
    next_ids,
)
from kelpie.sim.replay.record import EventRead, RunRecord, effect_of
from kelpie.tools.registry import ToolRegistry

_ASKED: Final = ("kind", "ref", "args", "tool", "definition", "promise", "timeout_ms", "summary")
_VALUE_CHARS_MAX: Final = 120
_CHANGED: Final = "; somebody may have changed the agent during the run"

State = GatedState[AgentState]

_encode: Final = msgspec.msgpack.Encoder().encode
_decode: Final = msgspec.msgpack.decode
_record_decoder: Final = msgspec.msgpack.Decoder(EffectRecord)


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One turn of the agent, lived through again or forked.

    Attributes:
        number: From 1; a fork goes on counting where it left the record.
        source: ``recorded``, or where a fork took this from.
        events: What it left in the log.
        problem: How it differs from the record, or why it was refused; empty otherwise.
    """

    number: int
    at_ms: int
    cause: Cause
    source: str
    before: State
    after: State
    commands: tuple[Command, ...]
    events: tuple[EventRead, ...]
    problem: str = ""

    @property
    def records(self) -> dict[str, EffectRecord]:
        """The effects that this turn wrote, as it left them, by id."""
        rows = [command.row for command in self.commands if isinstance(command, WriteEffect)]
        return {row.effect_id: _record_decoder.decode(row.body) for row in rows}


class Replayed(NamedTuple):
    """A run lived through again; ``problem`` says where it parts from the record, if it does."""

    steps: tuple[Step, ...]
    problem: str


def make_machine(
    record: RunRecord, tools: ToolRegistry, kinds: Mapping[str, EffectKind], ttl_ms: int
) -> Gated[AgentState]:
    """Return the shipped machine behind the shipped gate, whose questions last as they did."""
    for event in record.events:
        effect = record.effects.get(effect_of(event))
        if event.kind == "effect.waiting" and effect is not None and effect.preparation is not None:
            ttl_ms = effect.preparation.card.expires_ms - event.at_ms
            break
    rules = GateRules(policy=Policy(), kinds=kinds, approval_ttl_ms=ttl_ms)
    return Gated(AgentMachine(tools), rules)


def replay(record: RunRecord, machine: Gated[AgentState]) -> Replayed:
    """Return every turn of the recorded run, up to its end or to the first difference."""
    return _Replay(record, machine).live()


def take_turn(
    machine: Gated[AgentState],
    state: State,
    cause: Cause,
    turn: RecordedTurn,
    *,
    number: int,
    source: str,
) -> Step:
    """Return what the machine makes of a message; a refusal changes nothing and is the problem."""
    problem = ""
    after = state
    commands: tuple[Command, ...] = ()
    try:
        decision = machine.decide(state, cause.message, turn)
        after, commands = decision.state, decision.commands
    except (KelpieError, AssertionError) as error:
        problem = f"refused: {error}"
    events = tuple(
        EventRead(turn.now_ms, command.kind, _decode(_encode(command.body)))
        for command in commands
        if isinstance(command, Emit)
    )
    return Step(
        number=number,
        at_ms=turn.now_ms,
        cause=cause,
        source=source,
        before=state,
        after=after,
        commands=commands,
        events=events,
        problem=problem,
    )


def make_turn(
    record: RunRecord, cause: Cause, at_ms: int, ids: dict[str, deque[str]], *, number: int
) -> RecordedTurn:
    """Return the world as the ``number``-th turn of the run sees it."""
    seed = hashlib.blake2b(f"{record.run.run_id}/{number}".encode(), digest_size=16).digest()
    return RecordedTurn(
        actor=record.actor, now_ms=at_ms, seed=seed, principal=cause.principal, ids=ids
    )


class _Replay:
    def __init__(self, record: RunRecord, machine: Gated[AgentState]) -> None:
        self._record = record
        self._machine = machine
        self._ids = next_ids(record)
        self._known: set[str] = set()
        self._at = 0
        waiting = QueuedRun(run=record.run, messages=record.messages)
        inner = msgspec.structs.replace(record.before, queue=(waiting,))
        self._state: State = GatedState(inner, {})
        self._steps: list[Step] = []

    def live(self) -> Replayed:
        """Return what became of it."""
        record = self._record
        assert record.events[0].kind == "run.started", "a run begins with its beginning"
        while self._at < len(record.events):
            event = record.events[self._at]
            if self._steps and is_foreign(event, record, self._known):
                self._at += 1
                continue
            cause = beginning(record.actor)
            if self._steps:
                found = find_cause(event, record, dict(self._state.effects))
                if found is None:
                    number = len(self._steps) + 1
                    why = f"the log has {event.kind} here, and does not tell what made it happen"
                    return Replayed(tuple(self._steps), f"diverged at step {number}: {why}")
                cause = found
            step = self._take(cause, event.at_ms)
            self._steps.append(step)
            if step.problem:
                text = f"diverged at step {step.number}: {step.problem}"
                return Replayed(tuple(self._steps), text)
        return Replayed(tuple(self._steps), "")

    def _take(self, cause: Cause, at_ms: int) -> Step:
        number = len(self._steps) + 1
        turn = make_turn(self._record, cause, at_ms, self._ids, number=number)
        step = take_turn(self._machine, self._state, cause, turn, number=number, source="recorded")
        problem = step.problem or self._compare(step)
        self._at += len(step.events)
        assert step.number == len(self._steps) + 1, "steps have no gaps"
        self._state = step.after
        self._known.update(step.records)
        return dataclasses.replace(step, problem=problem)

    def _compare(self, step: Step) -> str:
        """Return how a turn differs from the record; nothing when it does not."""
        recorded = self._record.events[self._at : self._at + len(step.events)]
        if not step.events:
            return f"the log has {self._record.events[self._at].kind} here, the machine did nothing"
        for own, known in zip(step.events, recorded, strict=False):
            if own != known:
                is_call = known.kind == own.kind and own.body.get("kind") == MODEL_KIND
                return _differ(own, known) + _CHANGED * is_call
        if len(recorded) < len(step.events):
            return f"the machine goes on with {step.events[len(recorded)].kind}, the log ends"
        for asked in step.records.values():
            problem = self._compare_effect(step, asked)
            if problem:
                return problem
        return ""

    def _compare_effect(self, step: Step, own: EffectRecord) -> str:
        known = self._record.effects.get(own.effect_id)
        if known is None:
            return f"the machine asks for {own.kind}, which the store does not have"
        for field in _ASKED:
            ours, theirs = getattr(own, field), getattr(known, field)
            if ours != theirs:
                hint = _CHANGED if own.kind == MODEL_KIND else ""
                return f"it asks for {own.kind} with another {field}: {_part(ours, theirs)}{hint}"
        later = self._record.events[self._at + len(step.events) :]
        is_last = all(effect_of(event) != own.effect_id for event in later)
        # A row may be newer than the log was when it was read.
        if is_last and own.state == known.state and own != known:
            names = own.__struct_fields__
            name = next(each for each in names if getattr(own, each) != getattr(known, each))
            both = _part(getattr(own, name), getattr(known, name))
            return f"{own.kind} has another {name}: {both}"
        return ""


def _differ(own: EventRead, known: EventRead) -> str:
    if own.kind != known.kind:
        return f"the machine does {own.kind}, the log has {known.kind}"
    if own.body == known.body:
        return f"{own.kind} at another time"
    for name in {**known.body, **own.body}:
        ours, theirs = own.body.get(name), known.body.get(name)
        if ours != theirs:
            return f"{own.kind} has another {name}: {_part(ours, theirs)}"
    return f"{own.kind} differs"


def _part(ours: Any, theirs: Any) -> str:
    """Return two values, cut to what is around the first place where they part."""
    left, right = (json.dumps(each, default=repr, sort_keys=True) for each in (ours, theirs))
    same = next((i for i, (a, b) in enumerate(zip(left, right, strict=False)) if a != b), 0)
    start = max(0, same - _VALUE_CHARS_MAX // 3)
    cut = slice(start, start + _VALUE_CHARS_MAX)
    lead = "…" if start else ""
    return f"{lead}{left[cut]} now, {lead}{right[cut]} then"
