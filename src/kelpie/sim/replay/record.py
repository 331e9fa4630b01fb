"""What a store says about one run of an agent: its start, its events, its effects.

Reads only, beside whoever holds the store. Invariant: the events are those of the agent from the
run's beginning to its end, gapless and in order, or up to now for a run that goes on.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import msgspec

from kelpie.agents.model import (
    RUNS_COLLECTION,
    AgentState,
    Run,
    TranscriptMessage,
    message_key,
    prompt_key,
    start_key,
)
from kelpie.core.errors import ConflictError, NotFoundError
from kelpie.core.ids import TENANT_DEFAULT, ActorId
from kelpie.core.limits import EVENT_PAGE_ROWS_MAX
from kelpie.effects.model import EffectRecord, Preparation
from kelpie.storage.protocol import Store

EFFECT_PREFIX: Final = "effect."
LATE: Final = "effect.late"

_state_decoder: Final = msgspec.msgpack.Decoder(AgentState)
_record_decoder: Final = msgspec.msgpack.Decoder(EffectRecord)


class EventRead(NamedTuple):
    """One event of the agent's log, its body decoded to plain values."""

    at_ms: int
    kind: str
    body: Any


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRecord:
    """One run as the store has it.

    Attributes:
        before: The agent's state when the run began, without a run.
        run: The run as it was then: queued.
        messages: What the run answers.
        events: From ``run.started`` to ``run.finished``, others' in between included.
        effects: The run's effects, by id, in the order of their first events.
        rows: The transcript and the system text that were there when the run began, by key.
    """

    actor: ActorId
    before: AgentState
    run: Run
    messages: tuple[TranscriptMessage, ...]
    events: tuple[EventRead, ...]
    effects: dict[str, EffectRecord]
    rows: dict[str, bytes]

    @property
    def is_ended(self) -> bool:
        """Whether the run has an end."""
        return ends(self.events[-1], self.run.run_id)

    def preparation_of(self, effect_id: str) -> Preparation | None:
        """Return what the executor said of an effect, before the gate asked a person."""
        record = self.effects[effect_id]
        preparation, verdict = record.preparation, record.verdict
        if preparation is None or verdict is None:
            return preparation
        reasons, asked = preparation.card.reasons, 0
        for event in self.events:
            asked += event.kind == "effect.waiting" and effect_of(event) == effect_id
        for _ in range(asked):
            reasons = reasons[: len(reasons) - len(verdict.reasons)]
        card = msgspec.structs.replace(preparation.card, reasons=reasons, expires_ms=0)
        return msgspec.structs.replace(preparation, card=card)


def effect_of(event: EventRead) -> str:
    """Return the id of the effect that moved with this event; empty for any other event."""
    if not event.kind.startswith(EFFECT_PREFIX) or event.kind == LATE:
        return ""
    return str(event.body["effect_id"])


def ends(event: EventRead, run_id: str) -> bool:
    """Return whether the event is the end of the run."""
    return event.kind == "run.finished" and event.body["run"]["run_id"] == run_id


async def read_run(store: Store, run_id: str) -> RunRecord:
    """Return what ``store`` says about a run.

    Raises:
        NotFoundError: There is no such run.
        ConflictError: The run waits for its turn, or its start is not kept.
        CorruptionError: A row is damaged.
    """
    item = await store.list_item(TENANT_DEFAULT, RUNS_COLLECTION, run_id)
    if item is None:
        raise NotFoundError("run", run_id)
    actor = item.owner
    earlier, events = await _read_events(store, actor, run_id)
    if not events:
        raise ConflictError(f"run {run_id} waits for its turn; there is nothing to replay yet")
    start = await store.kv_get(actor, start_key(run_id))
    if start is None:
        raise ConflictError(
            f"the start of run {run_id} is not kept: it is not among the agent's last runs, or it "
            "ran under a program that kept none"
        )
    state = _state_decoder.decode(start)
    assert state.run is not None, "a start is kept with its run"
    effects: dict[str, EffectRecord] = {}
    for effect_id in dict.fromkeys(map(effect_of, events)):
        row = await store.effect(TENANT_DEFAULT, effect_id) if effect_id else None
        if row is not None and effect_id not in earlier:
            effects[effect_id] = _record_decoder.decode(row.body)
    keys = [message_key(sequence) for sequence in state.window]
    keys += [prompt_key(state.prompt)] if state.prompt else []
    rows = {key: value for key in keys if (value := await store.kv_get(actor, key)) is not None}
    return RunRecord(
        actor=actor,
        before=msgspec.structs.replace(state, run=None),
        run=state.run,
        messages=_first_messages(events),
        events=tuple(events),
        effects=effects,
        rows=rows,
    )


async def _read_events(
    store: Store, actor: ActorId, run_id: str
) -> tuple[set[str], list[EventRead]]:
    """Return the effects that were there before the run, and the run's events."""
    earlier: set[str] = set()
    found: list[EventRead] = []
    after = 0
    while page := await store.events(actor, after, EVENT_PAGE_ROWS_MAX):
        after = page[-1].sequence
        for row in page:
            event = EventRead(row.at_ms, row.kind, msgspec.msgpack.decode(row.body))
            if found or (event.kind == "run.started" and event.body["run_id"] == run_id):
                found.append(event)
                if ends(event, run_id):
                    return earlier, found
            else:
                earlier.add(effect_of(event))
        if len(page) < EVENT_PAGE_ROWS_MAX:
            break
    return earlier, found


def _first_messages(events: list[EventRead]) -> tuple[TranscriptMessage, ...]:
    messages: list[TranscriptMessage] = []
    for event in events[1:]:
        if event.kind in {"step.started", "run.finished"}:
            break
        if event.kind == "message":
            message = msgspec.convert(event.body, TranscriptMessage)
            messages.append(msgspec.structs.replace(message, sequence=0))
    return tuple(messages)
