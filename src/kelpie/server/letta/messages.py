"""Messages: send and wait, send and stream, send and leave, list, cancel, answer what waits.

Every request that starts or resumes a run takes its event cursor first, so that nothing the run
does can be missed. A caller who leaves never cancels a run.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Any, Final, NamedTuple

from kelpie.agents.model import CancelRun, InputMessage, Run, StartRun
from kelpie.core.errors import AlreadyDecidedError, ConflictError, KelpieError, NotFoundError
from kelpie.core.ids import ActorId
from kelpie.core.limits import STREAM_PING_INTERVAL_MS
from kelpie.effects.messages import ApproveEffect, DenyEffect
from kelpie.server.errors import PendingApprovalError, RunFailedError
from kelpie.server.held import require_released
from kelpie.server.http import Response, Stream, encode_event, json_response
from kelpie.server.letta.agent_view import view_run
from kelpie.server.letta.follow import Ended, Follower, Quiet, Shown
from kelpie.server.letta.inputs import Answer, read_inputs
from kelpie.server.letta.message_types import (
    AnyMessage,
    ErrorMessage,
    LettaResponse,
    Ping,
    StopReasonOut,
    UsageOut,
)
from kelpie.server.letta.message_view import approval_request_id, read_time, view_messages
from kelpie.server.letta.pending import PendingCall, read_pending
from kelpie.server.letta.requests import CancelRequest, MessageCreate, MessageListQuery
from kelpie.server.letta.subjects import agent_actor, read_agent, require_cursor
from kelpie.server.letta.transcript import has_call, read_page
from kelpie.server.letta.unsupported import MESSAGE_FIELDS, refuse_unsupported
from kelpie.server.operations import Call, Nothing

DONE: Final = b"data: [DONE]\n\n"
KEEP_ALIVE: Final = b": keep-alive\n\n"

Sending = Call[Nothing, MessageCreate]


class _Begun(NamedTuple):
    """A run that this request started or resumed, and the cursor from before that."""

    agent: ActorId
    run_id: str
    cursor: int
    recheck: bool


async def create_message(call: Sending) -> Response | Stream:
    """Send messages, or answers to what waits, and return what the run says until it stops."""
    begun = await _begin(call)
    if call.body.streaming:
        return _stream(call, begun)
    shown: list[AnyMessage] = []
    kinds = call.body.include_return_message_types
    async with aclosing(_follower(call, begun).follow()) as items:
        async for item in items:
            if isinstance(item, Ended):
                return json_response(_whole_answer(item, shown))
            if not isinstance(item, Quiet) and (kinds is None or item.message_type in kinds):
                shown.append(item)
    raise AssertionError("a follower ends with the run's end")


async def stream_message(call: Sending) -> Stream:
    """Send messages and stream what the run says."""
    return _stream(call, await _begin(call))


async def send_message(call: Sending) -> Response:
    """Send messages and return the run at once; it goes on by itself."""
    agent = agent_actor(call)
    refuse_unsupported(call.body, MESSAGE_FIELDS)
    inputs = read_inputs(call.body)
    if isinstance(inputs[0], Answer):
        raise ConflictError("answers to an approval request are not sent in the background")
    run = await _start(call, agent, inputs, background=True)
    return json_response(view_run(run, agent.key))


async def list_messages(call: Call[MessageListQuery, Nothing]) -> Response:
    """Return a page of the conversation, newest first unless asked otherwise."""
    agent = agent_actor(call)
    query = call.query
    await read_agent(call, agent)
    messages = await read_page(
        call.deps.store,
        agent,
        after=require_cursor("query.after", query.after, "message"),
        before=require_cursor("query.before", query.before, "message"),
        limit=query.limit,
        descending=query.order == "desc",
    )
    return json_response(view_messages(messages, query.include_return_message_types))


async def cancel_runs(call: Call[Nothing, CancelRequest]) -> Response:
    """Cancel runs and return what became of each; without ids, the active one."""
    agent = agent_actor(call)
    state = await read_agent(call, agent)
    wanted = call.body.run_ids
    if not wanted:
        wanted = [state.run.run_id] if state.run is not None else []
    outcome: dict[str, str] = {}
    for run_id in dict.fromkeys(wanted):
        run: Run = await call.tell(agent, CancelRun(run_id=run_id), part=run_id)
        outcome[run_id] = run.status
    return json_response(outcome)


# --- beginning ----------------------------------------------------------------------------------


async def _begin(call: Sending) -> _Begun:
    agent = agent_actor(call)
    refuse_unsupported(call.body, MESSAGE_FIELDS)
    inputs = read_inputs(call.body)
    cursor = await _cursor(call, agent)
    if isinstance(inputs[0], Answer):
        run_id = await _answer(call, agent, inputs)
        return _Begun(agent, run_id, cursor, recheck=False)
    run = await _start(call, agent, inputs, background=call.body.background)
    return _Begun(agent, run.run_id, cursor, recheck=call.key is not None)


async def _cursor(call: Sending, agent: ActorId) -> int:
    newest = await call.deps.store.event_newest(agent)
    if newest is None:
        raise NotFoundError("agent", agent.key)
    return newest


async def _start(call: Sending, agent: ActorId, inputs: Any, *, background: bool) -> Run:
    state = await read_agent(call, agent)
    run_id = call.ids(f"messages.create/{agent.key}").next("run")
    pending = await read_pending(call.deps.runtime, agent, state.run)
    is_repeat = state.run is not None and state.run.run_id == run_id
    if pending and not is_repeat:
        raise PendingApprovalError(approval_request_id(pending[0].record.effect_id))
    if not background:
        require_released(call)
    messages: tuple[InputMessage, ...] = inputs
    message = StartRun(
        run_id=run_id,
        messages=messages,
        steps_max=call.body.max_steps or 0,
        background=background,
    )
    run: Run = await call.tell(agent, message)
    return run


async def _answer(call: Sending, agent: ActorId, inputs: Any) -> str:
    """Give the answers to the gate, each to exactly the effect that was shown; return the run."""
    answers: tuple[Answer, ...] = inputs
    state = await read_agent(call, agent)
    pending = await read_pending(call.deps.runtime, agent, state.run)
    matched = [(answer, await _match(call, agent, answer, pending)) for answer in answers]
    assert state.run is not None, "what waits belongs to a run"
    for answer, waiting in matched:
        effect_id, digest = waiting.record.effect_id, waiting.record.digest
        message = (
            ApproveEffect(effect_id=effect_id, digest=digest, reason=answer.reason)
            if answer.approve
            else DenyEffect(effect_id=effect_id, reason=answer.reason)
        )
        try:
            await call.tell(agent, message, part=effect_id)
        except NotFoundError:
            problem = f"approval {effect_id} was decided meanwhile"
            raise AlreadyDecidedError(problem, effect_id=effect_id) from None
    return state.run.run_id


async def _match(
    call: Sending, agent: ActorId, answer: Answer, pending: Sequence[PendingCall]
) -> PendingCall:
    """Return what an answer is about; an answer that could mean two things is refused."""
    if answer.tool_call_id:
        for waiting in pending:
            if waiting.call.id == answer.tool_call_id:
                return waiting
        if await has_call(call.deps.store, agent, answer.tool_call_id):
            raise AlreadyDecidedError(
                f"tool call {answer.tool_call_id!r} waits for nobody; it was decided before"
            )
        raise NotFoundError("tool call", answer.tool_call_id[:100])
    if not pending:
        raise AlreadyDecidedError("no tool call waits for approval; it was decided before")
    current = approval_request_id(pending[0].record.effect_id)
    if answer.request_id and answer.request_id != current:
        raise AlreadyDecidedError(
            f"approval request {answer.request_id!r} is not open; {current} is",
            pending_request_id=current,
        )
    if len(pending) > 1:
        raise ConflictError(f"{len(pending)} tool calls wait; answer each one in `approvals`")
    return pending[0]


# --- answering ----------------------------------------------------------------------------------


def _follower(call: Sending, begun: _Begun, *, tokens: bool = False) -> Follower:
    return Follower(
        call=call,
        agent=begun.agent,
        run_id=begun.run_id,
        cursor=begun.cursor,
        tokens=tokens,
        recheck=begun.recheck,
    )


def _whole_answer(ended: Ended, shown: list[AnyMessage]) -> LettaResponse:
    run = ended.run
    if run.status == "failed" and run.stop_reason not in {"max_tokens_exceeded", "max_steps"}:
        message = run.error or f"the run ended with {run.stop_reason or 'error'}"
        raise RunFailedError(message, run_id=run.run_id, stop_reason=run.stop_reason or "error")
    return LettaResponse(messages=shown, stop_reason=_stop_reason(ended), usage=_usage(run))


def _stop_reason(ended: Ended) -> StopReasonOut:
    reason = "requires_approval" if ended.waits else ended.run.stop_reason or "error"
    return StopReasonOut(stop_reason=reason)


def _usage(run: Run) -> UsageOut:
    usage = run.usage
    return UsageOut(
        prompt_tokens=usage.prompt_tokens,
        completion_tokens=usage.completion_tokens,
        total_tokens=usage.prompt_tokens + usage.completion_tokens,
        cached_input_tokens=usage.cached_tokens,
        reasoning_tokens=usage.reasoning_tokens,
        step_count=run.steps,
        run_ids=[run.run_id],
    )


def _stream(call: Sending, begun: _Begun) -> Stream:
    follower = _follower(call, begun, tokens=call.body.stream_tokens)
    return Stream(chunks=_events(call, follower))


async def _events(call: Sending, follower: Follower) -> AsyncGenerator[bytes, None]:
    """Yield the run as server-sent events; a failure on the way is an event, too."""
    clock = call.deps.clock
    quiet_since_ns = clock.boot_ns()
    try:
        async with aclosing(follower.follow()) as items:
            async for item in items:
                if isinstance(item, Quiet):
                    if clock.boot_ns() - quiet_since_ns < STREAM_PING_INTERVAL_MS * 1_000_000:
                        continue
                    yield _ping(call, follower.run_id)
                for chunk in _render(call, item):
                    yield chunk
                quiet_since_ns = clock.boot_ns()
    except KelpieError as error:
        failure = ErrorMessage(error_type=error.code, message=error.message, run_id=follower.run_id)
        yield encode_event(failure)
    yield DONE


def _render(call: Sending, item: Shown) -> list[bytes]:
    match item:
        case Ended():
            run = item.run
            chunks = [encode_event(_stop_reason(item)), encode_event(_usage(run))]
            if run.status == "failed":
                kind = run.stop_reason or "error"
                text = run.error or f"the run ended with {kind}"
                failure = ErrorMessage(error_type=kind, message=text, run_id=run.run_id)
                chunks.insert(0, encode_event(failure))
            return chunks
        case Quiet():
            return []
        case _:
            kinds = call.body.include_return_message_types
            return [encode_event(item)] if kinds is None or item.message_type in kinds else []


def _ping(call: Sending, run_id: str) -> bytes:
    if not call.body.include_pings:
        return KEEP_ALIVE
    date = read_time(call.deps.clock.now_ms())
    return encode_event(Ping(id=f"ping-{run_id}", date=date, run_id=run_id))
