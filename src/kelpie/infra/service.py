"""From a workspace to a plan: what the server and the command line call.

Owns no state. The plan it returns is ready for `CreatePlan`; the contents it names are in the
target's blob store. The target itself is only read.
"""

from __future__ import annotations

from pathlib import Path

from kelpie.core.digests import digest_bytes
from kelpie.effects.model import FileDiff
from kelpie.infra.card import bound_diffs
from kelpie.infra.config import Desired, Loader
from kelpie.infra.discover import Target, discover
from kelpie.infra.messages import TargetState
from kelpie.infra.paths import require_root
from kelpie.infra.plan import Plan, list_paths, make_plan


def load_workspace(source: Path | str, *, loader: Loader, name: str = "workspace") -> Desired:
    """Return the valid desired state of a file, or of a text that people know as ``name``.

    Reads files and parses them on the caller's thread: 50 ms for a thousand units.

    Raises:
        InvalidFieldError: Something is wrong; names file, line, unit and field.
        LimitExceededError: Something is too large.
    """
    if isinstance(source, Path):
        return loader.load(source)
    return loader.load_text(source, name=name)


async def plan_workspace(
    *, desired: Desired, root: str, target: Target, holding: TargetState
) -> Plan:
    """Return the plan that turns ``target`` into ``desired``.

    Args:
        desired: From a `Loader`.
        root: The target's root, absolute, with links resolved by the caller.
        target: Reads below ``root`` and keeps new contents.
        holding: What earlier applies wrote: the answer to `ShowTarget`.

    Raises:
        ConflictError: A path is in the way.
        LimitExceededError: Too many units.
        InvalidFieldError: ``root`` is not absolute and normal.
        KelpieError: The target cannot be read.
    """
    require_root(root)
    actual = await discover(target, list_paths(desired, holding.applied))
    plan = make_plan(
        desired=desired,
        actual=actual,
        previous=holding.applied,
        root=root,
        revision=holding.revision,
    )
    await _keep_contents(plan, desired, target)
    return plan


async def _keep_contents(plan: Plan, desired: Desired, target: Target) -> None:
    """Store what the plan's changes will write, so that an apply needs the plan alone."""
    contents = {unit.path: unit.content for unit in desired.units if unit.content is not None}
    for unit in plan.units:
        content = contents.get(unit.path)
        if unit.change is None or content is None:
            continue
        assert unit.change.after == digest_bytes(content), "a change names what it writes"
        stored = await target.put_blob(content)
        assert stored == unit.change.after, "a blob is named by its content"


async def diff_plan(plan: Plan, target: Target) -> tuple[FileDiff, ...]:
    """Return how each changing unit would look, in the plan's order, bounded like a card."""
    changes = tuple(unit.change for unit in plan.units if unit.change is not None)
    return bound_diffs(await target.diff(changes))
