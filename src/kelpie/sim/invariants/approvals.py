"""Invariants of effects and their approvals.

A record's own word is not enough: a red effect is held against what people really said.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, NamedTuple

import msgspec

from kelpie.effects.lifecycle import ALLOWED
from kelpie.effects.model import EffectRecord, bound_digest
from kelpie.sim.view import View
from kelpie.storage.records import EffectRow, EffectState

_decode: Final = msgspec.msgpack.Decoder(EffectRecord).decode
APPROVALS: Final = "/v1/approvals/"


class Said(NamedTuple):
    """One answer of a person: to which question, about which digest, and what."""

    effect_id: str
    digest: str
    verb: str


class _Starts:
    """Finds the effects that the last commit started."""

    def __init__(self) -> None:
        self._started: dict[str, tuple[EffectState, int]] = {}

    def of(self, view: View) -> Iterator[EffectRecord]:
        """Yield what has begun an attempt with the last commit."""
        for row in view.last.commit.effects if view.last else ():
            assert row.attempt >= 0, "attempts count from zero"
            assert row.effect_id, "an effect has an id"
            before = self._started.get(row.effect_id)
            self._started[row.effect_id] = (row.state, row.attempt)
            if row.state == "started" and before != ("started", row.attempt):
                yield _decode(row.body)


class EffectsStepAsAllowed:
    """An effect that has ended stays as it ended."""

    name = "effects-step-as-allowed"

    def __init__(self) -> None:
        self._states: dict[str, EffectState] = {}

    def check(self, view: View) -> str | None:
        """Compare every effect of the last commit with what it was before."""
        for row in view.last.commit.effects if view.last else ():
            assert row.state in ALLOWED, "a state of the life cycle"
            assert row.effect_id, "an effect has an id"
            before = self._states.get(row.effect_id)
            self._states[row.effect_id] = row.state
            # One turn may take several steps, so a skipped state is no news; leaving an end is.
            if before is not None and before != row.state and not ALLOWED[before]:
                return f"{row.kind} {row.effect_id} is {row.state} after it had ended {before}"
            if before == "unknown" and row.state not in ALLOWED["unknown"] | {"unknown"}:
                return f"{row.kind} {row.effect_id} is {row.state} after it was unknown"
        return None


class OnceStartsOnce:
    """An effect that may run once is started once, whatever became of the first attempt."""

    name = "once-starts-once"

    def __init__(self) -> None:
        self._starts = _Starts()
        self._begun: set[str] = set()

    def check(self, view: View) -> str | None:
        """Look for a second start among the last commit's effects."""
        for record in self._starts.of(view):
            if record.promise == "once" and record.effect_id in self._begun:
                return f"{record.kind} {record.effect_id} may run once and was started again"
            assert record.state == "started", "only starts are judged"
            assert record.attempt >= 1, "a start is an attempt"
            self._begun.add(record.effect_id)
        return None


class StartsWithItsApproval:
    """What starts has an approval of exactly this effect; a red one's has not expired."""

    name = "starts-with-its-approval"

    def __init__(self) -> None:
        self._starts = _Starts()

    def check(self, view: View) -> str | None:
        """Judge what the last commit started."""
        for record in self._starts.of(view):
            assert view.last is not None, "a start is part of a commit"
            problem = _judge_start(record, view.last.commit.now_ms)
            if problem is not None:
                return f"{record.kind} {record.effect_id} {problem}"
        return None


def _judge_start(record: EffectRecord, now_ms: int) -> str | None:
    approval, verdict = record.approval, record.verdict
    if verdict is None or approval is None:
        return "started without a decision"
    if approval.digest != bound_digest(record, verdict.policy):
        return f"started as something else than {approval.digest}, which was approved"
    if verdict.color == "green":
        return None
    if approval.by == "policy":
        return "is red and started without a person"
    expires_ms = record.preparation.card.expires_ms if record.preparation else 0
    if expires_ms and now_ms >= expires_ms and not approval.grant:
        return f"started at {now_ms} on a question that ended at {expires_ms}"
    return None


class PeopleSaidYes:
    """What is red starts only if a person said yes to it, or to the plan that covers it."""

    name = "red-starts-on-a-persons-yes"

    def __init__(self) -> None:
        self._starts = _Starts()
        self._records: dict[str, EffectRecord] = {}

    def check(self, view: View) -> str | None:
        """Look for the yes to what the last commit started."""
        started = list(self._starts.of(view))
        for row in view.last.commit.effects if view.last else ():
            record = _decode(row.body)
            assert record.effect_id == row.effect_id, "a row is its record's"
            assert record.state == row.state, "a row is its record's"
            self._records[row.effect_id] = record
        for record in started:
            if record.verdict is not None and record.verdict.color == "red":
                problem = self._judge(record, view)
                if problem is not None:
                    return f"{record.kind} {record.effect_id} {problem}"
        return None

    def _judge(self, record: EffectRecord, view: View) -> str | None:
        grant = record.approval.grant if record.approval else ""
        asked = self._records.get(grant or record.effect_id)
        if asked is None:
            return f"started under the approval {grant}, which nobody knows"
        said = [each for each in view.said.get("person", ()) if isinstance(each, Said)]
        if not any(
            each.verb == "approve"
            and each.effect_id == asked.effect_id
            # A yes without a digest is one to whatever was shown last.
            and each.digest in (asked.digest, "")
            for each in said
        ):
            return f"started, and nobody said yes to {asked.effect_id} as {asked.digest}"
        return None


class NoMeansNo:
    """What a person's no was accepted for never starts; nor does what expired."""

    name = "no-means-no"

    def __init__(self) -> None:
        self._starts = _Starts()
        self._denied: set[str] = set()
        self._judged = 0

    def check(self, view: View) -> str | None:
        """Look for accepted refusals, and for what started after one."""
        assert self._judged <= len(view.answers), "answers are only added"
        fresh, self._judged = view.answers[self._judged :], len(view.answers)
        for seen in fresh:
            if seen.answer.status == 200 and seen.target.startswith(APPROVALS):
                effect_id, _, verb = seen.target.removeprefix(APPROVALS).partition("/")
                if verb == "deny":
                    self._denied.add(effect_id)
        ended = [
            row.effect_id
            for row in (view.last.commit.effects if view.last else ())
            if row.state in {"denied", "expired"}
        ]
        for record in self._starts.of(view):
            grant = record.approval.grant if record.approval else ""
            refused = {record.effect_id, grant} & self._denied
            if refused:
                return f"{record.kind} {record.effect_id} started after {min(refused)} was refused"
        self._denied.update(ended)
        assert self._denied.issuperset(ended), "what ended is not forgotten"
        return None


class ApprovalsAreUsedOnce:
    """An approval starts its own effect alone, and a plan's each of its units once."""

    name = "approval-used-once"

    def __init__(self) -> None:
        self._starts = _Starts()
        self._users: dict[tuple[str, str], str] = {}

    def check(self, view: View) -> str | None:
        """Look for a second effect that starts on the same yes."""
        for record in self._starts.of(view):
            approval = record.approval
            if approval is None or approval.by == "policy":
                continue
            use = (approval.grant or record.effect_id, approval.digest)
            assert approval.by, "a yes is somebody's"
            assert approval.digest, "a yes is to something"
            user = self._users.setdefault(use, record.effect_id)
            if user != record.effect_id:
                return f"{record.kind} {record.effect_id} started on the yes that {user} had used"
        return None


class TransitionsAreAudited:
    """Every step of an effect is in the audit of the same turn."""

    name = "transitions-are-audited"

    def __init__(self) -> None:
        self._states: dict[str, EffectState] = {}

    def check(self, view: View) -> str | None:
        """Look for the records of the last commit's effects."""
        if view.last is None:
            return None
        audited = {
            (each.kind, msgspec.msgpack.decode(each.body).get("effect_id"))
            for each in view.last.commit.audit
            if each.kind.startswith("effect.")
        }
        for row in view.last.commit.effects:
            if self._moved(row) and (f"effect.{row.state}", row.effect_id) not in audited:
                return f"{row.kind} {row.effect_id} became {row.state} without an audit record"
        return None

    def _moved(self, row: EffectRow) -> bool:
        before = self._states.get(row.effect_id)
        self._states[row.effect_id] = row.state
        return before != row.state
