"""Reading a model's answer, and what to do when it is garbage.

Pure. Garbage is an answer that cannot be decoded, is empty where it must not be, or is beyond a
bound. The model is told what was wrong and asked again, at most ``REPAIRS_PER_RUN_MAX`` times in a
run. An unreadable answer never enters the transcript.
"""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from kelpie.actors.machine import Turn
from kelpie.agents.model import StopReason
from kelpie.core.limits import ANSWER_BYTES_MAX, ERROR_TEXT_CHARS_MAX, TOOL_CALLS_PER_STEP_MAX
from kelpie.effects.model import EffectRecord
from kelpie.llm.model import ModelAnswer, ToolCall

_TOO_LONG = "the request does not fit the model's context; older messages were left out of it"


@dataclass(frozen=True, slots=True, kw_only=True)
class Garbage:
    """An answer to hand back to the model with this explanation."""

    problem: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CallFailed:
    """The model call came to nothing; ``overlong`` says that the request was too large."""

    reason: StopReason
    error: str
    overlong: bool = False


def read_answer(
    record: EffectRecord, turn: Turn, *, may_be_empty: bool
) -> ModelAnswer | Garbage | CallFailed:
    """Return what a settled model effect says; tool calls have distinct, non-empty ids.

    ``may_be_empty`` allows silence: after tool returns it is a way to end the turn.
    """
    assert record.kind == "model.generate", "only a model call is read as an answer"
    if record.state != "done" or record.outcome is None:
        return _read_failure(record)
    try:
        answer = msgspec.convert(record.outcome.result, ModelAnswer)
    except msgspec.ValidationError as error:
        return Garbage(problem=f"the answer could not be read: {error}"[:ERROR_TEXT_CHARS_MAX])
    if not answer.text.strip() and not answer.tool_calls and not may_be_empty:
        return Garbage(problem="the answer was empty")
    if len(answer.tool_calls) > TOOL_CALLS_PER_STEP_MAX:
        count = f"{len(answer.tool_calls)} tool calls"
        return Garbage(problem=f"{count} at once, at most {TOOL_CALLS_PER_STEP_MAX} are allowed")
    size = len(msgspec.msgpack.encode(answer))
    if size > ANSWER_BYTES_MAX:
        return Garbage(problem=f"the answer has {size:,} bytes, at most {ANSWER_BYTES_MAX:,} fit")
    return msgspec.structs.replace(answer, tool_calls=_name_calls(answer.tool_calls, turn))


def _read_failure(record: EffectRecord) -> Garbage | CallFailed:
    outcome = record.outcome
    error = (outcome.error if outcome else "") or record.note or f"the call was {record.state}"
    error = error[:ERROR_TEXT_CHARS_MAX]
    reason = str(outcome.result.get("reason", "")) if outcome else ""
    if record.state == "failed" and reason == "malformed":
        return Garbage(problem=error)
    if record.state == "failed" and reason == "too_large":
        return CallFailed(
            reason="max_tokens_exceeded", error=f"{_TOO_LONG}: {error}", overlong=True
        )
    return CallFailed(reason="llm_api_error", error=error)


def _name_calls(calls: tuple[ToolCall, ...], turn: Turn) -> tuple[ToolCall, ...]:
    """Give an own id to calls whose id is missing or repeated, so that returns can be paired."""
    seen: set[str] = set()
    named: list[ToolCall] = []
    for call in calls:
        fresh = not call.id or call.id in seen
        each = msgspec.structs.replace(call, id=turn.new_id("call")) if fresh else call
        seen.add(each.id)
        named.append(each)
    assert len(seen) == len(calls), "every call of a step has its own id"
    return tuple(named)
