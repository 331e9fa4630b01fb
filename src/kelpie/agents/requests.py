"""Asking an agent for a run, and taking the request back.

Pure, over a `Draft`. Invariant: a run id names one run; a repeated request starts nothing.
"""

from __future__ import annotations

import msgspec

from kelpie.actors.commands import PutListItem, Reply
from kelpie.agents import loop
from kelpie.agents.config import check_request, measure
from kelpie.agents.draft import Draft
from kelpie.agents.model import (
    RUNS_COLLECTION,
    AgentState,
    CancelRun,
    InputMessage,
    QueuedRun,
    Run,
    StartRun,
    TranscriptMessage,
)
from kelpie.core import limits
from kelpie.core.errors import ConflictError, NotFoundError, OverloadedError


def find_run(state: AgentState, run_id: str) -> Run | None:
    """Return the active, a queued or the last run, if its id is ``run_id``."""
    runs = [state.run, *(entry.run for entry in state.queue), state.last_run]
    for run in runs:
        if run is not None and run.run_id == run_id:
            return run
    return None


def start_run(draft: Draft, message: StartRun) -> None:
    """Begin a run, or queue it behind the active one.

    Raises:
        InputError: The request is refused.
        ConflictError: The agent has no model, or the run ended before the last one.
        OverloadedError: Too many runs are queued.
    """
    check_request(message)
    state = draft.state
    known = find_run(state, message.run_id)
    if known is not None:
        draft.do(Reply(value=known))
        return
    if message.run_id in state.recent_runs:
        raise ConflictError(f"run {message.run_id!r} has already ended", run_id=message.run_id)
    if not state.config.model:
        raise ConflictError("this agent has no model; set its `model` to <provider>/<name>")
    run = _make_run(draft, message)
    sort_key = f"{run.created_ms:016d}"
    draft.do(
        PutListItem(collection=RUNS_COLLECTION, item_id=run.run_id, sort_key=sort_key, body=None)
    )
    messages = tuple(_make_message(draft, run, each) for each in message.messages)
    if state.run is None:
        assert not state.queue, "nothing queues behind nothing"
        loop.begin_run(draft, run, messages)
    else:
        _enqueue(draft, QueuedRun(run=run, messages=messages))
    started = find_run(draft.state, message.run_id)
    assert started is not None, "a run that was asked for is known"
    draft.do(Reply(value=started))


def cancel_run(draft: Draft, message: CancelRun) -> None:
    """Cancel a run, active or queued; one that has ended stays as it ended.

    Raises:
        NotFoundError: No such run is known.
    """
    run = find_run(draft.state, message.run_id)
    if run is None:
        raise NotFoundError("run", message.run_id[: limits.NAME_CHARS_MAX])
    if run is draft.state.run:
        loop.cancel_run(draft)
    elif run is not draft.state.last_run:
        _cancel_queued(draft, run)
    ended = draft.state.last_run
    assert ended is not None, "a cancelled run has ended"
    assert ended.run_id == message.run_id, "it is the one that was named"
    draft.do(Reply(value=ended))


def _enqueue(draft: Draft, entry: QueuedRun) -> None:
    queue = (*draft.state.queue, entry)
    if len(queue) > limits.RUNS_QUEUED_PER_AGENT_MAX:
        raise OverloadedError(
            f"{limits.RUNS_QUEUED_PER_AGENT_MAX} runs wait for this agent already; try again later",
            limit=limits.RUNS_QUEUED_PER_AGENT_MAX,
        )
    size = sum(measure(message) for each in queue for message in each.messages)
    if size > limits.RUNS_QUEUED_BYTES_MAX:
        raise OverloadedError(
            f"{size:,} bytes of messages would wait for this agent, the limit is "
            f"{limits.RUNS_QUEUED_BYTES_MAX:,}; try again later",
            limit=limits.RUNS_QUEUED_BYTES_MAX,
        )
    assert draft.state.run is not None, "only behind an active run"
    draft.change(queue=queue)
    assert draft.state.queue[-1] is entry, "the newest run waits last"


def _cancel_queued(draft: Draft, run: Run) -> None:
    rest = tuple(entry for entry in draft.state.queue if entry.run is not run)
    assert len(rest) == len(draft.state.queue) - 1, "the run was queued once"
    draft.change(queue=rest)
    now_ms = draft.turn.now_ms
    ended = msgspec.structs.replace(
        run, status="cancelled", stop_reason="cancelled", finished_ms=now_ms
    )
    loop.record_finished(draft, ended)
    assert draft.state.last_run is ended, "it is remembered as ended"


def _make_run(draft: Draft, message: StartRun) -> Run:
    return Run(
        run_id=message.run_id,
        status="queued",
        steps_max=message.steps_max or draft.state.config.steps_max,
        created_ms=draft.turn.now_ms,
        background=message.background,
    )


def _make_message(draft: Draft, run: Run, message: InputMessage) -> TranscriptMessage:
    return TranscriptMessage(
        id=draft.turn.new_id("message"),
        sequence=0,
        role=message.role,
        content=message.content,
        name=message.name,
        run_id=run.run_id,
        otid=message.otid,
        sender_id=message.sender_id,
        at_ms=draft.turn.now_ms,
    )
