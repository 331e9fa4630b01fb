"""The life of plans and their units: two shipped apply machines behind their gates, and one target.

Two people made a plan for the same root at the same time, and each may apply, answer, apply again.
Executors carry units out in any order and come to any end; messages between actors arrive in order,
once, at any later time. The laws look at which units an executor got, at what had really been done
by then, and at who held the target.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Final, Literal, NamedTuple

from kelpie.actors.commands import Message, Send, WriteEffect
from kelpie.actors.machine import Decision, Turn
from kelpie.core.errors import KelpieError
from kelpie.core.ids import TENANT_DEFAULT, ActorId
from kelpie.effects import messages as m
from kelpie.effects.gate import Gated, GatedState
from kelpie.effects.model import DiffCard, EffectRecord, Outcome, Preparation
from kelpie.effects.policy import Policy
from kelpie.effects.rules import EffectKind, GateRules
from kelpie.infra.config import Desired, UnitSpec
from kelpie.infra.machine import ApplyMachine
from kelpie.infra.messages import (
    PLAN_STATUSES_FINAL,
    UNIT_STATUSES_GOOD,
    ApplyPlan,
    CreatePlan,
    PlanState,
    TargetState,
    plan_actor,
    target_actor,
)
from kelpie.infra.plan import ABSENT, Plan, list_paths, make_plan
from kelpie.infra.target import TargetMachine
from kelpie.infra.wishes import GRANT_KIND, GRANT_REF, UNIT_KIND, unit_of_ref
from kelpie.sim.explore import Action, Law, Model, StepLaw

ROOT: Final = "/srv/site"
TARGET: Final = target_actor(TENANT_DEFAULT, ROOT)
NOW_MS: Final = 1_000
TTL_MS: Final = 60_000
RUNS_MAX: Final = 2
DIRECTORY: Final = "directory"
PAGE: Final = "page"
NOTE: Final = "note"

Ending = Literal["done", "failed", "voided", "unknown"]
ENDINGS: Final[tuple[Ending, ...]] = ("done", "failed", "voided", "unknown")

Plans = GatedState[PlanState]
DecidePlan = Callable[[Gated[PlanState], Plans, Message, Turn], Decision[Plans]]
DecideTarget = Callable[[TargetMachine, TargetState, Message, Turn], Decision[TargetState]]


def decide_plan_as_shipped(
    gate: Gated[PlanState], state: Plans, message: Message, turn: Turn
) -> Decision[Plans]:
    """Run the transition of a plan behind its gate."""
    return gate.decide(state, message, turn)


def decide_target_as_shipped(
    machine: TargetMachine, state: TargetState, message: Message, turn: Turn
) -> Decision[TargetState]:
    """Run the transition of a target."""
    return machine.decide(state, message, turn)


class Start(NamedTuple):
    """A unit that an executor got: of which run, who held the target, and what was done by then."""

    unit: str
    run_id: str
    holder: str
    done: frozenset[str]
    has_yes: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanSide:
    """One plan's actor, its messages under way, and what was really done for it.

    Attributes:
        gate: The actor's state.
        runs: How many applies were asked for.
        rows: How many effect rows it wrote, so that every turn has a seed of its own.
        to_target: Its messages that have not arrived.
        from_target: The target's answers that have not arrived.
        yeses: The effects that its person said yes to.
        starts: The units that executors got.
        done: The units that executors finished.
    """

    gate: Plans
    runs: int = 0
    rows: int = 0
    to_target: tuple[Message, ...] = ()
    from_target: tuple[Message, ...] = ()
    yeses: frozenset[str] = frozenset()
    starts: tuple[Start, ...] = ()
    done: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanWorld:
    """The plans by name, and the target they share."""

    sides: Mapping[str, PlanSide]
    target: TargetState = field(default_factory=TargetState)

    def with_side(self, name: str, side: PlanSide) -> PlanWorld:
        """Return the world with one plan's side replaced."""
        assert name in self.sides, "plans are neither made nor removed"
        return replace(self, sides={**self.sides, name: side})


@dataclass(frozen=True, slots=True, kw_only=True)
class _PlanSubject:
    decide_plan: DecidePlan
    decide_target: DecideTarget
    gate: Gated[PlanState]
    needs: Mapping[str, tuple[str, ...]]

    def tell(
        self, world: PlanWorld, name: str, message: Message, *, by: str = "system", at_ms: int = 0
    ) -> PlanWorld:
        """Return the world after one turn of a plan; a refusal changes nothing."""
        side = world.sides[name]
        turn = _turn(plan_actor(TENANT_DEFAULT, name), side.rows, by, at_ms or NOW_MS)
        try:
            decision = self.decide_plan(self.gate, side.gate, message, turn)
        except KelpieError:
            return world
        sends = [each.message for each in decision.commands if isinstance(each, Send)]
        rows = sum(isinstance(each, WriteEffect) for each in decision.commands)
        after = replace(
            side,
            gate=decision.state,
            rows=side.rows + rows,
            to_target=(*side.to_target, *sends),
        )
        return world.with_side(name, after)

    def deliver_to_target(self, world: PlanWorld, name: str) -> PlanWorld:
        """Let the target take the plan's oldest message; answers go to whom it names."""
        side = world.sides[name]
        message, *rest = side.to_target
        after = world.with_side(name, replace(side, to_target=tuple(rest)))
        turn = _turn(TARGET, 0, f"actor:{name}", NOW_MS)
        decision = self.decide_target(TargetMachine(), world.target, message, turn)
        for command in decision.commands:
            if isinstance(command, Send):
                receiver = command.receiver.key
                asker = after.sides[receiver]
                answers = (*asker.from_target, command.message)
                after = after.with_side(receiver, replace(asker, from_target=answers))
        return replace(after, target=decision.state)

    def deliver_to_plan(self, world: PlanWorld, name: str) -> PlanWorld:
        """Let the plan take the target's oldest answer."""
        side = world.sides[name]
        message, *rest = side.from_target
        return self.tell(
            world.with_side(name, replace(side, from_target=tuple(rest))), name, message
        )

    def carry_out(
        self, world: PlanWorld, name: str, record: EffectRecord, ending: Ending, at_ms: int
    ) -> PlanWorld:
        """Let an executor prepare, start and end a unit, as far as the gate lets it."""
        shown = Preparation(card=DiffCard(title=record.ref), target="as planned")
        look = m.EffectPrepared(effect_id=record.effect_id, preparation=shown)
        world = self.tell(world, name, look)
        start = m.StartEffect(effect_id=record.effect_id, session="s")
        world = self.tell(world, name, start, at_ms=at_ms)
        side = world.sides[name]
        now = side.gate.effects.get(record.effect_id)
        if now is None or now.state != "started":
            return world
        unit = unit_of_ref(now.ref)
        is_held = world.target.holder_run if world.target.holder == name else ""
        has_yes = bool(side.yeses & {now.effect_id, now.grant})
        begun = Start(unit, side.gate.inner.run_id, is_held, side.done, has_yes)
        done = side.done | {unit} if ending == "done" else side.done
        world = world.with_side(name, replace(side, starts=(*side.starts, begun), done=done))
        report = m.EffectFinished(
            effect_id=now.effect_id, attempt=now.attempt, outcome=Outcome(status=ending)
        )
        return self.tell(world, name, report)


def _turn(actor: ActorId, number: int, by: str, now_ms: int) -> Turn:
    seed = f"{actor} after row {number}".encode()
    return Turn(actor=actor, now_ms=now_ms, seed=seed, principal=by)


# --- what can happen ----------------------------------------------------------------------------


def _actions(subject: _PlanSubject, world: PlanWorld) -> Iterable[Action]:
    for name, side in world.sides.items():
        if side.runs < RUNS_MAX and side.gate.inner.status in {"planned", "refused"}:
            begun = world.with_side(name, replace(side, runs=side.runs + 1))
            apply = ApplyPlan(run_id=f"{name}/{side.runs + 1}")
            yield Action("apply", f"{name} is applied", partial(subject.tell, begun, name, apply))
        if side.to_target:
            text = f"{type(side.to_target[0]).__name__} of {name} arrives"
            yield Action("ask", text, partial(subject.deliver_to_target, world, name))
        if side.from_target:
            text = f"{type(side.from_target[0]).__name__} reaches {name}"
            yield Action("answer", text, partial(subject.deliver_to_plan, world, name))
        for record in side.gate.effects.values():
            yield from _record_actions(subject, world, name, record)


def _record_actions(
    subject: _PlanSubject, world: PlanWorld, name: str, record: EffectRecord
) -> Iterable[Action]:
    what = f"{name}'s {record.ref}"
    tell = partial(subject.tell, world, name)
    if record.state == "waiting":
        side = world.sides[name]
        agreed = replace(side, yeses=side.yeses | {record.effect_id})
        yes = m.ApproveEffect(effect_id=record.effect_id, digest=record.digest)
        with_yes = world.with_side(name, agreed)
        yield Action("yes", f"yes to {what}", partial(subject.tell, with_yes, name, yes, by="ann"))
        no = m.DenyEffect(effect_id=record.effect_id)
        yield Action("no", f"no to {what}", partial(tell, no, by="ann"))
        late = m.ExpireEffect(effect_id=record.effect_id)
        text = f"nobody answers {what}"
        yield Action("expire", text, partial(tell, late, at_ms=record.due_ms))
    if record.ref == GRANT_REF:
        return
    if record.state in {"proposed", "approved"}:
        for ending in ENDINGS:
            carry = partial(subject.carry_out, world, name, record, ending, NOW_MS)
            yield Action("unit", f"{what} ends {ending}", carry)
        late_start = partial(subject.carry_out, world, name, record, "done", NOW_MS + TTL_MS)
        yield Action("late unit", f"{what} is started too late", late_start)
    if record.state == "unknown":
        word = m.ResolveEffect(effect_id=record.effect_id, succeeded=True, reason="I looked")
        yield Action("resolve", f"{what} turns out done", partial(tell, word, by="ann"))


# --- laws ---------------------------------------------------------------------------------------


def _new_starts(before: PlanWorld, after: PlanWorld) -> Iterable[tuple[str, Start]]:
    for name, side in after.sides.items():
        for start in side.starts[len(before.sides[name].starts) :]:
            yield name, start


def _starts_in_order(
    needs: Mapping[str, tuple[str, ...]], before: PlanWorld, _: str, after: PlanWorld
) -> str | None:
    for name, start in _new_starts(before, after):
        old = before.sides[name].starts
        if (start.run_id, start.unit) in {(each.run_id, each.unit) for each in old}:
            return f"{start.unit} of {name} started twice"
        missing = set(needs[start.unit]) - start.done
        if missing:
            return f"{start.unit} of {name} started before {', '.join(sorted(missing))} was done"
    return None


def _starts_when_allowed(before: PlanWorld, _: str, after: PlanWorld) -> str | None:
    for name, start in _new_starts(before, after):
        if not start.has_yes:
            return f"{start.unit} of {name} started, and nobody had said yes"
        if start.holder != start.run_id:
            return f"{start.unit} of {name} started while its run did not hold the target"
    return None


def _applied_means_done(world: PlanWorld) -> str | None:
    for name, side in world.sides.items():
        state = side.gate.inner
        is_good = all(run.status in UNIT_STATUSES_GOOD for run in state.units.values())
        if state.status == "applied" and not is_good:
            return f"{name} is applied, and a unit is not"
    return None


def _over_stays_over(before: PlanWorld, _: str, after: PlanWorld) -> str | None:
    for name, side in before.sides.items():
        state = side.gate.inner
        if state.status in PLAN_STATUSES_FINAL and after.sides[name].gate.inner != state:
            return f"{name} was {state.status} and changed"
    return None


# --- the model ----------------------------------------------------------------------------------


def _side_key(world: PlanWorld, name: str) -> tuple[Any, ...]:
    """Return what tells one plan's side apart, without its name."""
    side = world.sides[name]
    state = side.gate.inner
    records = side.gate.effects.values()
    return (
        (state.status, side.runs, state.is_grant_open),
        tuple(sorted((unit, run.status) for unit, run in state.units.items())),
        tuple(sorted((record.ref, record.state) for record in records)),
        tuple(type(message).__name__ for message in side.to_target),
        tuple(
            (type(message).__name__, getattr(message, "reason", "")) for message in side.from_target
        ),
        (world.target.holder == name, world.target.holder_run == state.run_id),
        tuple(sorted(start.unit for start in side.starts)),
        (tuple(sorted(side.done)), len(side.yeses)),
    )


def _canonical(world: PlanWorld) -> Any:
    """Return the world without the plans' names: they were made alike."""
    target = (world.target.revision, tuple(sorted(world.target.applied)))
    return (target, *sorted(_side_key(world, name) for name in world.sides))


def _is_at_rest(world: PlanWorld) -> bool:
    resting = PLAN_STATUSES_FINAL | {"planned", "refused"}
    return not world.target.holder and all(
        side.gate.inner.status in resting and not side.to_target and not side.from_target
        for side in world.sides.values()
    )


def _describe(world: PlanWorld) -> str:
    sides = [f"{name} is {side.gate.inner.status}" for name, side in world.sides.items()]
    return f"{', '.join(sides)}; the target is held by {world.target.holder or 'nobody'}"


def make_example_plan() -> Plan:
    """Return a plan that makes a directory, a page in it, and a note beside it."""
    directory = UnitSpec(unit_id=DIRECTORY, type="linux.dir", path="www")
    page = UnitSpec(unit_id=PAGE, type="linux.file", path="www/page", content=b"p")
    note = UnitSpec(unit_id=NOTE, type="linux.file", path="note", content=b"n")
    desired = Desired(source="site.yaml", units=(directory, page, note))
    actual = dict.fromkeys(list_paths(desired, {}), ABSENT)
    return make_plan(desired=desired, actual=actual, previous={}, root=ROOT)


def plan_model(
    *,
    decide_plan: DecidePlan = decide_plan_as_shipped,
    decide_target: DecideTarget = decide_target_as_shipped,
    order: Callable[[Plan], Plan] = lambda plan: plan,
) -> Model[PlanWorld]:
    """Return two plans for one root; ``order`` may change what they say of dependencies."""
    plan = make_example_plan()
    kinds = {
        UNIT_KIND: EffectKind(name=UNIT_KIND, prepares=True, promise=lambda _: "once"),
        GRANT_KIND: EffectKind(
            name=GRANT_KIND, prepares=False, promise=lambda _: "once", is_grant=True
        ),
    }
    gate = Gated(ApplyMachine(), GateRules(policy=Policy(), kinds=kinds, approval_ttl_ms=TTL_MS))
    needs = {unit.unit_id: unit.depends_on for unit in plan.units}
    subject = _PlanSubject(
        decide_plan=decide_plan, decide_target=decide_target, gate=gate, needs=needs
    )
    names = ("plan-a", "plan-b")
    fresh = {name: PlanSide(gate=gate.create(plan_actor(TENANT_DEFAULT, name))) for name in names}
    world = PlanWorld(sides=fresh)
    for name in names:
        world = subject.tell(world, name, CreatePlan(plan=order(plan)))
    return Model(
        name="two plans for one target",
        initial=[world],
        actions=lambda world: _actions(subject, world),
        canonical=_canonical,
        laws=[Law("applied means done", _applied_means_done)],
        step_laws=[
            StepLaw(
                "units start in order",
                partial(_starts_in_order, needs),
            ),
            StepLaw("units start when they may", _starts_when_allowed),
            StepLaw("what is over stays over", _over_stays_over),
        ],
        is_goal=_is_at_rest,
        is_over=_is_at_rest,
        describe=_describe,
    )
