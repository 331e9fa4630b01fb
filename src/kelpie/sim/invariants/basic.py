"""Invariants of every store: versions, epochs, and what an effect needs before it may start."""

from __future__ import annotations

from typing import Final

import msgspec

from kelpie.core.ids import ActorId
from kelpie.effects.lifecycle import ALLOWED
from kelpie.effects.model import EffectRecord
from kelpie.sim.view import Invariant, View
from kelpie.storage.records import EffectRow, EffectState

_decode: Final = msgspec.msgpack.Decoder(EffectRecord).decode


class VersionsGrow:
    """Durable versions of an actor grow by one; a later incarnation begins anew."""

    name = "versions-grow"

    def __init__(self) -> None:
        self._newest: dict[tuple[str, ActorId], tuple[int, int]] = {}

    def check(self, view: View) -> str | None:
        """Compare the last commit with the one before it."""
        if view.last is None:
            return None
        commit = view.last.commit
        assert commit.incarnation >= 1, "incarnations count from one"
        assert commit.expected_version >= 0, "versions count from one"
        place = (view.last.host, commit.actor)
        incarnation, version = self._newest.get(place, (1, 0))
        self._newest[place] = (commit.incarnation, commit.expected_version + 1)
        if commit.incarnation < incarnation:
            return f"{commit.actor}: incarnation {commit.incarnation} after {incarnation}"
        expected = version if commit.incarnation == incarnation else 0
        if commit.expected_version != expected:
            found = f"a commit on version {commit.expected_version}"
            return f"{commit.actor}: {found} became durable after version {expected}"
        return None


class EpochsNeverFall:
    """A shard's accepted epochs never fall, and each belongs to one session."""

    name = "epochs-never-fall"

    def __init__(self) -> None:
        self._newest: dict[tuple[str, int], tuple[int, str]] = {}

    def check(self, view: View) -> str | None:
        """Compare the last commit's epoch with its shard's newest."""
        if view.last is None:
            return None
        commit, session = view.last.commit, view.last.session
        assert session, "who commits has a session"
        assert commit.epoch >= 1, "epochs count from one"
        place = (view.last.host, commit.shard)
        epoch, owner = self._newest.get(place, (0, ""))
        if commit.epoch < epoch:
            return f"shard {commit.shard}: epoch {commit.epoch} was accepted after {epoch}"
        if commit.epoch == epoch and owner != session:
            return f"shard {commit.shard}: epoch {epoch} has two writers, {owner} and {session}"
        self._newest[place] = (commit.epoch, session)
        return None


class EffectsKeepTheirLife:
    """Effects move along the allowed steps; none starts without its yes; once means once."""

    name = "effects-keep-their-life"

    def __init__(self) -> None:
        self._states: dict[str, EffectState] = {}
        self._begun: set[str] = set()

    def check(self, view: View) -> str | None:
        """Judge every effect row of the last commit."""
        if view.last is None:
            return None
        for row in view.last.commit.effects:
            problem = self._judge(row, view.last.commit.now_ms)
            if problem is not None:
                return f"{row.kind} {row.effect_id}: {problem}"
        return None

    def _judge(self, row: EffectRow, now_ms: int) -> str | None:
        before = self._states.get(row.effect_id)
        self._states[row.effect_id] = row.state
        # One turn may take several steps, so a skipped state is no news; leaving an end is.
        if before is not None and before != row.state and not ALLOWED[before]:
            return f"it is {row.state} after it had ended {before}"
        if row.state != "started" or before == "started":
            return None
        record = _decode(row.body)
        if record.promise == "once" and row.effect_id in self._begun:
            return "a once effect was started again"
        self._begun.add(row.effect_id)
        return _judge_start(record, now_ms)


def _judge_start(record: EffectRecord, now_ms: int) -> str | None:
    approval, verdict = record.approval, record.verdict
    if verdict is None or approval is None:
        return "it started without a decision"
    if approval.digest != record.digest:
        return f"it started as {record.digest} on a yes to {approval.digest}"
    if verdict.color == "green":
        return None
    if approval.by == "policy":
        return "a red effect started without a person"
    expires_ms = record.preparation.card.expires_ms if record.preparation else 0
    if expires_ms and now_ms >= expires_ms:
        return f"it started at {now_ms} on a question that ended at {expires_ms}"
    return None


def basic_invariants() -> list[Invariant]:
    """Return fresh instances of them all."""
    return [VersionsGrow(), EpochsNeverFall(), EffectsKeepTheirLife()]
