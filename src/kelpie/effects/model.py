"""The words of the spine: effects, verdicts, Diff Cards, approvals, outcomes.

    proposed -> [waiting] -> approved -> started -> done | failed | unknown
    also: denied | expired (from waiting), voided (target moved), cancelled

Everything here is data. An effect's digest binds an approval to exactly one action: kind, tool
definition, arguments, prepared target and policy version.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import msgspec

from kelpie.actors.commands import Command
from kelpie.core.digests import Digest, digest_value
from kelpie.storage.records import EffectState

Promise = Literal["repeatable", "keyed", "reconcilable", "once"]
"""What an executor keeps when it is interrupted: run again; again under the same key; read the
outcome back; or never again without a person."""

Color = Literal["green", "red", "deny"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Effect(Command):
    """A machine's wish to change or read something outside. A command for the gate.

    Attributes:
        kind: Which executor runs it: ``model.generate``, ``files.read``, ``files.apply``,
            ``command.run``, ``plan.apply``.
        ref: The machine's own name for it, unique among its open effects; comes back in verdicts.
        args: Executor-specific arguments, msgspec-encodable builtins.
        tool: Name of the tool behind it, empty for the machine's own effects.
        definition: Digest of the tool's definition, empty without a tool.
        grant: Id of an approved grant effect that may cover this one, empty without.
        covers: For a grant: digests of the effects (`wish_digest`) it will allow, each once.
        timeout_ms: How long the executor may take once started.
        summary: One line for people, untrusted text allowed.
    """

    kind: str
    ref: str
    args: dict[str, Any]
    tool: str = ""
    definition: str = ""
    grant: str = ""
    covers: tuple[Digest, ...] = ()
    timeout_ms: int
    summary: str = ""


def wish_digest(effect: Effect) -> Digest:
    """Return the digest of what an effect asks for, before it is prepared."""
    return digest_value([effect.kind, effect.tool, effect.definition, effect.args])


class FileDiff(msgspec.Struct, frozen=True, kw_only=True):
    """How one file would change. ``diff`` is a unified diff, empty for binary content."""

    path: str
    change: Literal["create", "update", "delete"]
    diff: str
    binary: bool = False
    lines_hidden: int = 0
    before: str = ""
    after: str = ""


class DiffCard(msgspec.Struct, frozen=True, kw_only=True):
    """What a person reads before answering: exactly what will happen, and why they are asked.

    Attributes:
        title: One line, for a list.
        files: Changes to files, as unified diffs.
        argv: The command, if one will run.
        request: Any other request, as text.
        reasons: Why it needs a person.
        where: Where it will run (tier, host, directory, network).
        undo: How to undo it, or that it cannot be undone.
        expires_ms: Wall time after which it counts as denied.
        left_out: Paths, escaped, that a command left and no change can carry: they are discarded.
        left_out_count: How many there are; more than are named, perhaps.
    """

    title: str
    files: tuple[FileDiff, ...] = ()
    argv: tuple[str, ...] = ()
    request: str = ""
    reasons: tuple[str, ...] = ()
    where: str = ""
    undo: str = ""
    expires_ms: int = 0
    left_out: tuple[str, ...] = ()
    left_out_count: int = 0


class Preparation(msgspec.Struct, frozen=True, kw_only=True):
    """What an executor learned about an effect before it may run, without changing anything.

    ``target`` is a digest over the state of everything the effect would overwrite; ``resolved``
    holds what execution needs beside the arguments (a change set, for instance); ``facts`` feeds
    the policy (paths, sizes, whether anything changes at all).
    """

    card: DiffCard
    target: str = ""
    resolved: dict[str, Any] = {}
    facts: dict[str, Any] = {}


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """The policy's answer, kept with the effect. The executor demands it."""

    color: Color
    reasons: tuple[str, ...]
    policy: str
    at_ms: int


class Approval(msgspec.Struct, frozen=True, kw_only=True):
    """A person's or the policy's yes, bound to one digest, for one use."""

    digest: str
    by: str
    at_ms: int
    reason: str = ""
    grant: str = ""


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """What an attempt came to.

    ``result`` is executor-specific. ``sent`` false on a failure means that provably nothing left
    this process, so the gate may try again whatever the promise.
    """

    status: Literal["done", "failed", "voided", "unknown", "cancelled"]
    result: dict[str, Any] = {}
    error: str = ""
    code: str = ""
    sent: bool = True


class EffectRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One effect through its whole life; the body of its row."""

    effect_id: str
    kind: str
    ref: str
    args: dict[str, Any]
    state: EffectState
    promise: Promise
    tool: str = ""
    definition: str = ""
    grant: str = ""
    covers: tuple[str, ...] = ()
    used: tuple[str, ...] = ()
    timeout_ms: int
    summary: str = ""
    digest: str = ""
    preparation: Preparation | None = None
    verdict: Verdict | None = None
    approval: Approval | None = None
    attempt: int = 0
    session: str = ""
    due_ms: int = 0
    outcome: Outcome | None = None
    note: str = ""
    created_ms: int
    updated_ms: int
    schema_version: int = 1


def bound_digest(record: EffectRecord, policy: str) -> Digest:
    """Return the digest an approval of ``record`` binds to: change anything, ask again."""
    preparation = record.preparation
    target = preparation.target if preparation else ""
    resolved = preparation.resolved if preparation else {}
    parts = [
        record.kind,
        record.tool,
        record.definition,
        record.args,
        list(record.covers),
        target,
        resolved,
        policy,
    ]
    return digest_value(parts)
