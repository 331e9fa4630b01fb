"""A tiny machine that asks for effects and notes what becomes of them."""

from __future__ import annotations

from typing import Any

import msgspec

from kelpie.actors.commands import Delete, Message
from kelpie.actors.machine import Decision, Turn
from kelpie.core.ids import ActorId
from kelpie.effects import messages as m
from kelpie.effects.model import Effect, Promise
from kelpie.storage.records import StoredActor


class Ask(Message, frozen=True, tag="asker.ask"):
    kind: str
    ref: str
    args: dict[str, Any] = msgspec.field(default_factory=dict)
    grant: str = ""
    covers: tuple[str, ...] = ()
    timeout_ms: int = 1_000


class GiveUp(Message, frozen=True, tag="asker.give_up"):
    ref: str


class Close(Message, frozen=True, tag="asker.close"):
    ref: str


class Leave(Message, frozen=True, tag="asker.leave"):
    """Delete the actor."""


State = tuple[str, ...]


class Asker:
    """Turns each message into one effect command and notes what the gate tells it."""

    type_name = "asker"
    schema_version = 1
    message_type = (
        Ask | GiveUp | Close | Leave | m.EffectWaiting | m.EffectApproved | m.EffectSettled
    )

    def create(self, actor: ActorId) -> State:
        return ()

    def load(self, stored: StoredActor) -> State:
        return msgspec.msgpack.decode(stored.state, type=tuple[str, ...])

    def dump(self, state: State) -> bytes:
        return msgspec.msgpack.encode(state)

    def decide(self, state: State, message: Message, turn: Turn) -> Decision[State]:
        match message:
            case Ask():
                effect = Effect(
                    kind=message.kind,
                    ref=message.ref,
                    args=message.args,
                    grant=message.grant,
                    covers=tuple(message.covers),  # type: ignore[arg-type]
                    timeout_ms=message.timeout_ms,
                )
                return Decision(state=state, commands=(effect,))
            case GiveUp(ref=ref):
                return Decision(state=state, commands=(m.CancelEffect(ref=ref),))
            case Leave():
                return Decision(state=state, commands=(Delete(),))
            case Close(ref=ref):
                return Decision(state=state, commands=(m.CloseGrant(ref=ref),))
            case m.EffectWaiting(ref=ref):
                return Decision(state=(*state, f"{ref} waiting"))
            case m.EffectApproved(ref=ref):
                return Decision(state=(*state, f"{ref} approved"))
            case m.EffectSettled(ref=ref, record=record):
                return Decision(state=(*state, f"{ref} {record.state}"))
            case _:
                raise AssertionError(message)

    def query(self, state: State, query: Message) -> Any:
        return state


def promises(promise: Promise) -> Any:
    return lambda _: promise
