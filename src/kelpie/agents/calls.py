"""The tool calls of a step: begun together, settled in any order, returned in the model's order.

Pure, over a `Draft`. Invariant: once a step's assistant message is in the transcript, every call
of it is in ``open_calls`` until `write_returns` writes exactly one return for each, in order and
in one turn.
"""

from __future__ import annotations

from typing import Any

import msgspec

from kelpie.agents.draft import Draft
from kelpie.agents.model import OpenCall, TranscriptMessage
from kelpie.core.errors import InputError
from kelpie.core.limits import ERROR_TEXT_CHARS_MAX
from kelpie.effects.messages import CancelEffect
from kelpie.effects.model import Effect, EffectRecord
from kelpie.llm.model import ToolCall
from kelpie.tools.answers import cut_text
from kelpie.tools.model import MemoryChange, Settlement, ToolContext, ToolReturn, Wish

_Checked = dict[str, Any] | ToolReturn


def check_calls(draft: Draft, calls: tuple[ToolCall, ...]) -> tuple[_Checked, ...]:
    """Return each call's arguments, or the error return of a call that cannot be made at all."""
    return tuple(_check_call(draft, call) for call in calls)


def refuse_calls(draft: Draft, checked: tuple[_Checked, ...]) -> str:
    """Settle the open calls that failed their check; returns the first problem, or nothing."""
    assert len(checked) == len(draft.run.open_calls), "every open call was checked"
    problem = ""
    for index, arguments in enumerate(checked):
        if isinstance(arguments, ToolReturn):
            assert not arguments.ok, "a refusal is an error"
            _keep_return(draft, index, arguments)
            problem = problem or arguments.text
    return problem


def begin_calls(draft: Draft, checked: tuple[_Checked, ...]) -> None:
    """Begin the open calls of the active run that passed their check."""
    assert len(checked) == len(draft.run.open_calls), "every open call was checked"
    for index, arguments in enumerate(checked):
        if not isinstance(arguments, ToolReturn):
            _begin_call(draft, index, arguments)
    assert all(call.settled or call.effect_ref for call in draft.run.open_calls), "none is idle"


def settle_call(draft: Draft, index: int, record: EffectRecord) -> None:
    """Take the end of an open call's effect: it returns, or asks for its next effect."""
    open_call = draft.run.open_calls[index]
    assert open_call.effect_ref == record.ref, "the settlement belongs to this call"
    assert not open_call.settled, "a call returns once"
    settlement = Settlement(record=record, phase=open_call.phase, note=open_call.context)
    try:
        arguments = draft.tools.parse(open_call.call)
        step = draft.tools.get(open_call.call.name).settle(arguments, settlement)
    except InputError as error:  # another version of the program began this call
        text = f"Error: the effect of this call ended {record.state!r}, but {error.message}"
        step = ToolReturn(text=text, ok=False)
    draft.change_call(index, phase=open_call.phase + 1, effect_id=record.effect_id, waiting=False)
    if isinstance(step, ToolReturn):
        _keep_return(draft, index, step)
    else:
        _ask(draft, index, step)


def write_returns(draft: Draft, *, ended: str = "") -> None:
    """Write one return for each open call, in order.

    ``ended`` says why calls end without having settled; their effects are cancelled.
    """
    run = draft.run
    for open_call in run.open_calls:
        assert open_call.settled or ended, "every call has a return"
        if not open_call.settled and open_call.effect_ref:
            draft.do(CancelEffect(ref=open_call.effect_ref))
        ok = open_call.settled and open_call.ok
        text = open_call.result if open_call.settled else _explain_end(open_call, ended)
        message = TranscriptMessage(
            id=draft.turn.new_id("message"),
            sequence=0,
            role="tool",
            content=text,
            tool_call_id=open_call.call.id,
            name=open_call.call.name,
            status="success" if ok else "error",
            run_id=run.run_id,
            step_id=run.step_id,
            at_ms=draft.turn.now_ms,
        )
        draft.say(message)
    draft.change_run(open_calls=(), tool_returns=run.tool_returns + len(run.open_calls))
    assert not draft.run.open_calls, "no call is left open"


def _explain_end(open_call: OpenCall, ended: str) -> str:
    begun = bool(open_call.effect_ref)
    fate = "what it asked for may have happened" if begun else "it was not begun"
    return f"Error: {ended} before this call returned; {fate}."


def _check_call(draft: Draft, call: ToolCall) -> _Checked:
    offered = draft.state.config.tools
    if call.name not in draft.tools or call.name not in offered:
        known = ", ".join(offered) or "none"
        text = f"Error: there is no tool {call.name[:64]!r}; your tools are: {known}"
        return ToolReturn(text=text, ok=False)
    try:
        return draft.tools.parse(call)
    except InputError as error:
        return ToolReturn(text=f"Error: {error.message[:ERROR_TEXT_CHARS_MAX]}", ok=False)


def _begin_call(draft: Draft, index: int, arguments: dict[str, Any]) -> None:
    open_call = draft.run.open_calls[index]
    state = draft.state
    context = ToolContext(
        agent_id=state.agent_id, workspace=state.config.workspace, blocks=state.blocks
    )
    try:
        step = draft.tools.get(open_call.call.name).begin(arguments, context)
    except InputError as error:
        text = f"Error: {error.message[:ERROR_TEXT_CHARS_MAX]}"
        step = ToolReturn(text=text, ok=False)
    if isinstance(step, MemoryChange):
        draft.change_blocks(step.blocks)
        step = ToolReturn(text=step.text)
    if isinstance(step, ToolReturn):
        _keep_return(draft, index, step)
    else:
        _ask(draft, index, step)


def _keep_return(draft: Draft, index: int, answer: ToolReturn) -> None:
    text = cut_text(answer.text)
    draft.change_call(
        index, settled=True, ok=answer.ok, result=text, effect_ref="", waiting=False, context={}
    )


def _ask(draft: Draft, index: int, wish: Wish) -> None:
    """Ask for an effect of a call; its reference names step, call and phase."""
    run = draft.run
    open_call = run.open_calls[index]
    tool = draft.tools.get(open_call.call.name)
    ref = f"tool/{run.step_id}/{index}/{open_call.phase}"
    draft.change_call(index, effect_ref=ref, effect_id="", context=msgspec.to_builtins(wish.note))
    draft.do(
        Effect(
            kind=wish.kind,
            ref=ref,
            args=wish.args,
            tool=tool.name,
            definition=tool.definition,
            timeout_ms=wish.timeout_ms,
            summary=wish.summary,
        )
    )
