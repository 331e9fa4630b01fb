"""Attempts of an approved effect: started, finished, or recovered by the effect's promise."""

from __future__ import annotations

from typing import Any

from kelpie.actors.commands import Forget, Remind
from kelpie.core import limits
from kelpie.effects import lifecycle
from kelpie.effects import messages as m
from kelpie.effects.gate_turn import GateTurn
from kelpie.effects.model import EffectRecord, Outcome


def start(work: GateTurn[Any], record: EffectRecord, session: str) -> None:
    """Start an approved effect, after comparing the clock and the policy once more."""
    if record.state != "approved" or work.is_grant(record):
        work.reply(record.effect_id)
        return
    now_ms = work.turn.now_ms
    if record.due_ms and now_ms >= record.due_ms:
        _expire(work, record)
        work.reply(record.effect_id)
        return
    verdict = work.rules.policy.classify(record, now_ms)
    assert record.verdict is not None
    if verdict.color == "deny":
        work.deny(record, verdict, " ".join(verdict.reasons), by="policy")
    elif verdict.policy != record.verdict.policy and verdict.color == "red":
        work.ask(record, verdict)
    else:
        work.save(lifecycle.start(record, session=session, now_ms=now_ms))
    work.reply(record.effect_id)


def _expire(work: GateTurn[Any], record: EffectRecord) -> None:
    """End an approved effect whose approval has: untouched, or cut short by the attempts it had."""
    now_ms, is_cut = work.turn.now_ms, record.attempt > 0 and record.promise != "reconcilable"
    note = "approved, but not started before the approval expired"
    if is_cut:
        error = f"attempt {record.attempt} was interrupted, and the approval has expired since"
        outcome = Outcome(status="failed", error=error)
        work.settle(lifecycle.move(record, "failed", now_ms, outcome=outcome, due_ms=0))
    else:
        work.settle(lifecycle.move(record, "expired", now_ms, note=note, due_ms=0))


def _ends_ms(record: EffectRecord) -> int:
    """Return when the yes to an interrupted effect ends, 0 for one that does not."""
    approval, preparation = record.approval, record.preparation
    is_answer = approval is not None and approval.by != "policy" and not approval.grant
    return preparation.card.expires_ms if is_answer and preparation is not None else 0


def finish(work: GateTurn[Any], record: EffectRecord, attempt: int, outcome: Outcome) -> None:
    """Take an attempt's outcome; a late or repeated one is ignored."""
    if record.state != "started" or record.attempt != attempt:
        return
    _forget_recovery(work, record)
    work.settle(lifecycle.finish(record, outcome, work.turn.now_ms))


def recover(work: GateTurn[Any], record: EffectRecord, message: m.RecoverEffect) -> None:
    """Decide what follows for an attempt whose session has ended, by the effect's promise."""
    if message.restored:
        _recover_restored(work, record)
        return
    stale = record.attempt != message.attempt or record.session != message.ended_session
    if record.state != "started" or stale:
        return
    if record.promise == "once" or (record.promise == "reconcilable" and not message.untouched):
        _recover_once(work, record, message)
    elif record.attempt >= limits.EFFECT_ATTEMPTS_MAX:
        error = f"interrupted {record.attempt} times"
        work.settle(
            lifecycle.finish(record, Outcome(status="failed", error=error), work.turn.now_ms)
        )
    else:
        note = f"attempt {record.attempt} was interrupted; running again ({record.promise})"
        due_ms = _ends_ms(record)
        work.save(lifecycle.move(record, "approved", work.turn.now_ms, note=note, due_ms=due_ms))


def _recover_once(work: GateTurn[Any], record: EffectRecord, message: m.RecoverEffect) -> None:
    if record.promise == "reconcilable":
        return
    if work.turn.now_ms <= record.due_ms:
        work.commands.append(
            Remind(name=_recovery_name(record), at_ms=record.due_ms + 1, message=message)
        )
        return
    error = "the process that ran it ended before it reported; it is not run again"
    outcome = Outcome(status="unknown", error=error)
    work.settle(lifecycle.finish(record, outcome, work.turn.now_ms))


def _recover_restored(work: GateTurn[Any], record: EffectRecord) -> None:
    if record.promise != "once" or record.state not in {"approved", "started"}:
        return
    error = "the store was restored from a copy; whether this ran since is not known"
    outcome = Outcome(status="unknown", error=error)
    work.settle(lifecycle.move(record, "unknown", work.turn.now_ms, outcome=outcome, due_ms=0))


def _forget_recovery(work: GateTurn[Any], record: EffectRecord) -> None:
    if record.promise == "once":
        work.commands.append(Forget(name=_recovery_name(record)))


def _recovery_name(record: EffectRecord) -> str:
    return f"effect.recover/{record.effect_id}"
