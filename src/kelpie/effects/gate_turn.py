"""One turn of the gate: collects commands while effects and the inner machine feed each other.

Lives for one ``decide`` call and is then thrown away; nothing outside sees it half done.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import TYPE_CHECKING, Generic, TypeVar

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
from kelpie.actors.machine import Machine, Turn
from kelpie.core import limits
from kelpie.core.digests import Digest
from kelpie.core.errors import AlreadyDecidedError, ConflictError
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
from kelpie.storage.records import EffectRow

if TYPE_CHECKING:
    from kelpie.effects.gate import GateRules

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
        self._rules = rules
        self._inner = state
        self._turn = turn
        self._before = effects
        self.effects: dict[str, EffectRecord] = dict(effects)
        self._written: dict[str, EffectRecord] = {}
        self._commands: list[Command] = []
        self._news: deque[Message] = deque()
        self._cascade = 0

    def end(self) -> tuple[S, Mapping[str, EffectRecord], tuple[Command, ...]]:
        """Deliver all news, and return the inner state, the open effects and the commands."""
        self._drain()
        if any(isinstance(command, Delete) for command in self._commands):
            self._abandon_all()
        rows = [WriteEffect(row=self._row(record)) for record in self._written.values()]
        effects = self.effects if self._written else self._before
        return self._inner, effects, (*self._commands, *rows)

    # --- the inner machine ----------------------------------------------------------------------

    def feed(self, message: Message) -> None:
        """Give ``message`` to the inner machine and take its commands, in order."""
        decision = self._machine.decide(self._inner, message, self._turn)
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
                    self._commands.append(command)

    def _drain(self) -> None:
        while self._news:
            self._cascade += 1
            assert self._cascade <= limits.EFFECT_CASCADE_MAX, "verdicts feed on themselves"
            self.feed(self._news.popleft())

    # --- proposal and verdict -------------------------------------------------------------------

    def _propose(self, effect: Effect) -> None:
        now_ms = self._turn.now_ms
        kind = self._rules.kinds.get(effect.kind)
        record = EffectRecord(
            effect_id=self._turn.new_id("effect"),
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
            self._save(record)
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
            failed = lifecycle.move(record, "failed", self._turn.now_ms, outcome=outcome)
            self._settle(failed)
            return
        assert message.preparation is not None, "prepared without a preparation"
        self._classify(msgspec.structs.replace(record, preparation=message.preparation))

    def _classify(self, record: EffectRecord) -> None:
        now_ms = self._turn.now_ms
        verdict = self._rules.policy.classify(record, now_ms)
        if verdict.color == "deny":
            self._deny(record, verdict, " ".join(verdict.reasons), by="policy")
        elif verdict.color == "green":
            approval = Approval(
                digest=bound_digest(record, verdict.policy), by="policy", at_ms=now_ms
            )
            self._approve(record, verdict, approval, due_ms=0)
        elif (grant := self._covering_grant(record)) is not None:
            self._approve_by_grant(record, verdict, grant)
        else:
            self._ask(record, verdict)

    def _ask(self, record: EffectRecord, verdict: Verdict) -> None:
        expires_ms = self._turn.now_ms + self._rules.approval_ttl_ms
        if record.preparation is None:
            preparation = Preparation(card=_plain_card(record))
            record = msgspec.structs.replace(record, preparation=preparation)
        waiting = lifecycle.ask(record, verdict, self._turn.now_ms, expires_ms=expires_ms)
        self._save(waiting)
        message = m.ExpireEffect(effect_id=record.effect_id)
        self._commands.append(Remind(name=_expiry_name(record), at_ms=expires_ms, message=message))
        assert waiting.preparation is not None, "a question without a card"
        card = waiting.preparation.card
        self._news.append(m.EffectWaiting(effect_id=record.effect_id, ref=record.ref, card=card))

    def _approve(
        self, record: EffectRecord, verdict: Verdict, approval: Approval, *, due_ms: int
    ) -> None:
        approved = lifecycle.approve(record, verdict, approval, self._turn.now_ms, due_ms=due_ms)
        self._save(approved)
        if self._is_grant(approved) or record.state == "waiting":
            self._news.append(m.EffectApproved(effect_id=record.effect_id, ref=record.ref))

    # --- grants ---------------------------------------------------------------------------------

    def _is_grant(self, record: EffectRecord) -> bool:
        kind = self._rules.kinds.get(record.kind)
        return kind is not None and kind.is_grant

    def _covering_grant(self, record: EffectRecord) -> EffectRecord | None:
        grant = self.effects.get(record.grant) if record.grant else None
        if grant is None or grant.state != "approved" or not self._is_grant(grant):
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
            at_ms=self._turn.now_ms,
            grant=grant.effect_id,
        )
        self._approve(record, verdict, approval, due_ms=0)

    def _close_grant(self, ref: str) -> None:
        record = self.by_ref(ref)
        if record is None or record.state != "approved":
            return
        assert self._is_grant(record), "only grants are closed"
        outcome = Outcome(status="done", result={"used": len(record.used)})
        self._settle(lifecycle.move(record, "done", self._turn.now_ms, outcome=outcome, due_ms=0))

    # --- people ---------------------------------------------------------------------------------

    def approve(self, record: EffectRecord, digest: str, reason: str) -> None:
        """Take a person's yes; late, it expires instead.

        Raises:
            AlreadyDecidedError: The effect does not wait any more.
            ConflictError: The person read another version of the effect.
        """
        self._require_waiting(record)
        assert record.digest, "a question is bound to what was shown"
        if digest and digest != record.digest:
            raise ConflictError(
                f"effect {record.effect_id} is not the one you read; show it again",
                digest=record.digest,
            )
        if self._turn.now_ms >= record.due_ms:
            self.expire(record)
        else:
            assert record.verdict is not None
            approval = Approval(
                digest=record.digest,
                by=self._turn.principal,
                at_ms=self._turn.now_ms,
                reason=reason,
            )
            self._commands.append(Forget(name=_expiry_name(record)))
            self._approve(record, record.verdict, approval, due_ms=record.due_ms)
        self._reply(record.effect_id)

    def deny(self, record: EffectRecord, reason: str) -> None:
        """Take a person's no.

        Raises:
            AlreadyDecidedError: The effect does not wait any more.
        """
        self._require_waiting(record)
        assert record.verdict is not None
        self._deny(record, record.verdict, reason, by=self._turn.principal)
        self._reply(record.effect_id)

    def resolve(self, record: EffectRecord, reason: str, *, succeeded: bool) -> None:
        """Take a person's word on what became of an unknown effect.

        Raises:
            ConflictError: The effect's outcome is not unknown.
        """
        if record.state != "unknown":
            raise ConflictError(f"effect {record.effect_id} is {record.state}, not unknown")
        note = f"resolved by {self._turn.principal}: {reason}"
        outcome = Outcome(status="done" if succeeded else "failed", error="" if succeeded else note)
        state = lifecycle.move(
            record, outcome.status, self._turn.now_ms, outcome=outcome, note=note
        )
        self._settle(state)
        self._reply(record.effect_id)

    def _require_waiting(self, record: EffectRecord) -> None:
        if record.state != "waiting":
            raise AlreadyDecidedError(
                f"effect {record.effect_id} is {record.state}; it was decided before",
                effect_id=record.effect_id,
                state=record.state,
            )

    def _deny(self, record: EffectRecord, verdict: Verdict, reason: str, *, by: str) -> None:
        self._forget_question(record)
        denied = lifecycle.move(
            record,
            "denied",
            self._turn.now_ms,
            verdict=verdict,
            note=f"denied by {by}: {reason}" if reason else f"denied by {by}",
            due_ms=0,
        )
        self._settle(denied)

    def expire(self, record: EffectRecord) -> None:
        """End a question whose time has passed; ask for another look when the clock went back."""
        if record.state != "waiting":
            return
        if self._turn.now_ms < record.due_ms:
            message = m.ExpireEffect(effect_id=record.effect_id)
            self._commands.append(
                Remind(name=_expiry_name(record), at_ms=record.due_ms, message=message)
            )
            return
        assert record.due_ms > 0, "a question has an end"
        self._forget_question(record)
        note = "nobody answered in time, which counts as no"
        self._settle(lifecycle.move(record, "expired", self._turn.now_ms, note=note, due_ms=0))

    # --- attempts -------------------------------------------------------------------------------

    def start(self, record: EffectRecord, session: str) -> None:
        """Start an approved effect, after comparing the clock and the policy once more."""
        if record.state != "approved" or self._is_grant(record):
            self._reply(record.effect_id)
            return
        now_ms = self._turn.now_ms
        if record.due_ms and now_ms >= record.due_ms:
            note = "approved, but not started before the approval expired"
            self._settle(lifecycle.move(record, "expired", now_ms, note=note, due_ms=0))
            self._reply(record.effect_id)
            return
        verdict = self._rules.policy.classify(record, now_ms)
        assert record.verdict is not None
        if verdict.color == "deny":
            self._deny(record, verdict, " ".join(verdict.reasons), by="policy")
        elif verdict.policy != record.verdict.policy and verdict.color == "red":
            self._ask(record, verdict)
        else:
            self._save(lifecycle.start(record, session=session, now_ms=now_ms))
        self._reply(record.effect_id)

    def finish(self, record: EffectRecord, attempt: int, outcome: Outcome) -> None:
        """Take an attempt's outcome; a late or repeated one is ignored."""
        if record.state != "started" or record.attempt != attempt:
            return
        self._forget_recovery(record)
        self._settle(lifecycle.finish(record, outcome, self._turn.now_ms))

    def recover(self, record: EffectRecord, message: m.RecoverEffect) -> None:
        """Decide what follows for an attempt whose session has ended, by the effect's promise."""
        if message.restored:
            self._recover_restored(record)
            return
        stale = record.attempt != message.attempt or record.session != message.ended_session
        if record.state != "started" or stale:
            return
        if record.promise == "once" or (record.promise == "reconcilable" and not message.untouched):
            self._recover_once(record, message)
        elif record.attempt >= limits.EFFECT_ATTEMPTS_MAX:
            error = f"interrupted {record.attempt} times"
            self._settle(
                lifecycle.finish(record, Outcome(status="failed", error=error), self._turn.now_ms)
            )
        else:
            note = f"attempt {record.attempt} was interrupted; running again ({record.promise})"
            self._save(lifecycle.move(record, "approved", self._turn.now_ms, note=note, due_ms=0))

    def _recover_once(self, record: EffectRecord, message: m.RecoverEffect) -> None:
        if record.promise == "reconcilable":
            return
        if self._turn.now_ms <= record.due_ms:
            self._commands.append(
                Remind(name=_recovery_name(record), at_ms=record.due_ms + 1, message=message)
            )
            return
        error = "the process that ran it ended before it reported; it is not run again"
        outcome = Outcome(status="unknown", error=error)
        self._settle(lifecycle.finish(record, outcome, self._turn.now_ms))

    def _recover_restored(self, record: EffectRecord) -> None:
        if record.promise != "once" or record.state not in {"approved", "started"}:
            return
        error = "the store was restored from a copy; whether this ran since is not known"
        outcome = Outcome(status="unknown", error=error)
        self._settle(
            lifecycle.move(record, "unknown", self._turn.now_ms, outcome=outcome, due_ms=0)
        )

    def _cancel(self, ref: str) -> None:
        record = self.by_ref(ref)
        if record is None or not lifecycle.is_open(record):
            return
        if record.state == "started":
            self._save(msgspec.structs.replace(record, note="cancel requested"))
            return
        self._forget_question(record)
        outcome = Outcome(status="cancelled")
        self._settle(
            lifecycle.move(record, "cancelled", self._turn.now_ms, outcome=outcome, due_ms=0)
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
        self._settle(lifecycle.move(record, "failed", self._turn.now_ms, outcome=outcome))

    def _settle(self, record: EffectRecord) -> None:
        self._save(record)
        self._news.append(
            m.EffectSettled(effect_id=record.effect_id, ref=record.ref, record=record)
        )

    def _save(self, record: EffectRecord) -> None:
        """Make ``record`` part of this turn's commit: row, event and audit record."""
        if lifecycle.is_open(record):
            self.effects[record.effect_id] = record
        else:
            self.effects.pop(record.effect_id, None)
        self._written[record.effect_id] = record
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
        self._commands.append(Emit(kind=f"effect.{record.state}", body=summary))
        proof = {
            "effect_id": record.effect_id,
            "kind": record.kind,
            "digest": record.digest,
            "attempt": record.attempt,
            "approved_by": record.approval.by if record.approval else "",
            "note": record.note,
        }
        self._commands.append(Audit(kind=f"effect.{record.state}", body=proof))

    def _reply(self, effect_id: str) -> None:
        self._commands.append(Reply(value=self._written.get(effect_id) or self.effects[effect_id]))

    def _forget_question(self, record: EffectRecord) -> None:
        if record.state == "waiting":
            self._commands.append(Forget(name=_expiry_name(record)))

    def _forget_recovery(self, record: EffectRecord) -> None:
        if record.promise == "once":
            self._commands.append(Forget(name=_recovery_name(record)))

    def _abandon_all(self) -> None:
        """The actor is being deleted: close what has not started; the rest ends with it."""
        for record in list(self.effects.values()):
            if record.state in {"proposed", "waiting", "approved"}:
                note = "its actor was deleted"
                self._save(lifecycle.move(record, "cancelled", self._turn.now_ms, note=note))

    def _row(self, record: EffectRecord) -> EffectRow:
        return EffectRow(
            effect_id=record.effect_id,
            actor=self._turn.actor,
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


def _expiry_name(record: EffectRecord) -> str:
    return f"effect.expire/{record.effect_id}"


def _recovery_name(record: EffectRecord) -> str:
    return f"effect.recover/{record.effect_id}"


def _plain_card(record: EffectRecord) -> DiffCard:
    return DiffCard(
        title=record.summary or record.kind,
        request=msgspec.json.encode(record.args).decode(),
    )
