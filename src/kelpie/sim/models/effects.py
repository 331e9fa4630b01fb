"""The life of effects and approvals: the shipped gate, and everybody who may talk to it.

Around the gate (`kelpie.effects.gate`) stand an actor that wishes, executors whose session may end,
a person who answers any card that was ever shown, at any time, a policy that may change, and a
clock. The laws look at what was *handed to an executor* and at what the person *read and answered*.

Time is kept relative in what tells states apart, so that the exploration covers every later moment.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Final, NamedTuple

from kelpie.actors.commands import Command, Message, WriteEffect
from kelpie.actors.machine import Decision, Turn
from kelpie.core.errors import KelpieError
from kelpie.core.limits import EFFECT_ATTEMPTS_MAX
from kelpie.effects import messages as m
from kelpie.effects.gate import Gated, GatedState
from kelpie.effects.lifecycle import ALLOWED
from kelpie.effects.model import (
    DiffCard,
    Effect,
    EffectRecord,
    Outcome,
    Preparation,
    Promise,
    wish_digest,
)
from kelpie.effects.policy import Policy, Rule
from kelpie.effects.rules import EffectKind, GateRules
from kelpie.sim.explore import Action, Law, Model, StepLaw
from kelpie.sim.models.wisher import (
    ACTOR,
    GRANT_REF,
    CloseGrantOf,
    GiveUp,
    Told,
    WishAll,
    Wisher,
)
from kelpie.storage.records import EffectState

PERSON: Final = "person:ann"
TICK_MS: Final = 1_500
SESSIONS_MAX: Final = 3
WRITE: Final = "files.apply"
GRANT: Final = "plan.apply"

# --- the world around it ------------------------------------------------------------------------


class Attempt(NamedTuple):
    """An order that an executor got: for which effect, under which digest, and when.

    ``grant`` is the grant that the effect named, ``wish`` the digest of what it asks for.
    """

    effect_id: str
    attempt: int
    digest: str
    at_ms: int
    grant: str
    wish: str


class Card(NamedTuple):
    """A question as a person read it."""

    effect_id: str
    digest: str
    expires_ms: int


Decide = Callable[[Gated[Told], GatedState[Told], Message, Turn], Decision[GatedState[Told]]]
"""A transition of a gate."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EffectWorld:
    """The actor as stored, and what really happened around it.

    Attributes:
        gate: The actor's state.
        rows: The state of every effect row that was written.
        now_ms: The clock.
        session: How many sessions of executors there were.
        rules: Which of the model's policies is in force.
        running: Orders that executors of the present session have.
        orders: Every order ever handed out.
        cards: Every question that was shown.
        yeses: The questions that the person answered with yes.
    """

    gate: GatedState[Told]
    rows: Mapping[str, EffectState] = field(default_factory=dict[str, EffectState])
    now_ms: int = 0
    session: int = 1
    rules: int = 0
    running: tuple[Attempt, ...] = ()
    orders: tuple[Attempt, ...] = ()
    cards: tuple[Card, ...] = ()
    yeses: tuple[Card, ...] = ()

    @property
    def session_name(self) -> str:
        """The executors' present session."""
        return f"session-{self.session}"


def decide_as_shipped(
    gate: Gated[Told], state: GatedState[Told], message: Message, turn: Turn
) -> Decision[GatedState[Told]]:
    """Run the gate's own transition."""
    return gate.decide(state, message, turn)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Subject:
    """What a model is made of; ``covered`` are the wishes that the grant names."""

    decide: Decide
    wisher: Wisher
    promise: Promise
    policies: Sequence[Policy]
    sessions_max: int = SESSIONS_MAX
    approval_ticks: int = 2
    may_restore: bool = False
    covered: frozenset[str] = frozenset()

    @property
    def wishes(self) -> tuple[Effect, ...]:
        """Everything that the actor may ever ask for."""
        return (*self.wisher.first, *self.wisher.members)

    def rules(self, world: EffectWorld) -> GateRules:
        """Return what the gate decides by now."""
        write = EffectKind(name=WRITE, prepares=True, promise=lambda _: self.promise)
        grant = EffectKind(name=GRANT, prepares=False, promise=lambda _: "once", is_grant=True)
        return GateRules(
            policy=self.policies[world.rules],
            kinds={WRITE: write, GRANT: grant},
            approval_ttl_ms=self.approval_ticks * TICK_MS,
        )

    def tell(self, world: EffectWorld, message: Message, *, by: str = "system") -> EffectWorld:
        """Return the world after one turn of the actor; a refusal changes nothing."""
        seed = b"turn after row %d" % len(world.rows)
        turn = Turn(actor=ACTOR, now_ms=world.now_ms, seed=seed, principal=by)
        gate = Gated(self.wisher, self.rules(world))
        try:
            decision = self.decide(gate, world.gate, message, turn)
        except KelpieError:
            return world
        return _stored(world, decision.state, decision.commands)

    def start(self, world: EffectWorld, record: EffectRecord) -> EffectWorld:
        """Let the dispatcher ask for a start, and hand the order over if it gets one."""
        message = m.StartEffect(effect_id=record.effect_id, session=world.session_name)
        after = self.tell(world, message)
        now = after.gate.effects.get(record.effect_id)
        if now is None or now.state != "started" or record.state == "started":
            return after
        effect = next(each for each in self.wishes if each.ref == now.ref)
        order = Attempt(
            now.effect_id, now.attempt, now.digest, after.now_ms, now.grant, wish_digest(effect)
        )
        return replace(after, running=(*after.running, order), orders=(*after.orders, order))


def _stored(world: EffectWorld, gate: GatedState[Told], commands: Iterable[Command]) -> EffectWorld:
    rows = dict(world.rows)
    for command in commands:
        if isinstance(command, WriteEffect):
            rows[command.row.effect_id] = command.row.state
    cards = list(world.cards)
    for record in gate.effects.values():
        if record.state == "waiting":
            card = Card(record.effect_id, record.digest, record.due_ms)
            cards += [] if card in cards else [card]
    return replace(world, gate=gate, rows=rows, cards=tuple(cards))


# --- what can happen ----------------------------------------------------------------------------


def _actions(subject: _Subject, world: EffectWorld) -> Iterable[Action]:
    for record in world.gate.effects.values():
        yield from _executor_actions(subject, world, record)
        yield from _owner_actions(subject, world, record)
    yield from _person_actions(subject, world)
    yield from _outcome_actions(subject, world)
    if world.session < subject.sessions_max:
        dead = replace(world, session=world.session + 1, running=())
        yield Action("crash", "the process dies and another takes over", lambda: dead)
    later = replace(world, now_ms=world.now_ms + TICK_MS)
    yield Action("tick", f"{TICK_MS} ms pass", lambda: later)
    if world.rules + 1 < len(subject.policies):
        newer = replace(world, rules=world.rules + 1)
        yield Action("policy", f"policy {world.rules + 2} comes into force", lambda: newer)


def _executor_actions(
    subject: _Subject, world: EffectWorld, record: EffectRecord
) -> Iterable[Action]:
    name, ref = record.effect_id, record.ref
    if record.state == "proposed":
        shown = Preparation(card=DiffCard(title=ref), target="as it was")
        look = m.EffectPrepared(effect_id=name, preparation=shown)
        yield Action("prepare", f"{ref} is prepared", lambda: subject.tell(world, look))
        blind = m.EffectPrepared(effect_id=name, failure=Outcome(status="failed", error="no"))
        yield Action("prepare", f"preparing {ref} fails", lambda: subject.tell(world, blind))
    yield Action("start", f"the dispatcher starts {ref}", lambda: subject.start(world, record))
    if record.state == "started" and record.session != world.session_name:
        for untouched in (False, True):
            cut = m.RecoverEffect(
                effect_id=name,
                attempt=record.attempt,
                ended_session=record.session,
                untouched=untouched,
            )
            text = f"recovery finds {ref} cut off, its target {'un' * untouched}touched"
            yield Action("recover", text, partial(subject.tell, world, cut))
    if subject.may_restore and record.state in {"approved", "started"}:
        restored = m.RecoverEffect(
            effect_id=name, attempt=record.attempt, ended_session=record.session, restored=True
        )
        text = f"the store with {ref} comes back from a copy"
        yield Action("restore", text, lambda: subject.tell(world, restored))


def _owner_actions(subject: _Subject, world: EffectWorld, record: EffectRecord) -> Iterable[Action]:
    ref = record.ref
    yield Action("give up", f"the actor gives up {ref}", lambda: subject.tell(world, GiveUp(ref)))
    if record.kind == GRANT:
        close = CloseGrantOf(ref)
        yield Action("close", f"the actor closes {ref}", lambda: subject.tell(world, close))
    if record.state == "waiting":
        late = m.ExpireEffect(effect_id=record.effect_id)
        yield Action("expire", f"the reminder of {ref} fires", lambda: subject.tell(world, late))


def _person_actions(subject: _Subject, world: EffectWorld) -> Iterable[Action]:
    refs = {record.effect_id: record.ref for record in world.gate.effects.values()}
    for number, card in enumerate(world.cards, start=1):
        what = f"card {number} ({refs.get(card.effect_id, 'over')})"
        yield Action(
            "yes",
            f"the person says yes to {what}",
            partial(_say_yes, subject, world, card),
        )
        no = m.DenyEffect(effect_id=card.effect_id)
        yield Action(
            "no", f"the person says no to {what}", partial(subject.tell, world, no, by=PERSON)
        )
    for record in world.gate.effects.values():
        if record.state == "unknown":
            word = m.ResolveEffect(effect_id=record.effect_id, succeeded=True, reason="I looked")
            text = f"the person says that {record.ref} was done"
            yield Action("resolve", text, partial(subject.tell, world, word, by=PERSON))


def _say_yes(subject: _Subject, world: EffectWorld, card: Card) -> EffectWorld:
    is_new = card not in world.yeses and world.now_ms < card.expires_ms
    yeses = (*world.yeses, card) if is_new else world.yeses
    yes = m.ApproveEffect(effect_id=card.effect_id, digest=card.digest)
    return subject.tell(replace(world, yeses=yeses), yes, by=PERSON)


def _outcome_actions(subject: _Subject, world: EffectWorld) -> Iterable[Action]:
    """Outcomes of what runs now; the report of an older attempt may still come, and come twice."""
    for order in world.orders:
        is_running = order in world.running
        for status in ("done", "failed") if is_running else ("done",):
            outcome = Outcome(status=status)
            report = m.EffectFinished(
                effect_id=order.effect_id, attempt=order.attempt, outcome=outcome
            )
            left = tuple(other for other in world.running if other != order)
            before = replace(world, running=left)
            text = f"attempt {order.attempt} reports {status}{'' if is_running else ', late'}"
            kind = "report" if is_running else "late report"
            yield Action(kind, text, partial(subject.tell, before, report))


# --- laws ---------------------------------------------------------------------------------------


def _has_yes(world: EffectWorld, effect_id: str, digest: str | None, at_ms: int) -> bool:
    return any(
        yes.effect_id == effect_id and digest in {None, yes.digest} and at_ms < yes.expires_ms
        for yes in world.yeses
    )


def _no_order_without_yes(
    covered: frozenset[str], before: EffectWorld, _: str, after: EffectWorld
) -> str | None:
    """A first attempt needs a yes to just this in time, its own or that of a grant naming it."""
    for order in after.orders[len(before.orders) :]:
        name = (order.effect_id, order.digest)
        is_again = any((old.effect_id, old.digest) == name for old in before.orders)
        has_own = _has_yes(after, order.effect_id, order.digest, order.at_ms)
        has_grant = order.wish in covered and _has_yes(after, order.grant, None, order.at_ms)
        if not (has_own or has_grant or is_again):
            return f"attempt {order.attempt} was ordered, and nobody said yes in time to just this"
    return None


def _nothing_after_the_end(before: EffectWorld, _: str, after: EffectWorld) -> str | None:
    for effect_id, state in before.rows.items():
        now = after.rows.get(effect_id)
        if now is None:
            return "a row disappeared"
        if now != state and now not in ALLOWED[state]:
            return f"a row went from {state} to {now}"
    new = set(after.orders) - set(before.orders)
    if any(not ALLOWED[before.rows[order.effect_id]] for order in new):
        return "an effect that had ended was ordered again"
    return None


def _orders_within_promise(promise: Promise, world: EffectWorld) -> str | None:
    most = 1 if promise == "once" else EFFECT_ATTEMPTS_MAX
    counts = [order.effect_id for order in world.orders]
    for effect_id in set(counts):
        if counts.count(effect_id) > most:
            return f"a {promise} effect was ordered {counts.count(effect_id)} times"
    return None


def _rows_are_records(world: EffectWorld) -> str | None:
    kept = {record.effect_id: record.state for record in world.gate.effects.values()}
    open_rows = {name: state for name, state in world.rows.items() if ALLOWED[state]}
    return None if kept == open_rows else f"rows {open_rows} are not the records {kept}"


def _each_settles_once(world: EffectWorld) -> str | None:
    ends = [ref for ref, state in world.gate.inner if state != "unknown"]
    twice = [ref for ref in ends if ends.count(ref) > 1]
    return f"{twice[0]} was reported settled twice" if twice else None


def _grant_used_once(world: EffectWorld) -> str | None:
    """Of several effects that ask for the same, a grant that names it once lets one start."""
    free: dict[str, str] = {}
    for order in world.orders:
        if any(yes.effect_id == order.effect_id for yes in world.yeses):
            continue
        if free.setdefault(order.wish, order.effect_id) != order.effect_id:
            return "two effects were ordered under one member of a grant"
    return None


# --- the models ---------------------------------------------------------------------------------


def _distance(due_ms: int, now_ms: int) -> int:
    return max(due_ms - now_ms, -1) if due_ms else -2


def _canonical(world: EffectWorld) -> Any:
    """Return the world with times relative to now, and without what nobody looks at."""
    records = tuple(
        (
            record.effect_id,
            record.state,
            record.digest,
            record.attempt,
            record.session,
            record.used,
            record.verdict.policy if record.verdict else "",
            _distance(record.due_ms, world.now_ms),
        )
        for record in world.gate.effects.values()
    )
    return (
        records,
        tuple(sorted(world.gate.inner)),
        tuple(sorted(world.rows.items())),
        (world.session, world.rules),
        frozenset(order[:3] for order in world.running),
        frozenset(order[:3] for order in world.orders),
        frozenset(_without_clock(card, world.now_ms) for card in world.cards),
        frozenset(_without_clock(yes, world.now_ms) for yes in world.yeses),
    )


def _without_clock(card: Card, now_ms: int) -> Card:
    return card._replace(expires_ms=_distance(card.expires_ms, now_ms))


def _describe(world: EffectWorld) -> str:
    states = ", ".join(sorted(world.rows.values()))
    return f"rows: {states}; {len(world.orders)} orders; {len(world.yeses)} yeses"


def _build(subject: _Subject, name: str) -> Model[EffectWorld]:
    fresh = EffectWorld(gate=GatedState(subject.wisher.create(ACTOR), {}))
    return Model(
        name=name,
        initial=[subject.tell(fresh, WishAll())],
        actions=lambda world: _actions(subject, world),
        canonical=_canonical,
        laws=[
            Law("orders within the promise", partial(_orders_within_promise, subject.promise)),
            Law("rows are records", _rows_are_records),
            Law("each effect settles once", _each_settles_once),
            Law("a grant covers each member once", _grant_used_once),
        ],
        step_laws=[
            StepLaw(
                "no order without a yes",
                partial(_no_order_without_yes, subject.covered),
            ),
            StepLaw("what ended stays ended", _nothing_after_the_end),
        ],
        is_goal=lambda world: not world.gate.effects and not world.running,
        describe=_describe,
    )


def _wish(ref: str, text: str) -> Effect:
    return Effect(kind=WRITE, ref=ref, args={"write": text}, timeout_ms=1)


def effect_model(promise: Promise, *, decide: Decide = decide_as_shipped) -> Model[EffectWorld]:
    """Return the life of one red effect whose executor keeps ``promise``.

    Two policies follow each other, and then one that denies.
    """
    reworded = Rule(verdict="red", reason="It is a write.", kind=WRITE)
    denied = Rule(verdict="deny", reason="Nothing is written any more.", kind=WRITE)
    subject = _Subject(
        decide=decide,
        wisher=Wisher((_wish("the write", "a"),)),
        promise=promise,
        policies=[Policy(), Policy((reworded,)), Policy((reworded, denied))],
        may_restore=promise == "once",
    )
    return _build(subject, f"the life of one {promise} effect")


def grant_model(*, decide: Decide = decide_as_shipped) -> Model[EffectWorld]:
    """Return a grant over one write, and two writes that ask for just the same under it."""
    members = (_wish("the member", "a"), _wish("its double", "a"))
    covers = (wish_digest(members[0]),)
    grant = Effect(kind=GRANT, ref=GRANT_REF, args={}, covers=covers, timeout_ms=1)
    subject = _Subject(
        decide=decide,
        wisher=Wisher((grant,), members),
        promise="once",
        policies=[Policy()],
        sessions_max=1,
        approval_ticks=1,
        covered=frozenset(covers),
    )
    return _build(subject, "a grant and its members")
