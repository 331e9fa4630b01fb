"""What made a turn happen, read from the events that it left and the effects as they ended.

Pure. An agent's log says what became of every message it got; this says which message that was.
What it cannot tell it does not guess: the turn is then named, and nothing is replayed beyond it.
"""

from __future__ import annotations

from collections import deque
from typing import Final, NamedTuple

from kelpie.actors.commands import Message
from kelpie.actors.machine import Turn
from kelpie.agents.model import CancelRun
from kelpie.core.ids import ActorId
from kelpie.effects import messages as m
from kelpie.effects.model import DiffCard, EffectRecord, Outcome
from kelpie.sim.replay.record import LATE, EventRead, RunRecord, effect_of, ends

SYSTEM: Final = "system"


class Cause(NamedTuple):
    """A message to the agent, who sent it, and what it is in a few words.

    ``effect_id`` is the effect that it is about; empty without one.
    """

    title: str
    message: Message
    principal: str = SYSTEM
    effect_id: str = ""


class RecordedTurn(Turn, kw_only=True, eq=False):
    """A turn that gives the ids which the recorded one gave, by prefix; then new ones."""

    ids: dict[str, deque[str]]

    def new_id(self, prefix: str) -> str:
        """Return the next recorded id of this prefix, or a new one when there is none left."""
        recorded = self.ids.get(prefix)
        return recorded.popleft() if recorded else f"{prefix}-{self.new_uuid()}"


def beginning(actor: ActorId) -> Cause:
    """Return the message on which an agent begins the run that waits: one that says nothing else.

    What began the run in the world, a request or the end of the run before, does not matter to it.
    """
    message = m.EffectWaiting(effect_id="", ref="", card=DiffCard(title=""))
    return Cause(f"the run of {actor.key} begins", message)


def is_foreign(event: EventRead, record: RunRecord, known: set[str]) -> bool:
    """Return whether an event that begins a turn has nothing to do with the run."""
    if event.kind == LATE:
        return True
    if event.kind == "run.finished":
        return not ends(event, record.run.run_id)
    effect_id = effect_of(event)
    return bool(effect_id) and effect_id not in known and effect_id not in record.effects


def find_cause(
    event: EventRead, record: RunRecord, effects: dict[str, EffectRecord]
) -> Cause | None:
    """Return the message whose turn begins with ``event``; None when the log does not tell.

    Args:
        event: The first that the turn left.
        record: All that is known of the run.
        effects: The effects that are open before the turn.
    """
    effect_id = effect_of(event)
    before = effects.get(effect_id)
    if before is None or effect_id not in record.effects:
        return None
    after = event.kind.partition(".")[2]
    last = record.effects[effect_id]
    cancel = CancelRun(run_id=record.run.run_id)
    if _is_cancel(before.state, after):
        return Cause("the run is cancelled", cancel, effect_id=effect_id)
    match before.state:  # an open effect has no other state
        case "proposed":
            return _prepared(record, last, after)
        case "waiting":
            return _answered(event, last, after)
        case "approved":
            return _started(before, last, after)
        case "started":
            return _finished(before, last, after)
        case _:
            return _resolved(event, last, after)


def _is_cancel(before: str, after: str) -> bool:
    """Return whether only the end of its run moves an effect so.

    A started one is asked to stop and stays started; what then stops it is its own end.
    """
    return (after == "cancelled" and before != "started") or before == after == "started"


def next_ids(record: RunRecord) -> dict[str, deque[str]]:
    """Return the ids that the run's turns made, by prefix, in the order in which they did."""
    ids: dict[str, deque[str]] = {
        "step": deque(),
        "effect": deque(record.effects),
        "message": deque(),
        "call": deque(),
    }
    given = _call_ids_of_models(record)
    for event in record.events:
        body = event.body
        if event.kind == "step.started":
            ids["step"].append(body["step_id"])
        elif event.kind == "message" and body["run_id"] == record.run.run_id:
            if body["role"] == "tool":
                ids["message"].append(body["id"])
            made = [call["id"] for call in body["tool_calls"] if call["id"] not in given]
            ids["call"].extend(made)
    return ids


def _call_ids_of_models(record: RunRecord) -> set[str]:
    outcomes = [each.outcome for each in record.effects.values() if each.outcome is not None]
    calls = [call for outcome in outcomes for call in outcome.result.get("tool_calls") or ()]
    return {str(call.get("id")) for call in calls}


def _prepared(record: RunRecord, last: EffectRecord, after: str) -> Cause:
    effect_id = last.effect_id
    title = f"{last.kind} is prepared"
    if after == "failed":
        message = m.EffectPrepared(effect_id=effect_id, failure=last.outcome)
        return Cause(f"{title}, and cannot be done", message, effect_id=effect_id)
    preparation = record.preparation_of(effect_id)
    return Cause(
        title, m.EffectPrepared(effect_id=effect_id, preparation=preparation), SYSTEM, effect_id
    )


def _answered(event: EventRead, last: EffectRecord, after: str) -> Cause | None:
    effect_id = last.effect_id
    if after == "expired":
        return Cause("nobody answered", m.ExpireEffect(effect_id=effect_id), effect_id=effect_id)
    if after == "denied":
        by, _, reason = event.body["note"].removeprefix("denied by ").partition(": ")
        deny = m.DenyEffect(effect_id=effect_id, reason=reason)
        return Cause(f"{by} says no", deny, by, effect_id)
    if after != "approved":
        return None
    by, reason = SYSTEM, ""
    if last.approval is not None:
        by, reason = last.approval.by, last.approval.reason
    return Cause(
        f"{by} says yes", m.ApproveEffect(effect_id=effect_id, reason=reason), by, effect_id
    )


def _started(before: EffectRecord, last: EffectRecord, after: str) -> Cause:
    if after == "unknown":
        return _recovered(before, "the store came back from a copy", restored=True)
    session = last.session or "a session"
    message = m.StartEffect(effect_id=before.effect_id, session=session)
    return Cause(f"{last.kind} starts", message, effect_id=before.effect_id)


def _recovered(before: EffectRecord, why: str, *, restored: bool = False) -> Cause:
    message = m.RecoverEffect(
        effect_id=before.effect_id,
        attempt=before.attempt,
        ended_session=before.session,
        untouched=True,
        restored=restored,
    )
    return Cause(f"{before.kind}: {why}", message, effect_id=before.effect_id)


def _finished(before: EffectRecord, last: EffectRecord, after: str) -> Cause:
    outcome = last.outcome
    if outcome is None or last.state != after:  # "approved" again, for one
        # It was unknown, and a person said since what became of it: only the process's end fits.
        return _recovered(before, "the process that ran it has ended")
    message = m.EffectFinished(effect_id=before.effect_id, attempt=before.attempt, outcome=outcome)
    return Cause(
        f"{before.kind} ends: {show_outcome(outcome)}", message, effect_id=before.effect_id
    )


def _resolved(event: EventRead, last: EffectRecord, after: str) -> Cause:
    by, _, reason = event.body["note"].removeprefix("resolved by ").partition(": ")
    message = m.ResolveEffect(effect_id=last.effect_id, succeeded=after == "done", reason=reason)
    return Cause(f"{by} says what became of {last.kind}", message, by, last.effect_id)


def show_outcome(outcome: Outcome) -> str:
    """Return how an attempt ended, in a few words; the text is untrusted."""
    return f"{outcome.status}: {outcome.error}" if outcome.error else outcome.status
