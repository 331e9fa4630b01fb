"""The executor of plan approvals: describes a whole plan, and carries out nothing.

The units of a plan are effects of their own, carried out by the executor of ``files.apply``. This
one must never change anything.
"""

from __future__ import annotations

from typing import Any

import msgspec

from kelpie.core.digests import digest_value
from kelpie.core.errors import DeniedError, KelpieError
from kelpie.core.ids import ActorId
from kelpie.core.quoting import quote_text
from kelpie.effects.executor import Order
from kelpie.effects.model import EffectRecord, Outcome, Preparation, Promise
from kelpie.infra.card import make_card
from kelpie.infra.discover import OpenTarget, Target, discover
from kelpie.infra.paths import find_path_problem, require_root
from kelpie.infra.wishes import GRANT_KIND, PlanArgs
from kelpie.sandbox.protocol import FileChange, FileState


class PlanExecutor:
    """Prepares effects of kind ``plan.apply``."""

    kind: str = GRANT_KIND
    concurrency_max: int = 1

    def __init__(self, *, open_target: OpenTarget) -> None:
        self._open_target = open_target

    def promise(self, args: dict[str, Any]) -> Promise:
        """Return ``once``: a copy of the store must not use the same approval again."""
        del args
        return "once"

    async def prepare(self, actor: ActorId, record: EffectRecord) -> Preparation | Outcome:
        """Return the whole plan's card, or a failure if the target is not as it was planned."""
        del actor
        try:
            args = msgspec.convert(record.args, PlanArgs)
            target = self._open_target(require_root(args.root))
            return await _prepare(args, _list_changes(args), target)
        except msgspec.ValidationError as error:
            return Outcome(
                status="failed", code="invalid_field", error=f"plan.apply: {error}", sent=False
            )
        except KelpieError as error:
            return Outcome(status="failed", code=error.code, error=error.message, sent=False)

    async def execute(self, order: Order) -> Outcome:
        """Refuse: an approval is used by the units it covers and is never carried out.

        Raises:
            DeniedError: Always; reaching this is a defect of the gate.
        """
        message = f"effect {order.record.effect_id} is an approval; its units carry the plan out"
        raise DeniedError(message, effect_id=order.record.effect_id)

    async def reconcile(self, order: Order) -> Outcome | None:
        """Return None: an approval touches nothing."""
        del order
        return None


def _list_changes(args: PlanArgs) -> tuple[FileChange, ...]:
    changes = tuple(unit.change for unit in args.units if unit.change is not None)
    if not changes or len(changes) != len(args.units):
        message = "plan.apply: every unit needs a change, and there must be one"
        raise DeniedError(message)
    for change in changes:
        problem = find_path_problem(change.path)
        if problem:
            raise DeniedError(f"plan.apply: {quote_text(change.path)} {problem}")
    return changes


async def _prepare(
    args: PlanArgs, changes: tuple[FileChange, ...], target: Target
) -> Preparation | Outcome:
    states = await discover(target, (change.path for change in changes))
    moved = [change.path for change in changes if states[change.path].digest != change.before]
    if moved:
        names = ", ".join(repr(path) for path in moved[:3])
        more = f" and {len(moved) - 3} more" if len(moved) > 3 else ""
        message = f"{names}{more} changed after the plan was made; plan again"
        return Outcome(status="failed", code="conflict", error=message, sent=False)
    diffs = await target.diff(changes)
    assert len(diffs) == len(changes), "a diff per change"
    counts = {
        action: sum(unit.action == action for unit in args.units)
        for action in ("create", "update", "delete")
    }
    facts: dict[str, Any] = {"paths": [change.path for change in changes], "changes": True}
    return Preparation(
        card=make_card(args, diffs),
        target=_digest_states(states),
        facts=facts | counts,
    )


def _digest_states(states: dict[str, FileState]) -> str:
    return digest_value([[path, *state] for path, state in sorted(states.items())])
