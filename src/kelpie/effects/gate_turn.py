"""One turn of the gate: collects commands while effects and the inner machine feed each other.

Lives for one ``decide`` call and is then thrown away; nothing outside sees it half done.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Generic, TypeVar

import msgspec

from kelpie.actors.commands import (
    Audit,
    Command,
    Delete,
    Emit,
    Forget,
    Message,
    Remind,
    Reply,
    WriteEffect,
)
from kelpie.actors.machine import Decision, Machine, Turn
from kelpie.core import limits
from kelpie.core.digests import Digest
from kelpie.effects import lifecycle
from kelpie.effects import messages as m
from kelpie.effects.model import (
    Approval,
    DiffCard,
    Effect,
    EffectRecord,
    Outcome,
    Preparation,
    Verdict,
    bound_digest,
    wish_digest,
)
from kelpie.effects.rules import GateRules
from kelpie.storage.records import EffectRow

S = TypeVar("S")

_encode = msgspec.msgpack.Encoder().encode


class GateTurn(Generic[S]):
    """The work of one turn."""

    def __init__(
        self,
        inner: Machine[S],
        rules: GateRules,
        state: S,
        effects: Mapping[str, EffectRecord],
        turn: Turn,
    ) -> None:
        self._machine = inner
        self.rules = rules
        self._inner = state
        self.turn = turn
        self._before = effects
        self.effects: dict[str, EffectRecord] = dict(effects)
        self._written: dict[str, EffectRecord] = {}
        self.commands: list[Command] = []
        self._news: deque[Message] = deque()
        self._cascade = 0

    def end(self) -> tuple[S, Mapping[str, EffectRecord], tuple[Command, ...]]:
        """Deliver all news, and return the inner state, the open effects and the commands."""
        self._drain()
        if any(isinstance(command, Delete) for command in self.commands):
            self._abandon_all()
        rows = [WriteEffect(row=self._row(record)) for record in self._written.values()]
        effects = self.effects if self._written else self._before
        return self._inner, effects, (*self.commands, *rows)

    # --- the inner machine ----------------------------------------------------------------------

    def feed(self, message: Message) -> None:
        """Give ``message`` to the inner machine and take its commands, in order."""
        self.take(self._machine.decide(self._inner, message, self.turn))

    def take(self, decision: Decision[S]) -> None:
        """Take what the inner machine came to."""
        self._inner = decision.state
        for command in decision.commands:
            match command:
                case Effect():
                    self._propose(command)
                case m.CancelEffect(ref=ref):
                    self._cancel(ref)
                case m.CloseGrant(ref=ref):
                    self._close_grant(ref)
                case _:
                    self.commands.append(command)

    def _drain(self) -> None:
        while self._news:
            self._cascade += 1
            assert self._cascade <= limits.EFFECT_CASCADE_MAX, "verdicts feed on themselves"
            self.feed(self._news.popleft())

    # --- proposal and verdict -------------------------------------------------------------------

    def _propose(self, effect: Effect) -> None:
        now_ms = self.turn.now_ms
        kind = self.rules.kinds.get(effect.kind)
        record = EffectRecord(
            effect_id=self.turn.new_id("effect"),
            kind=effect.kind,
            ref=effect.ref,
            args=effect.args,
            state="proposed",
            promise=kind.promise(effect.args) if kind else "once",
            tool=effect.tool,
            definition=effect.definition,
            grant=effect.grant,
            covers=tuple(effect.covers),
            timeout_ms=effect.timeout_ms,
            summary=effect.summary[: limits.NAME_CHARS_MAX],
            created_ms=now_ms,
            updated_ms=now_ms,
        )
        assert self.by_ref(effect.ref) is None, f"ref {effect.ref!r} is in use"
        problem = self._problem(effect) or ("" if kind else f"no executor for {effect.kind!r}")
        if problem:
            self._fail(record, problem)
        elif kind is not None and kind.prepares:
            self.save(record)
        else:
            self._classify(record)

    def _problem(self, effect: Effect) -> str:
        if len(self.effects) >= limits.EFFECTS_OPEN_PER_ACTOR_MAX:
            return f"more than {limits.EFFECTS_OPEN_PER_ACTOR_MAX} open effects"
        if len(_encode(effect.args)) > limits.EFFECT_ARGS_BYTES_MAX:
            return f"arguments are larger than {limits.EFFECT_ARGS_BYTES_MAX:,} bytes"
        if len(effect.covers) > limits.GRANT_MEMBERS_MAX:
            return f"a grant covers at most {limits.GRANT_MEMBERS_MAX:,} effects"
        return ""

    def prepared(self, record: EffectRecord, message: m.EffectPrepared) -> None:
        """Take the executor's description of a proposed effect, and classify it."""
        if record.state != "proposed":
            return
        if message.failure is not None:
            outcome = message.failure
            failed = lifecycle.move(record, "failed", self.turn.now_ms, outcome=outcome)
            self.settle(failed)
            return
        assert message.preparation is not None, "prepared without a preparation"
        self._classify(msgspec.structs.replace(record, preparation=message.preparation))

    def _classify(self, record: EffectRecord) -> None:
        now_ms = self.turn.now_ms
        verdict = self.rules.policy.classify(record, now_ms)
        if verdict.color == "deny":
            self.deny(record, verdict, " ".join(verdict.reasons), by="policy")
        elif verdict.color == "green":
            approval = Approval(
                digest=bound_digest(record, verdict.policy), by="policy", at_ms=now_ms
            )
            self.approve(record, verdict, approval, due_ms=0)
        elif (grant := self._covering_grant(record)) is None:
            self.ask(record, verdict)
        elif grant.due_ms and now_ms >= grant.due_ms:
            self.deny(record, verdict, "the approval that covers it has expired", by="policy")
        else:
            self._approve_by_grant(record, verdict, grant)

    def ask(self, record: EffectRecord, verdict: Verdict) -> None:
        """Make the effect wait for a person, with its card and its end, and say so."""
        expires_ms = self.turn.now_ms + self.rules.approval_ttl_ms
        if record.preparation is None:
            preparation = Preparation(card=_plain_card(record))
            record = msgspec.structs.replace(record, preparation=preparation)
        waiting = lifecycle.ask(record, verdict, self.turn.now_ms, expires_ms=expires_ms)
        self.save(waiting)
        message = m.ExpireEffect(effect_id=record.effect_id)
        self.commands.append(Remind(name=expiry_name(record), at_ms=expires_ms, message=message))
        assert waiting.preparation is not None, "a question without a card"
        card = waiting.preparation.card
        self._news.append(m.EffectWaiting(effect_id=record.effect_id, ref=record.ref, card=card))

    def approve(
        self, record: EffectRecord, verdict: Verdict, approval: Approval, *, due_ms: int
    ) -> None:
        """Approve the effect; whoever waited for the answer, or holds a grant now, is told."""
        assert approval.by, "a yes is somebody's"
        assert not approval.grant or approval.grant in self.effects, "a grant of another actor"
        approved = lifecycle.approve(record, verdict, approval, self.turn.now_ms, due_ms=due_ms)
        self.save(approved)
        if self.is_grant(approved) or record.state == "waiting":
            self._news.append(m.EffectApproved(effect_id=record.effect_id, ref=record.ref))

    # --- grants ---------------------------------------------------------------------------------

    def is_grant(self, record: EffectRecord) -> bool:
        """Return whether the effect only covers others and is never started itself."""
        kind = self.rules.kinds.get(record.kind)
        return kind is not None and kind.is_grant

    def _covering_grant(self, record: EffectRecord) -> EffectRecord | None:
        grant = self.effects.get(record.grant) if record.grant else None
        if grant is None or grant.state != "approved" or not self.is_grant(grant):
            return None
        digest = _wish(record)
        return grant if digest in grant.covers and digest not in grant.used else None

    def _approve_by_grant(
        self, record: EffectRecord, verdict: Verdict, grant: EffectRecord
    ) -> None:
        assert grant.approval is not None, "an approved grant carries its approval"
        used = msgspec.structs.replace(grant, used=(*grant.used, _wish(record)))
        self.effects[grant.effect_id] = used
        self._written[grant.effect_id] = used
        approval = Approval(
            digest=bound_digest(record, verdict.policy),
            by=grant.approval.by,
            at_ms=self.turn.now_ms,
            grant=grant.effect_id,
        )
        self.approve(record, verdict, approval, due_ms=grant.due_ms)

    def _close_grant(self, ref: str) -> None:
        record = self.by_ref(ref)
        if record is None or record.state != "approved":
            return
        assert self.is_grant(record), "only grants are closed"
        outcome = Outcome(status="done", result={"used": len(record.used)})
        self.settle(lifecycle.move(record, "done", self.turn.now_ms, outcome=outcome, due_ms=0))

    # --- ends before a start -------------------------------------------------------------------

    def deny(self, record: EffectRecord, verdict: Verdict, reason: str, *, by: str) -> None:
        """End the effect with a no of ``by``."""
        assert by, "a no is somebody's"
        assert record.outcome is None, "what ran cannot be denied"
        self.forget_question(record)
        denied = lifecycle.move(
            record,
            "denied",
            self.turn.now_ms,
            verdict=verdict,
            note=f"denied by {by}: {reason}" if reason else f"denied by {by}",
            due_ms=0,
        )
        self.settle(denied)

    def _cancel(self, ref: str) -> None:
        record = self.by_ref(ref)
        if record is None or not lifecycle.is_open(record):
            return
        if record.state == "started":
            self.save(msgspec.structs.replace(record, note="cancel requested"))
            return
        self.forget_question(record)
        outcome = Outcome(status="cancelled")
        self.settle(
            lifecycle.move(record, "cancelled", self.turn.now_ms, outcome=outcome, due_ms=0)
        )

    # --- writing --------------------------------------------------------------------------------

    def by_ref(self, ref: str) -> EffectRecord | None:
        """Return the open effect that the inner machine calls ``ref``; not an unknown one."""
        for record in self.effects.values():
            if record.ref == ref and record.state != "unknown":
                return record
        return None

    def _fail(self, record: EffectRecord, problem: str) -> None:
        outcome = Outcome(status="failed", error=problem, sent=False)
        self.settle(lifecycle.move(record, "failed", self.turn.now_ms, outcome=outcome))

    def settle(self, record: EffectRecord) -> None:
        """Save an effect that has ended, and tell the inner machine."""
        assert record.state not in {"proposed", "waiting", "approved", "started"}, "not an end"
        assert record.outcome is not None or record.note, "an end says why"
        self.save(record)
        self._news.append(
            m.EffectSettled(effect_id=record.effect_id, ref=record.ref, record=record)
        )

    def save(self, record: EffectRecord) -> None:
        """Make ``record`` part of this turn's commit: row, event and audit record."""
        if lifecycle.is_open(record):
            self.effects[record.effect_id] = record
        else:
            self.effects.pop(record.effect_id, None)
        self._written[record.effect_id] = record
        assert (record.effect_id in self.effects) == lifecycle.is_open(record), "open means kept"
        summary = {
            "effect_id": record.effect_id,
            "kind": record.kind,
            "ref": record.ref,
            "state": record.state,
            "attempt": record.attempt,
            "tool": record.tool,
            "summary": record.summary,
            "note": record.note,
        }
        self.commands.append(Emit(kind=f"effect.{record.state}", body=summary))
        proof = {
            "effect_id": record.effect_id,
            "kind": record.kind,
            "digest": record.digest,
            "attempt": record.attempt,
            "approved_by": record.approval.by if record.approval else "",
            "note": record.note,
        }
        self.commands.append(Audit(kind=f"effect.{record.state}", body=proof))

    def reply(self, effect_id: str) -> None:
        """Answer the caller with the effect as this turn leaves it."""
        record = self._written.get(effect_id) or self.effects.get(effect_id)
        assert record is not None, "a reply about an effect that the turn does not know"
        assert record.effect_id == effect_id, "a reply about another effect"
        self.commands.append(Reply(value=record))

    def forget_question(self, record: EffectRecord) -> None:
        """Cancel the reminder that would end the question, if the effect waits for an answer."""
        assert lifecycle.is_open(record), "an ended effect has no question"
        if record.state == "waiting":
            self.commands.append(Forget(name=expiry_name(record)))

    def _abandon_all(self) -> None:
        """The actor is being deleted: close what has not started; the rest ends with it."""
        for record in list(self.effects.values()):
            if record.state in {"proposed", "waiting", "approved"}:
                note = "its actor was deleted"
                self.save(lifecycle.move(record, "cancelled", self.turn.now_ms, note=note))

    def _row(self, record: EffectRecord) -> EffectRow:
        return EffectRow(
            effect_id=record.effect_id,
            actor=self.turn.actor,
            kind=record.kind,
            state=record.state,
            digest=Digest(record.digest) if record.digest else None,
            attempt=record.attempt,
            session=record.session,
            due_ms=record.due_ms,
            created_ms=record.created_ms,
            updated_ms=record.updated_ms,
            body=_encode(record),
        )


def _wish(record: EffectRecord) -> str:
    effect = Effect(
        kind=record.kind,
        ref=record.ref,
        args=record.args,
        tool=record.tool,
        definition=record.definition,
        timeout_ms=record.timeout_ms,
    )
    return wish_digest(effect)


def expiry_name(record: EffectRecord) -> str:
    """Return the name of the reminder that ends an effect's question."""
    return f"effect.expire/{record.effect_id}"


def _plain_card(record: EffectRecord) -> DiffCard:
    return DiffCard(
        title=record.summary or record.kind,
        request=msgspec.json.encode(record.args).decode(),
    )
