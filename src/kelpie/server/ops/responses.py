"""What Kelpie's own routes answer."""

from __future__ import annotations

from typing import Any

import msgspec

from kelpie.effects.model import DiffCard, EffectRecord, Outcome, Verdict


class Out(msgspec.Struct, frozen=True, kw_only=True):
    """A response object."""


class EffectOut(Out, frozen=True, kw_only=True):
    """One effect, in whatever state. ``approval_by`` is empty without an approval."""

    effect_id: str
    actor: str
    kind: str
    state: str
    promise: str
    tool: str
    summary: str
    digest: str
    args: dict[str, Any]
    card: DiffCard | None
    verdict: Verdict | None
    outcome: Outcome | None
    approval_by: str
    grant: str
    attempt: int
    note: str
    due_ms: int
    created_ms: int
    updated_ms: int


class EffectPage(Out, frozen=True, kw_only=True):
    """Effects by creation; ``next_after`` is null on the last page."""

    effects: list[EffectOut]
    next_after: str | None


class EventOut(Out, frozen=True, kw_only=True):
    """One event. ``position`` counts all events of the store, ``sequence`` those of its actor."""

    position: int
    actor: str
    sequence: int
    at_ms: int
    kind: str
    body: Any


class EventPage(Out, frozen=True, kw_only=True):
    """Events in order; ``next_after`` is the cursor that continues after them."""

    events: list[EventOut]
    next_after: int


class AuditOut(Out, frozen=True, kw_only=True):
    """One link of an audit chain; ``hash`` and ``previous`` are hex."""

    cursor: str
    shard: int
    sequence: int
    at_ms: int
    actor: str
    kind: str
    principal: str
    body: Any
    previous: str
    hash: str


class AuditPage(Out, frozen=True, kw_only=True):
    """Audit records by shard and sequence; ``next_after`` is null on the last page."""

    records: list[AuditOut]
    next_after: str | None


class PlanList(Out, frozen=True, kw_only=True):
    """Plans, newest first."""

    plans: list[dict[str, Any]]


class AuditSoundness(Out, frozen=True, kw_only=True):
    """What a verification of every audit chain found, and what it cannot prove."""

    ok: bool
    chains: int
    records: int
    problem: str
    unproven: str


class StoreSoundness(Out, frozen=True, kw_only=True):
    """What a check of the whole store found; ``damaged`` names actors."""

    ok: bool
    problems: list[str]
    damaged: list[str]


class StoreHeld(Out, frozen=True, kw_only=True):
    """Whether the store is held."""

    held: bool


class BackupOut(Out, frozen=True, kw_only=True):
    """A finished backup."""

    target: str


class HealthOut(Out, frozen=True, kw_only=True):
    """The server answers."""

    status: str
    version: str


class NodeOut(msgspec.Struct, frozen=True, kw_only=True):
    """One session of a node; ``ended_ms`` is 0 while it lives."""

    name: str
    address: str
    state: str
    session: str
    shards: int
    cordoned: bool
    draining: bool
    renewals: int
    ttl_ms: int
    started_ms: int
    ended_ms: int


class ClusterOut(msgspec.Struct, frozen=True, kw_only=True):
    """The cluster: ``moves`` counts the shards that are not where they should be."""

    nodes: list[NodeOut]
    shards: int
    unowned: int
    moves: int


class ShardOut(msgspec.Struct, frozen=True, kw_only=True):
    """One shard: ``node`` owns it, ``wished`` should; ``pinned`` and ``apart`` are its rules."""

    shard: int
    epoch: int
    node: str
    address: str
    wished: str
    pinned: str
    apart: str


class ShardList(msgspec.Struct, frozen=True, kw_only=True):
    """Every shard, in order."""

    shards: list[ShardOut]


class WhereOut(msgspec.Struct, frozen=True, kw_only=True):
    """Where an actor is served."""

    actor: str
    where: ShardOut


class PinOut(msgspec.Struct, frozen=True, kw_only=True):
    """The shards that carry a rule now."""

    shards: list[int]
    node: str
    apart: str


def view_effect(actor: str, record: EffectRecord) -> EffectOut:
    """Return an effect record on the wire."""
    preparation = record.preparation
    return EffectOut(
        effect_id=record.effect_id,
        actor=actor,
        kind=record.kind,
        state=record.state,
        promise=record.promise,
        tool=record.tool,
        summary=record.summary,
        digest=record.digest,
        args=record.args,
        card=preparation.card if preparation is not None else None,
        verdict=record.verdict,
        outcome=record.outcome,
        approval_by=record.approval.by if record.approval is not None else "",
        grant=record.grant,
        attempt=record.attempt,
        note=record.note,
        due_ms=record.due_ms,
        created_ms=record.created_ms,
        updated_ms=record.updated_ms,
    )
