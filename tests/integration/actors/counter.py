"""A small machine for tests of the runtime: counts, passes on, sets timers, breaks on demand."""

from __future__ import annotations

from typing import Any, ClassVar

import msgspec

from kelpie.actors.commands import (
    Command,
    Delete,
    Emit,
    Message,
    PutKv,
    PutListItem,
    Remind,
    Reply,
    Send,
)
from kelpie.actors.machine import Decision, Turn
from kelpie.core.errors import ConflictError, InvalidFieldError
from kelpie.core.ids import ActorId, Tenant
from kelpie.storage.records import StoredActor


class CounterState(msgspec.Struct, frozen=True):
    total: int = 0
    seen: tuple[str, ...] = ()


class Add(Message, frozen=True, tag="counter.add"):
    reply_type: ClassVar[Any] = int
    amount: int
    label: str = ""


class PassOn(Message, frozen=True, tag="counter.pass"):
    """Send ``labels`` to another counter, one message each."""

    receiver: str
    labels: tuple[str, ...]


class Later(Message, frozen=True, tag="counter.later"):
    at_ms: int
    label: str


class Break(Message, frozen=True, tag="counter.break"):
    refuse: bool = True


class Forward(Message, frozen=True, tag="counter.forward"):
    """Send a message that its receiver refuses."""

    receiver: str


class Remove(Message, frozen=True, tag="counter.remove"):
    pass


class Show(Message, frozen=True, tag="counter.show"):
    pass


def counter(key: str) -> ActorId:
    return ActorId(Tenant("default"), "counter", key)


class CounterMachine:
    type_name = "counter"
    schema_version = 1
    message_type = Add | PassOn | Later | Break | Forward | Remove | Show

    def create(self, actor: ActorId) -> CounterState:
        return CounterState()

    def load(self, stored: StoredActor) -> CounterState:
        return msgspec.msgpack.decode(stored.state, type=CounterState)

    def dump(self, state: CounterState) -> bytes:
        return msgspec.msgpack.encode(state)

    def query(self, state: CounterState, query: Message) -> CounterState:
        if not isinstance(query, Show):
            raise InvalidFieldError("query", "must be Show")
        return state

    def decide(self, state: CounterState, message: Message, turn: Turn) -> Decision[CounterState]:
        commands: tuple[Command, ...]
        match message:
            case Add(amount=amount, label=label):
                seen = (*state.seen, label) if label else state.seen
                state = CounterState(state.total + amount, seen)
                commands = (
                    Reply(value=state.total),
                    Emit(kind="counter.added", body={"amount": amount}),
                    PutKv(key=f"total/{state.total:06d}", value=turn.new_uuid()),
                    PutListItem(
                        collection="counters", item_id=turn.actor.key, sort_key="0", body=state
                    ),
                )
            case PassOn(receiver=receiver, labels=labels):
                commands = tuple(
                    Send(receiver=counter(receiver), message=Add(1, label)) for label in labels
                )
            case Later(at_ms=at_ms, label=label):
                commands = (Remind(name=label, at_ms=at_ms, message=Add(1, label)),)
            case Break(refuse=True):
                raise ConflictError("refused")
            case Break():
                raise ZeroDivisionError("a bug")
            case Forward(receiver=receiver):
                commands = (Send(receiver=counter(receiver), message=Break()),)
            case Remove():
                commands = (Delete(), Reply(value="removed"))
            case _:
                raise AssertionError(message)
        return Decision(state=state, commands=commands)
