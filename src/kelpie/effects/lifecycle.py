"""The life of one effect as pure transitions over its record.

Every function returns a new record or raises; none looks at a clock or at another effect.
``ALLOWED`` is the whole state machine; `move` is the only way along it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import msgspec

from kelpie.core.limits import EXECUTOR_MARGIN_MS
from kelpie.effects.model import Approval, EffectRecord, Outcome, Verdict, bound_digest
from kelpie.storage.records import EFFECT_STATES_OPEN, EffectState

ALLOWED: Final[Mapping[EffectState, frozenset[EffectState]]] = {
    "proposed": frozenset({"waiting", "approved", "denied", "failed", "cancelled"}),
    "waiting": frozenset({"approved", "denied", "expired", "voided", "cancelled"}),
    "approved": frozenset(
        {"started", "waiting", "denied", "expired", "done", "failed", "unknown", "cancelled"}
    ),
    "started": frozenset({"approved", "done", "failed", "voided", "unknown", "cancelled"}),
    "unknown": frozenset({"done", "failed"}),
    "done": frozenset(),
    "failed": frozenset(),
    "denied": frozenset(),
    "expired": frozenset(),
    "voided": frozenset(),
    "cancelled": frozenset(),
}

assert all(bool(ALLOWED[state]) == (state in EFFECT_STATES_OPEN) for state in ALLOWED)


def is_open(record: EffectRecord) -> bool:
    """Return whether anything can still happen to ``record``."""
    return bool(ALLOWED[record.state])


def move(record: EffectRecord, to: EffectState, now_ms: int, **changes: Any) -> EffectRecord:
    """Return ``record`` in state ``to`` with ``changes``; the step must be allowed."""
    assert to in ALLOWED[record.state], f"{record.effect_id}: {record.state} -> {to}"
    moved: EffectRecord = msgspec.structs.replace(record, state=to, updated_ms=now_ms, **changes)
    check_record(moved)
    return moved


def ask(record: EffectRecord, verdict: Verdict, now_ms: int, *, expires_ms: int) -> EffectRecord:
    """Return ``record`` waiting for a person until ``expires_ms``, its digest fixed."""
    assert verdict.color == "red", "only red effects are asked about"
    assert record.preparation is not None, "a person is shown a card"
    card = msgspec.structs.replace(
        record.preparation.card,
        reasons=(*record.preparation.card.reasons, *verdict.reasons),
        expires_ms=expires_ms,
    )
    preparation = msgspec.structs.replace(record.preparation, card=card)
    digest = bound_digest(record, verdict.policy)
    return move(
        record,
        "waiting",
        now_ms,
        verdict=verdict,
        digest=digest,
        due_ms=expires_ms,
        preparation=preparation,
        approval=None,
    )


def approve(
    record: EffectRecord, verdict: Verdict, approval: Approval, now_ms: int, *, due_ms: int
) -> EffectRecord:
    """Return ``record`` approved; the approval must be bound to exactly this effect."""
    assert verdict.color != "deny", "a denied effect is never approved"
    assert approval.digest == bound_digest(record, verdict.policy), "approval of another effect"
    return move(
        record,
        "approved",
        now_ms,
        verdict=verdict,
        digest=approval.digest,
        approval=approval,
        due_ms=due_ms,
    )


def start(record: EffectRecord, *, session: str, now_ms: int) -> EffectRecord:
    """Return ``record`` started by ``session``, with its attempt counted and bounded in time."""
    assert record.approval is not None, "nothing starts without a yes"
    assert session, "an attempt belongs to an executor's session"
    return move(
        record,
        "started",
        now_ms,
        session=session,
        attempt=record.attempt + 1,
        due_ms=now_ms + record.timeout_ms + EXECUTOR_MARGIN_MS,
    )


def finish(record: EffectRecord, outcome: Outcome, now_ms: int) -> EffectRecord:
    """Return ``record`` at its outcome. Only a ``once`` effect can be unknown."""
    assert record.state == "started", "only a started attempt finishes"
    status = outcome.status
    if status == "unknown" and record.promise != "once":
        status = "failed"
    return move(record, status, now_ms, outcome=outcome, due_ms=0)


def check_record(record: EffectRecord) -> None:
    """Assert what holds for every record in every state."""
    state = record.state
    if state in {"approved", "started"}:
        assert record.verdict is not None, "approved without a verdict"
        assert record.approval is not None, "approved without an approval"
        assert record.approval.digest == record.digest, "approval of another digest"
    if state == "waiting":
        assert record.due_ms > 0, "a question without an end"
        assert record.verdict is not None, "a question without a verdict"
    if state == "started":
        assert record.session, "a started attempt without a session"
        assert record.attempt >= 1, "a started attempt is counted"
    if state == "unknown":
        assert record.promise == "once", "only once effects can be unknown"
