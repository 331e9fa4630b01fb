"""The gate: a machine around another machine, through which every effect passes.

The inner machine asks with `Effect`; the gate writes the effect down, classifies it, asks a person
where the policy says so, and lets it start. Its state is the inner state and the open effects; the
effects live in rows of their own. What became of them reaches the inner machine as
`EffectWaiting`, `EffectApproved` and `EffectSettled`.

Invariants: an effect starts only with a verdict and an approval bound to its digest, both checked
against the clock and the present policy at the start; an approval is used by one effect, each of a
grant's members once; every transition is a row, an event and an audit record of one commit.
"""

from __future__ import annotations

from collections.abc import Coroutine, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar, get_args

import msgspec

from kelpie.actors import commands as c
from kelpie.actors.commands import Message
from kelpie.actors.machine import Decision, Extras, Machine, Scope, Turn, extras_of
from kelpie.core.errors import NotFoundError
from kelpie.core.ids import ActorId
from kelpie.effects import answers, attempts
from kelpie.effects import messages as m
from kelpie.effects.gate_turn import GateTurn
from kelpie.effects.lifecycle import is_open
from kelpie.effects.model import EffectRecord
from kelpie.effects.rules import GateRules
from kelpie.storage.records import StoredActor

S = TypeVar("S")

GATE_MESSAGES = (
    m.EffectPrepared
    | m.StartEffect
    | m.EffectFinished
    | m.RecoverEffect
    | m.ApproveEffect
    | m.DenyEffect
    | m.ExpireEffect
    | m.ResolveEffect
)

_GATE_TYPES = frozenset(get_args(GATE_MESSAGES))
# Commands that pass as they are. Exactly these: of what is not named here, the gate decides.
_FREE = frozenset({c.Reply, c.Emit, c.Send, c.Remind, c.Forget, c.PutKv, c.DeleteKv})
_decoder = msgspec.msgpack.Decoder(EffectRecord)


@dataclass(frozen=True, slots=True)
class GatedState(Generic[S]):
    """An inner state and the open effects of its actor, by id."""

    inner: S
    effects: Mapping[str, EffectRecord]

    def check_invariants(self) -> None:
        """Assert that only open effects are kept and that their refs are distinct."""
        assert all(is_open(record) for record in self.effects.values())
        refs = [record.ref for record in self.effects.values() if record.state != "unknown"]
        assert len(set(refs)) == len(refs), "two open effects share a ref"


class Gated(Generic[S]):
    """Hosts ``inner`` behind the gate. A `Machine` itself."""

    def __init__(self, inner: Machine[S], rules: GateRules) -> None:
        self._inner = inner
        self._rules = rules

    @property
    def type_name(self) -> str:
        """The inner machine's type."""
        return self._inner.type_name

    @property
    def schema_version(self) -> int:
        """The inner machine's schema version."""
        return self._inner.schema_version

    @property
    def message_type(self) -> Any:
        """The inner machine's messages and queries, and the gate's."""
        return self._inner.message_type | GATE_MESSAGES | m.ShowEffects

    @property
    def extras(self) -> GatedExtras[S] | None:
        """The inner machine's extras behind the gate, None when it has none."""
        inner = extras_of(self._inner)
        return None if inner is None else GatedExtras(inner)

    def create(self, actor: ActorId) -> GatedState[S]:
        """Return a fresh inner state without effects."""
        return GatedState(self._inner.create(actor), {})

    def load(self, stored: StoredActor) -> GatedState[S]:
        """Decode the inner state and the open effects."""
        effects = {row.effect_id: _decoder.decode(row.body) for row in stored.effects}
        return GatedState(self._inner.load(stored), effects)

    def dump(self, state: GatedState[S]) -> bytes:
        """Encode the inner state; effects are rows."""
        return self._inner.dump(state.inner)

    def decide(self, state: GatedState[S], message: Message, turn: Turn) -> Decision[GatedState[S]]:
        """Advance the effect that ``message`` is about, or give it to the inner machine."""
        if type(message) in _GATE_TYPES:
            work = GateTurn(self._inner, self._rules, state.inner, state.effects, turn)
            advance(work, message)
        else:
            found = self._inner.decide(state.inner, message, turn)
            if not state.effects and _FREE.issuperset(map(type, found.commands)):
                kept = state if found.state is state.inner else GatedState(found.state, {})
                return Decision(state=kept, commands=found.commands)
            work = GateTurn(self._inner, self._rules, state.inner, state.effects, turn)
            work.take(found)
        inner, effects, commands = work.end()
        if inner is state.inner and effects is state.effects:
            return Decision(state=state, commands=commands)
        decided = GatedState(inner, effects)
        decided.check_invariants()
        return Decision(state=decided, commands=commands)

    def query(self, state: GatedState[S], query: Message) -> Any:
        """Answer about open effects, or ask the inner machine."""
        if isinstance(query, m.ShowEffects):
            return tuple(state.effects.values())
        return self._inner.query(state.inner, query)


def advance(work: GateTurn[Any], message: Any) -> None:
    """Apply one gate message to the effect it names.

    Raises:
        NotFoundError: The actor has no open effect of that id, and the message comes from a
            person; the dispatcher's messages about ended effects are ignored.
        ConflictError: The effect is not in a state that allows this.
    """
    record = work.effects.get(message.effect_id)
    match message:
        case m.ApproveEffect() | m.DenyEffect() | m.ResolveEffect():
            if record is None:
                raise NotFoundError("open effect", message.effect_id)
            _answer(work, record, message)
        case _ if record is None:
            return
        case m.EffectPrepared():
            work.prepared(record, message)
        case m.StartEffect(session=session):
            attempts.start(work, record, session)
        case m.EffectFinished(attempt=attempt, outcome=outcome):
            attempts.finish(work, record, attempt, outcome)
        case m.RecoverEffect():
            attempts.recover(work, record, message)
        case m.ExpireEffect():
            answers.expire(work, record)
        case _:
            raise AssertionError(f"{type(message).__name__} is not a gate message")


def _answer(work: GateTurn[Any], record: EffectRecord, message: Any) -> None:
    match message:
        case m.ApproveEffect(digest=digest, reason=reason):
            answers.approve(work, record, digest, reason)
        case m.DenyEffect(reason=reason):
            answers.deny(work, record, reason)
        case m.ResolveEffect(succeeded=succeeded, reason=reason):
            answers.resolve(work, record, reason, succeeded=succeeded)
        case _:
            raise AssertionError(f"{type(message).__name__} is not an answer")


class GatedExtras(Generic[S]):
    """What the inner machine offers beyond the pure contract, behind the gate."""

    def __init__(self, inner: Extras[S]) -> None:
        self._inner = inner

    @property
    def concurrency_max(self) -> int:
        """The inner machine's bound."""
        return self._inner.concurrency_max

    def is_async(self, message: Message) -> bool:
        """Return whether the inner machine runs this message in a task."""
        return not isinstance(message, GATE_MESSAGES) and self._inner.is_async(message)

    def begin(
        self, state: GatedState[S], message: Message, scope: Scope
    ) -> Coroutine[Any, Any, Any]:
        """Return the inner machine's work; what it came to passes the gate in ``decide``."""
        return self._inner.begin(state.inner, message, scope)

    def ask(self, state: GatedState[S], query: Message, turn: Turn) -> Any:
        """Answer about open effects, or ask the inner machine."""
        if isinstance(query, m.ShowEffects):
            return tuple(state.effects.values())
        return self._inner.ask(state.inner, query, turn)

    @property
    def has_hooks(self) -> bool:
        """Whether the inner machine has."""
        return self._inner.has_hooks

    def deactivated(self, actor: ActorId, state: GatedState[S]) -> None:
        """Tell the inner machine."""
        self._inner.deactivated(actor, state.inner)
