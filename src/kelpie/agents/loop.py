"""What a run does: ask the model, take its answer, wait for its tool calls, ask again, end.

Pure, over a `Draft`. Invariants: at most one run is active; an active run waits for exactly one
model call, or for at least one tool call; whatever ends it, no call is left without a return, and
the conversation can go on.
"""

from __future__ import annotations

from typing import Final

import msgspec

from kelpie.actors.commands import DeleteKv, PutKv
from kelpie.agents import calls, window
from kelpie.agents.config import read_options
from kelpie.agents.draft import Draft
from kelpie.agents.model import (
    OpenCall,
    Run,
    RunStatus,
    StopReason,
    TranscriptMessage,
    answer_id,
    prompt_key,
    run_key,
    start_key,
)
from kelpie.agents.prompt import render_prompt
from kelpie.agents.repair import CallFailed, Garbage, read_answer
from kelpie.core import limits
from kelpie.core.digests import digest_value
from kelpie.effects.messages import CancelEffect, EffectApproved, EffectSettled, EffectWaiting
from kelpie.effects.model import Effect, EffectRecord
from kelpie.llm.model import ModelAnswer, ToolCall, Usage

MODEL_EFFECT_TIMEOUT_MS: Final = (
    limits.MODEL_TIMEOUT_MS
    + limits.MODEL_RETRIES_MAX * limits.MODEL_RETRY_DELAY_MS_MAX
    + limits.EXECUTOR_MARGIN_MS
)
_SUCCESSES: Final[tuple[StopReason, ...]] = ("end_turn", "max_steps")


def begin_run(draft: Draft, run: Run, messages: tuple[TranscriptMessage, ...]) -> None:
    """Make ``run`` the active one, with its messages in the transcript, and ask the model."""
    assert draft.state.run is None, "one run is active at a time"
    assert messages, "a run answers something"
    before = msgspec.structs.replace(draft.state, run=run, queue=(), last_run=None, recent_runs=())
    draft.do(PutKv(key=start_key(run.run_id), value=before))
    draft.change(run=run)
    draft.change_run(status="running")
    draft.emit("run.started", run_id=run.run_id)
    if draft.state.context_tokens > draft.state.config.context_window:
        _drop_older_half(draft)
    for index, message in enumerate(messages):
        draft.say(message, opens=index == 0)
    _begin_step(draft)


def settle_effect(draft: Draft, message: EffectSettled) -> None:
    """Take the end of an effect; one that nobody waits for any more is only noted."""
    run = draft.state.run
    record = message.record
    if run is not None and run.model_ref and run.model_ref == message.ref:
        draft.change_run(model_ref="", status="running")
        _take_answer(draft, record)
        return
    index = draft.find_call(message.ref)
    if index is None:
        draft.emit("effect.late", effect_id=message.effect_id, ref=message.ref, state=record.state)
        return
    calls.settle_call(draft, index, record)
    _continue(draft)


def note_waiting(draft: Draft, message: EffectWaiting) -> None:
    """Note that an effect of the active run waits for a person."""
    call, known = _find_wait(draft, message.ref)
    if not known:
        return
    run = draft.run
    draft.emit("run.waiting", run_id=run.run_id, effect_id=message.effect_id, call=call)
    if call is None:
        draft.change_run(status="waiting")
        return
    index = draft.find_call(message.ref)
    assert index is not None, "the call was found before"
    draft.change_call(index, waiting=True, effect_id=message.effect_id)
    _set_status(draft)


def note_approved(draft: Draft, message: EffectApproved) -> None:
    """Note that a person said yes; the settlement follows later."""
    run = draft.state.run
    if run is None:
        return
    if run.model_ref and run.model_ref == message.ref:
        draft.change_run(status="running")
    else:
        index = draft.find_call(message.ref)
        if index is None or not run.open_calls[index].waiting:
            return
        draft.change_call(index, waiting=False)
        _set_status(draft)
    draft.emit("run.resumed", run_id=run.run_id, effect_id=message.effect_id)


def cancel_run(draft: Draft) -> None:
    """End the active run at a person's word."""
    run_id = draft.run.run_id
    assert run_id, "there is a run to cancel"
    _finish(draft, "cancelled", "")
    ended = draft.state.last_run
    assert ended is not None, "a run has ended"
    assert ended.run_id == run_id, "it is the one that was active"


def start_next(draft: Draft) -> None:
    """Begin the next queued run, if there is one and none is active."""
    if draft.state.run is not None or not draft.state.queue:
        return
    following, *rest = draft.state.queue
    draft.change(queue=tuple(rest))
    begin_run(draft, following.run, following.messages)


def _begin_step(draft: Draft, notice: str = "") -> None:
    """Close the step before, and ask the model once more, or end the run at one of its bounds."""
    run, config = draft.run, draft.state.config
    assert not run.model_ref, "one model call at a time"
    assert not run.open_calls, "every tool call has its return before the next model call"
    if run.steps >= run.steps_max:
        _finish(draft, "max_steps", "")
        return
    spent = run.usage.prompt_tokens + run.usage.completion_tokens
    if spent >= config.tokens_max:
        text = f"the run used {spent:,} tokens, its limit is {config.tokens_max:,}"
        _finish(draft, "max_tokens_exceeded", text)
        return
    if draft.state.context_tokens > config.context_window:
        text = f"the conversation has {draft.state.context_tokens:,} tokens, the context window "
        text += f"holds {config.context_window:,}; older messages were left out, send again"
        _finish(draft, "max_tokens_exceeded", text, overlong=True)
        return
    if run.steps:
        _close_step(draft)
    step_id = draft.turn.new_id("step")
    ref = f"model/{step_id}"
    draft.change_run(steps=run.steps + 1, step_id=step_id, model_ref=ref)
    draft.emit("step.started", run_id=run.run_id, step_id=step_id, ref=ref)
    _ask_model(draft, ref, notice)


def _ask_model(draft: Draft, ref: str, notice: str) -> None:
    state = draft.state
    text = render_prompt(state)
    digest = digest_value(text)
    if digest != state.prompt:
        draft.do(PutKv(key=prompt_key(digest), value=text))
        draft.change(prompt=digest)
    args = {
        "model": state.config.model,
        "prompt": digest,
        "sequences": list(state.window),
        "tools": [name for name in state.config.tools if name in draft.tools],
        "options": read_options(state.config),
        "notice": notice,
    }
    summary = f"ask {state.config.model}"
    timeout_ms = MODEL_EFFECT_TIMEOUT_MS
    draft.do(
        Effect(kind="model.generate", ref=ref, args=args, timeout_ms=timeout_ms, summary=summary)
    )


def _take_answer(draft: Draft, record: EffectRecord) -> None:
    run = draft.run
    answer = read_answer(record, draft.turn, may_be_empty=run.tool_returns > 0)
    if isinstance(answer, CallFailed):
        _finish(draft, answer.reason, answer.error, overlong=answer.overlong)
    elif isinstance(answer, Garbage):
        _repair(draft, answer.problem)
    else:
        _add_usage(draft, answer.usage)
        _say_answer(draft, answer, answer_id(record.effect_id, record.attempt))
        if answer.tool_calls:
            _begin_calls(draft, answer.tool_calls)
        else:
            _end_turn(draft, answer)


def _repair(draft: Draft, problem: str) -> None:
    """Hand garbage back to the model, as often as a run may."""
    run = draft.run
    if run.repairs >= limits.REPAIRS_PER_RUN_MAX:
        _finish(draft, "invalid_llm_response", problem)
        return
    draft.change_run(repairs=run.repairs + 1)
    _begin_step(draft, notice=f"Your last answer was unusable: {problem}. Answer again.")


def _say_answer(draft: Draft, answer: ModelAnswer, message_id: str) -> None:
    if not answer.text.strip() and not answer.tool_calls:
        return
    message = TranscriptMessage(
        id=message_id,
        sequence=0,
        role="assistant",
        content=answer.text,
        tool_calls=answer.tool_calls,
        reasoning=answer.reasoning,
        run_id=draft.run.run_id,
        step_id=draft.run.step_id,
        at_ms=draft.turn.now_ms,
    )
    draft.say(message)


def _begin_calls(draft: Draft, wanted: tuple[ToolCall, ...]) -> None:
    run = draft.run
    checked = calls.check_calls(draft, wanted)
    draft.change_run(open_calls=tuple(OpenCall(call=call) for call in wanted))
    bad = calls.refuse_calls(draft, checked)
    if bad:
        if run.repairs >= limits.REPAIRS_PER_RUN_MAX:
            _finish(draft, "invalid_tool_call", bad)
            return
        draft.change_run(repairs=run.repairs + 1)
    calls.begin_calls(draft, checked)
    _continue(draft)


def _continue(draft: Draft) -> None:
    """Go on to the next step once every call has settled."""
    if not all(call.settled for call in draft.run.open_calls):
        _set_status(draft)
        return
    calls.write_returns(draft)
    _begin_step(draft)


def _end_turn(draft: Draft, answer: ModelAnswer) -> None:
    match answer.finish:
        case "length":
            _finish(draft, "max_tokens_exceeded", "the answer was cut at the model's output limit")
        case "content_filter":
            _finish(draft, "error", "the provider's content filter stopped the answer")
        case _:
            _finish(draft, "end_turn", "")


def _finish(draft: Draft, reason: StopReason, error: str, *, overlong: bool = False) -> None:
    """End the active run: returns for its calls, effects given up, the record kept."""
    run = draft.run
    if run.model_ref:
        draft.do(CancelEffect(ref=run.model_ref))
    why = "the run was cancelled" if reason == "cancelled" else "the run ended"
    calls.write_returns(draft, ended=why)
    _close_step(draft)
    if overlong:
        _drop_older_half(draft)
    status: RunStatus = "failed"
    if reason == "cancelled":
        status = "cancelled"
    elif reason in _SUCCESSES:
        status = "completed"
    draft.change_run(
        status=status,
        stop_reason=reason,
        error=error[: limits.ERROR_TEXT_CHARS_MAX],
        model_ref="",
        finished_ms=draft.turn.now_ms,
    )
    record_finished(draft, draft.run)
    draft.change(run=None)
    assert draft.state.last_run is not None, "a finished run is remembered"


def record_finished(draft: Draft, run: Run) -> None:
    """Keep a finished run where `ShowRun`, repeats and readers find it, and say that it ended."""
    assert run.status in {"completed", "failed", "cancelled"}, "the run has ended"
    assert not run.open_calls, "an ended run has no open calls"
    assert not run.model_ref, "an ended run waits for no model"
    recent = (*draft.state.recent_runs, run.run_id)
    for forgotten in recent[: -limits.RUNS_REMEMBERED_MAX]:
        draft.do(DeleteKv(key=start_key(forgotten)))
    draft.change(last_run=run, recent_runs=recent[-limits.RUNS_REMEMBERED_MAX :])
    draft.do(PutKv(key=run_key(run.run_id), value=run))
    draft.emit("run.finished", run=run)


def _close_step(draft: Draft) -> None:
    run = draft.run
    assert run.step_id, "the step was begun"
    usage = run.step_usage
    draft.emit("step.finished", run_id=run.run_id, step_id=run.step_id, usage=usage)
    draft.change_run(step_usage=Usage())


def _add_usage(draft: Draft, used: Usage) -> None:
    total = draft.run.usage
    summed = Usage(
        prompt_tokens=_add(total.prompt_tokens, used.prompt_tokens),
        completion_tokens=_add(total.completion_tokens, used.completion_tokens),
        cached_tokens=_add(total.cached_tokens, used.cached_tokens),
        reasoning_tokens=_add(total.reasoning_tokens, used.reasoning_tokens),
    )
    draft.change_run(usage=summed, step_usage=used)
    draft.change(context_tokens=_add(used.prompt_tokens, used.completion_tokens))


def _add(left: int, right: int) -> int:
    """Add two counts; a provider's nonsense stays within what can be stored."""
    return min(max(left, 0) + max(right, 0), limits.INTEGER_MAX)


def _set_status(draft: Draft) -> None:
    """A run waits when every call that is still open waits for a person."""
    unsettled = [call for call in draft.run.open_calls if not call.settled]
    waits = bool(unsettled) and all(call.waiting for call in unsettled)
    draft.change_run(status="waiting" if waits else "running")


def _find_wait(draft: Draft, ref: str) -> tuple[ToolCall | None, bool]:
    """Return the call that begins to wait (None for the model's) and whether anything does."""
    run = draft.state.run
    if run is None:
        return None, False
    if run.model_ref and run.model_ref == ref:
        return None, run.status != "waiting"
    index = draft.find_call(ref)
    if index is None or run.open_calls[index].waiting:
        return None, False
    return run.open_calls[index].call, True


def _drop_older_half(draft: Draft) -> None:
    state = draft.state
    draft.set_window(window.halve(window.Window(state.window, state.exchanges)))
    draft.change(context_tokens=0)
