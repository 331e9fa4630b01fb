"""The actor that guards one root: who may change it, and what was written to it.

Invariants: at most one holder; only the holder's release changes what is remembered; the revision
grows exactly when that changes.
"""

from __future__ import annotations

from typing import Any, Final, Literal

import msgspec

from kelpie.actors.commands import Command, Emit, Message, Send
from kelpie.actors.machine import Decision, Turn
from kelpie.core.errors import InvalidFieldError, StoreVersionError
from kelpie.core.ids import ActorId
from kelpie.core.quoting import quote_text
from kelpie.infra.messages import (
    TARGET_TYPE,
    AcquireTarget,
    ReleaseTarget,
    ShowTarget,
    TargetAcquired,
    TargetRefused,
    TargetState,
    plan_actor,
    target_actor,
)
from kelpie.storage.records import StoredActor

_decoder: Final = msgspec.msgpack.Decoder(TargetState)
_encoder: Final = msgspec.msgpack.Encoder()


class TargetMachine:
    """The transition function of actors of type ``target``."""

    type_name: str = TARGET_TYPE
    schema_version: int = 1
    message_type: Any = AcquireTarget | ReleaseTarget | ShowTarget

    def create(self, actor: ActorId) -> TargetState:
        """Return a free target that nothing was written to."""
        assert actor.type == TARGET_TYPE, "a target machine runs targets"
        return TargetState()

    def load(self, stored: StoredActor) -> TargetState:
        """Decode a stored state.

        Raises:
            StoreVersionError: ``stored.schema_version`` is unknown to this program.
        """
        require_schema(stored, self.schema_version)
        return _decoder.decode(stored.state)

    def dump(self, state: TargetState) -> bytes:
        """Encode a state at ``schema_version``."""
        return _encoder.encode(state)

    def decide(self, state: TargetState, message: Message, turn: Turn) -> Decision[TargetState]:
        """Return what follows from ``message``.

        Raises:
            InvalidFieldError: The message is not for this target.
        """
        check_target(state)
        match message:
            case AcquireTarget():
                decision = _acquire(state, message, turn)
            case ReleaseTarget():
                decision = _release(state, message)
            case _:
                raise unknown_message(message)
        check_target(decision.state)
        assert decision.state.revision >= state.revision, "a revision never goes back"
        return decision

    def query(self, state: TargetState, query: Message) -> TargetState:
        """Answer `ShowTarget`.

        Raises:
            InvalidFieldError: The question is another.
        """
        if not isinstance(query, ShowTarget):
            raise unknown_message(query)
        return state


def unknown_message(message: Message) -> InvalidFieldError:
    """Return the error for a message that an actor of this room does not take."""
    return InvalidFieldError("message", f"{type(message).__name__} is not for this actor")


def require_schema(stored: StoredActor, known: int) -> None:
    """Refuse a state that another version of this program wrote.

    Raises:
        StoreVersionError: The stored schema version is not ``known``.
    """
    if stored.schema_version != known:
        message = (
            f"{stored.actor} has schema version {stored.schema_version}, this program knows "
            f"{known}; run the version of Kelpie that wrote it"
        )
        raise StoreVersionError(message, actual=stored.schema_version, known=known)


def check_target(state: TargetState) -> None:
    """Assert what holds of every target between turns."""
    assert bool(state.holder) == bool(state.holder_run), "a holder is a plan and its run"
    assert not state.holder or state.root, "a held target knows its root"
    assert all(path == unit.path for path, unit in state.applied.items()), "keyed by path"


def _acquire(state: TargetState, message: AcquireTarget, turn: Turn) -> Decision[TargetState]:
    if turn.actor != target_actor(turn.actor.tenant, message.root):
        raise InvalidFieldError("root", f"{quote_text(message.root)} is another target's root")
    sender = plan_actor(turn.actor.tenant, message.plan_id)
    claim = (message.plan_id, message.run_id)
    is_holder = claim == (state.holder, state.holder_run)
    reason: Literal["busy", "stale"] | None = None
    if state.holder and not is_holder:
        reason = "busy"
    elif message.revision != state.revision:
        reason = "stale"
    if reason is not None:
        refusal = TargetRefused(run_id=message.run_id, reason=reason, holder=state.holder)
        return Decision(state=state, commands=(Send(receiver=sender, message=refusal),))
    answer = Send(receiver=sender, message=TargetAcquired(run_id=message.run_id))
    if is_holder:
        return Decision(state=state, commands=(answer,))
    held = msgspec.structs.replace(
        state, root=message.root, holder=message.plan_id, holder_run=message.run_id
    )
    body = {"plan_id": message.plan_id, "run_id": message.run_id}
    return Decision(state=held, commands=(answer, Emit(kind="target.acquired", body=body)))


def _release(state: TargetState, message: ReleaseTarget) -> Decision[TargetState]:
    if (message.plan_id, message.run_id) != (state.holder, state.holder_run):
        return Decision(state=state)
    applied = {
        path: unit for path, unit in state.applied.items() if path not in set(message.removed)
    }
    applied |= {unit.path: unit for unit in message.written}
    revision = state.revision + (applied != state.applied)
    free = msgspec.structs.replace(
        state, holder="", holder_run="", applied=applied, revision=revision
    )
    body = {"plan_id": message.plan_id, "run_id": message.run_id, "revision": revision}
    commands: tuple[Command, ...] = (Emit(kind="target.released", body=body),)
    return Decision(state=free, commands=commands)
