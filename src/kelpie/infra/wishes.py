"""The effects a plan asks for: one for the approval, one per changing unit.

Pure. The unit effects are the same bytes whenever they are built, because the approval covers
them by digest.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

from kelpie.core.limits import PLAN_UNIT_TIMEOUT_MS
from kelpie.effects.model import Effect, wish_digest
from kelpie.infra.plan import Action, Plan, PlanUnit

GRANT_KIND: Final = "plan.apply"
UNIT_KIND: Final = "files.apply"
GRANT_REF: Final = "grant"
_UNIT_PREFIX: Final = "unit/"


class PlanArgs(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The arguments of a ``plan.apply`` effect: the units that change, and whose plan it is."""

    plan: str
    root: str
    source: str
    units: tuple[PlanUnit, ...]


def unit_ref(unit_id: str) -> str:
    """Return the name of a unit's effect in its actor."""
    return f"{_UNIT_PREFIX}{unit_id}"


def unit_of_ref(ref: str) -> str:
    """Return the unit id of a unit effect's name, or an empty text for another effect's."""
    return ref.removeprefix(_UNIT_PREFIX) if ref.startswith(_UNIT_PREFIX) else ""


def make_unit_effect(plan: Plan, unit: PlanUnit, *, grant: str) -> Effect:
    """Return the effect that changes one unit, covered by the plan's approval ``grant``."""
    assert unit.change is not None, "only a change needs an effect"
    args: dict[str, Any] = {
        "root": plan.root,
        "unit": unit.unit_id,
        "changes": [msgspec.to_builtins(unit.change)],
    }
    return Effect(
        kind=UNIT_KIND,
        ref=unit_ref(unit.unit_id),
        args=args,
        grant=grant,
        timeout_ms=PLAN_UNIT_TIMEOUT_MS,
        summary=f"{unit.action} {unit.path}",
    )


def make_grant_effect(plan: Plan) -> Effect:
    """Return the effect that a person approves for the whole plan; it is never carried out."""
    units = tuple(unit for unit in plan.units if unit.change is not None)
    assert units, "an empty plan needs no approval"
    args = PlanArgs(plan=plan.digest, root=plan.root, source=plan.source, units=units)
    return Effect(
        kind=GRANT_KIND,
        ref=GRANT_REF,
        args=msgspec.to_builtins(args),
        covers=tuple(wish_digest(make_unit_effect(plan, unit, grant="")) for unit in units),
        timeout_ms=PLAN_UNIT_TIMEOUT_MS,
        summary=f"apply {plan.source} to {plan.root}: {describe_counts(plan.units)}",
    )


def describe_counts(units: tuple[PlanUnit, ...]) -> str:
    """Return how many units do what, for people: ``1 create, 2 update``."""
    actions: tuple[Action, ...] = ("create", "update", "delete")
    counts = ((action, sum(unit.action == action for unit in units)) for action in actions)
    return ", ".join(f"{count} {action}" for action, count in counts if count) or "nothing"
