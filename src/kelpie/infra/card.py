"""The Diff Card of a plan: every file it would change, and how to go back.

Pure. The card is bounded: what does not fit is counted in ``lines_hidden``, never dropped in
silence.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from kelpie.core.limits import PLAN_DIFF_BYTES_MAX
from kelpie.effects.model import DiffCard, FileDiff
from kelpie.infra.plan import PlanUnit
from kelpie.infra.wishes import PlanArgs, describe_counts


def make_card(args: PlanArgs, diffs: Iterable[FileDiff]) -> DiffCard:
    """Return what a person reads before approving a plan. The gate adds why it is red."""
    files = bound_diffs(diffs)
    counts = describe_counts(args.units)
    leftovers = sum(not unit.is_declared for unit in args.units)
    reasons = [f"One yes covers {len(args.units)} units: {counts}."]
    if leftovers:
        reasons.append(f"{leftovers} of them remove what the workspace no longer names.")
    if any(diff.lines_hidden for diff in files):
        reasons.append("Some lines of the diffs are hidden; the approval covers them too.")
    return DiffCard(
        title=f"Apply {args.source} to {args.root}: {counts}",
        files=files,
        reasons=tuple(reasons),
        where=f"this host, below {args.root}; nothing outside it is touched",
        undo=_describe_undo(args.units),
    )


def bound_diffs(diffs: Iterable[FileDiff]) -> tuple[FileDiff, ...]:
    """Return the diffs with at most ``PLAN_DIFF_BYTES_MAX`` bytes of text in all."""
    left = PLAN_DIFF_BYTES_MAX
    bounded: list[FileDiff] = []
    for diff in diffs:
        shown = _bound_diff(diff, left)
        left -= len(shown.diff.encode())
        bounded.append(shown)
    assert left >= 0, "the card stays within its bound"
    return tuple(bounded)


def _bound_diff(diff: FileDiff, bytes_max: int) -> FileDiff:
    """Cut a diff after the last whole line that fits."""
    if len(diff.diff.encode()) <= bytes_max:
        return diff
    lines = diff.diff.splitlines(keepends=True)
    size = 0
    for count, line in enumerate(lines):
        size += len(line.encode())
        if size > bytes_max:
            hidden = diff.lines_hidden + len(lines) - count
            return msgspec.structs.replace(diff, diff="".join(lines[:count]), lines_hidden=hidden)
    raise AssertionError("a text that is too long has a line that does not fit")


def _describe_undo(units: Iterable[PlanUnit]) -> str:
    actions = {unit.action for unit in units}
    advice: list[str] = []
    if "create" in actions:
        advice.append("What is created goes when its units leave the workspace and it is applied.")
    if actions & {"update", "delete"}:
        advice.append(
            "What is changed or deleted comes back by applying the earlier version of the "
            "workspace; content that no workspace held is in this diff alone."
        )
    return " ".join(advice)
