"""What people, and their silence, do to a waiting or unknown effect."""

from __future__ import annotations

from typing import Any

from kelpie.actors.commands import Forget, Remind
from kelpie.core.errors import AlreadyDecidedError, ConflictError
from kelpie.effects import lifecycle
from kelpie.effects import messages as m
from kelpie.effects.gate_turn import GateTurn, expiry_name
from kelpie.effects.model import Approval, EffectRecord, Outcome


def approve(work: GateTurn[Any], record: EffectRecord, digest: str, reason: str) -> None:
    """Take a person's yes; late, it expires instead.

    Raises:
        AlreadyDecidedError: The effect does not wait any more.
        ConflictError: The person read another version of the effect.
    """
    _require_waiting(record)
    assert record.digest, "a question is bound to what was shown"
    if digest and digest != record.digest:
        raise ConflictError(
            f"effect {record.effect_id} is not the one you read; show it again",
            digest=record.digest,
        )
    if work.turn.now_ms >= record.due_ms:
        expire(work, record)
    else:
        assert record.verdict is not None
        approval = Approval(
            digest=record.digest,
            by=work.turn.principal,
            at_ms=work.turn.now_ms,
            reason=reason,
        )
        work.commands.append(Forget(name=expiry_name(record)))
        work.approve(record, record.verdict, approval, due_ms=record.due_ms)
    work.reply(record.effect_id)


def deny(work: GateTurn[Any], record: EffectRecord, reason: str) -> None:
    """Take a person's no.

    Raises:
        AlreadyDecidedError: The effect does not wait any more.
    """
    _require_waiting(record)
    assert record.verdict is not None
    work.deny(record, record.verdict, reason, by=work.turn.principal)
    work.reply(record.effect_id)


def resolve(work: GateTurn[Any], record: EffectRecord, reason: str, *, succeeded: bool) -> None:
    """Take a person's word on what became of an unknown effect.

    Raises:
        ConflictError: The effect's outcome is not unknown.
    """
    if record.state != "unknown":
        raise ConflictError(f"effect {record.effect_id} is {record.state}, not unknown")
    note = f"resolved by {work.turn.principal}: {reason}"
    outcome = Outcome(status="done" if succeeded else "failed", error="" if succeeded else note)
    state = lifecycle.move(record, outcome.status, work.turn.now_ms, outcome=outcome, note=note)
    work.settle(state)
    work.reply(record.effect_id)


def _require_waiting(record: EffectRecord) -> None:
    if record.state != "waiting":
        raise AlreadyDecidedError(
            f"effect {record.effect_id} is {record.state}; it was decided before",
            effect_id=record.effect_id,
            state=record.state,
        )


def expire(work: GateTurn[Any], record: EffectRecord) -> None:
    """End a question whose time has passed; ask for another look when the clock went back."""
    if record.state != "waiting":
        return
    if work.turn.now_ms < record.due_ms:
        message = m.ExpireEffect(effect_id=record.effect_id)
        work.commands.append(Remind(name=expiry_name(record), at_ms=record.due_ms, message=message))
        return
    assert record.due_ms > 0, "a question has an end"
    work.forget_question(record)
    note = "nobody answered in time, which counts as no"
    work.settle(lifecycle.move(record, "expired", work.turn.now_ms, note=note, due_ms=0))
