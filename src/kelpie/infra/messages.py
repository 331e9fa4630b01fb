"""The words of plans and targets: states, commands, queries and events.

A plan is the actor ``<tenant>/plan/<plan id>``; the root it changes is the actor
``<tenant>/target/<digest of the root>``. One target has one holder at a time, which is why two
applies on one root cannot collide.
"""

from __future__ import annotations

from typing import Any, ClassVar, Final, Literal

import msgspec

from kelpie.actors.commands import Message
from kelpie.core.digests import Digest, digest_bytes
from kelpie.core.ids import ActorId, Tenant
from kelpie.infra.plan import Action, AppliedUnit, Plan

PLAN_TYPE: Final = "plan"
TARGET_TYPE: Final = "target"
COLLECTION: Final = "plans"

PlanStatus = Literal[
    "planned",
    "acquiring",
    "refused",
    "proposed",
    "waiting",
    "applying",
    "applied",
    "failed",
    "denied",
    "expired",
]
PLAN_STATUSES_FINAL: Final[frozenset[PlanStatus]] = frozenset(
    {"applied", "failed", "denied", "expired"}
)
UnitStatus = Literal[
    "pending",
    "started",
    "done",
    "unchanged",
    "failed",
    "voided",
    "unknown",
    "denied",
    "expired",
    "cancelled",
    "skipped",
]
UNIT_STATUSES_OPEN: Final[frozenset[UnitStatus]] = frozenset({"pending", "started"})
UNIT_STATUSES_GOOD: Final[frozenset[UnitStatus]] = frozenset({"done", "unchanged"})


def plan_actor(tenant: Tenant, plan_id: str) -> ActorId:
    """Return the actor of a plan."""
    return ActorId(tenant, PLAN_TYPE, plan_id)


def target_actor(tenant: Tenant, root: str) -> ActorId:
    """Return the actor that guards ``root``; a caller has resolved links in it."""
    key = digest_bytes(root.encode()).removeprefix("sha256:")
    return ActorId(tenant, TARGET_TYPE, key)


# --- states -------------------------------------------------------------------------------------


class UnitRun(msgspec.Struct, frozen=True, kw_only=True):
    """How one unit of an apply is doing. Times are wall milliseconds, 0 for not yet."""

    status: UnitStatus = "pending"
    effect_id: str = ""
    error: str = ""
    started_ms: int = 0
    finished_ms: int = 0


class PlanState(msgspec.Struct, frozen=True, kw_only=True):
    """Everything a plan's actor keeps.

    Attributes:
        plan_id: The actor's key.
        plan: What would be done; None until it was created.
        status: Where the plan is in its life.
        run_id: The apply that is under way or over, empty before.
        grant: Id of the effect that a person approves for the whole plan, empty before.
        is_grant_open: Whether that approval still covers units that have not started.
        units: By unit id, in the plan's order; empty until an apply begins.
        note: What a person should know: who holds the target, why it failed, what to do next.
    """

    plan_id: str
    plan: Plan | None = None
    status: PlanStatus = "planned"
    run_id: str = ""
    grant: str = ""
    is_grant_open: bool = False
    units: dict[str, UnitRun] = {}
    note: str = ""
    created_ms: int = 0
    updated_ms: int = 0
    finished_ms: int = 0


class PlanSummary(msgspec.Struct, frozen=True, kw_only=True):
    """A plan as a list shows it, and as the commands reply."""

    plan_id: str
    digest: Digest
    root: str
    source: str
    status: PlanStatus
    counts: dict[Action, int]
    has_changes: bool
    run_id: str = ""
    grant: str = ""
    note: str = ""
    created_ms: int
    updated_ms: int
    finished_ms: int = 0


class TargetState(msgspec.Struct, frozen=True, kw_only=True):
    """Everything a target's actor keeps.

    ``holder`` is the plan that is being applied, empty when free; ``applied`` is what earlier
    applies wrote, by path; ``revision`` grows whenever ``applied`` changes.
    """

    root: str = ""
    holder: str = ""
    holder_run: str = ""
    applied: dict[str, AppliedUnit] = {}
    revision: int = 0


# --- to a plan ----------------------------------------------------------------------------------


class CreatePlan(Message, frozen=True, tag="plan.create"):
    """Store a plan; replies with its `PlanSummary`. The same plan again changes nothing."""

    reply_type: ClassVar[Any] = PlanSummary

    plan: Plan


class ApplyPlan(Message, frozen=True, tag="plan.apply"):
    """Begin to apply; replies with the `PlanSummary` at once, and events tell the rest.

    ``run_id`` is chosen by the caller, so that a repeated request names the same apply.
    """

    reply_type: ClassVar[Any] = PlanSummary

    run_id: str


class TargetAcquired(Message, frozen=True, tag="plan.target_acquired"):
    """From the target: this apply holds it now."""

    run_id: str


class TargetRefused(Message, frozen=True, tag="plan.target_refused"):
    """From the target: another plan holds it (``busy``), or it has moved on (``stale``)."""

    run_id: str
    reason: Literal["busy", "stale"]
    holder: str = ""


class ShowPlan(Message, frozen=True, tag="plan.show"):
    """Query: the `PlanState`."""

    reply_type: ClassVar[Any] = PlanState


# --- to a target --------------------------------------------------------------------------------


class AcquireTarget(Message, frozen=True, tag="target.acquire"):
    """From a plan: hold the target for one apply; the answer comes as a message."""

    root: str
    plan_id: str
    run_id: str
    revision: int


class ReleaseTarget(Message, frozen=True, tag="target.release"):
    """From its holder: the apply is over; ``removed`` and ``written`` say what it came to."""

    plan_id: str
    run_id: str
    written: tuple[AppliedUnit, ...] = ()
    removed: tuple[str, ...] = ()


class ShowTarget(Message, frozen=True, tag="target.show"):
    """Query: the `TargetState`; an unused target is free and empty."""

    reply_type: ClassVar[Any] = TargetState


# --- events (`Emit.kind` and body) --------------------------------------------------------------
# plan.created  {plan_id, digest, counts}            plan.applying {plan_id, run_id}
# plan.refused  {plan_id, run_id, note, holder}      plan.waiting  {plan_id, run_id, effect_id}
# plan.approved {plan_id, run_id, effect_id}
# unit.started  {plan_id, run_id, unit_id, path, action, ref}
# unit.finished {plan_id, run_id, unit_id, path, action, status, effect_id, error}
# plan.finished {plan_id, run_id, status, note, units: {status: count}}
# target.acquired {plan_id, run_id}                  target.released {plan_id, run_id, revision}
