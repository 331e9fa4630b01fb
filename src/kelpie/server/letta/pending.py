"""What an agent's run waits for, as pairs of tool call and effect.

The run knows which calls wait, the gate knows the effects; both are one actor's state.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from kelpie.agents.model import Run
from kelpie.core.ids import ActorId
from kelpie.effects.messages import ShowEffects
from kelpie.effects.model import EffectRecord
from kelpie.llm.model import ToolCall
from kelpie.server.letta.message_types import ApprovalRequestMessage
from kelpie.server.letta.message_view import view_approval
from kelpie.server.ports import Calls


class PendingCall(NamedTuple):
    """A call that waits, and the effect a person answers."""

    call: ToolCall
    record: EffectRecord


def may_wait(run: Run | None) -> bool:
    """Return whether some part of the run waits for a person."""
    if run is None:
        return False
    return run.status == "waiting" or any(call.waiting for call in run.open_calls)


async def read_pending(runtime: Calls, agent: ActorId, run: Run | None) -> Sequence[PendingCall]:
    """Return what waits, in the order of the calls; empty when nothing does.

    A model call that waits appears as a call named after the effect's kind.
    """
    if run is None or not may_wait(run):
        return ()
    records: Sequence[EffectRecord] = await runtime.query(agent, ShowEffects())
    waiting = {record.ref: record for record in records if record.state == "waiting"}
    if run.model_ref in waiting:
        record = waiting[run.model_ref]
        call = ToolCall(id=record.effect_id, name=record.kind, arguments="{}")
        return (PendingCall(call, record),)
    return tuple(
        PendingCall(open_call.call, waiting[open_call.effect_ref])
        for open_call in run.open_calls
        if open_call.waiting and open_call.effect_ref in waiting
    )


def request_of(run: Run, pending: Sequence[PendingCall]) -> ApprovalRequestMessage:
    """Return the approval request message for what waits."""
    return view_approval(pending, run_id=run.run_id, step_id=run.step_id)


async def read_request(
    runtime: Calls, agent: ActorId, run: Run | None
) -> ApprovalRequestMessage | None:
    """Return the agent's open approval request, if there is one."""
    pending = await read_pending(runtime, agent, run)
    return request_of(run, pending) if run is not None and pending else None
