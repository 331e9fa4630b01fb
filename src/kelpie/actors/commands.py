"""What a machine may ask for. Commands are data; the runtime turns them into one commit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Final

import msgspec

from kelpie.core.errors import InvalidFieldError
from kelpie.core.ids import ActorId
from kelpie.storage.records import EffectRow

_encode: Final = msgspec.msgpack.Encoder().encode


class Command:
    """Base of everything a machine may ask for."""

    __slots__ = ()


class Message(msgspec.Struct, frozen=True):
    """Base of every message to a machine; subclasses are tagged and belong to one union.

    ``reply_type`` is what the turn replies with, so that a kept reply decodes to the same type.
    """

    reply_type: ClassVar[Any] = None


def encode_message(message: Message) -> bytes:
    """Return a message as msgpack.

    Raises:
        InvalidFieldError: Something in it cannot be stored, as an integer beyond 64 bits.
    """
    try:
        return _encode(message)
    except (OverflowError, TypeError, UnicodeEncodeError, RecursionError) as error:
        raise InvalidFieldError("arguments", f"cannot be kept: {error}") from error


def tag_of(message: Message) -> str:
    """Return the name under which a message is stored; for a class's method, that method's.

    A function, because a handler's parameters are fields of its message and may have any name.
    """
    tag = type(message).__struct_config__.tag
    assert isinstance(tag, str), "messages are tagged with strings"
    return tag


@dataclass(frozen=True, slots=True, kw_only=True)
class Send(Command):
    """Send ``message`` to another actor, exactly once, through the transactional outbox."""

    receiver: ActorId
    message: Message


@dataclass(frozen=True, slots=True, kw_only=True)
class Remind(Command):
    """Deliver ``message`` to this actor at ``at_ms``; replaces an earlier one of that name."""

    name: str
    at_ms: int
    message: Message


@dataclass(frozen=True, slots=True, kw_only=True)
class Forget(Command):
    """Cancel a reminder; harmless when there is none."""

    name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Emit(Command):
    """Append a row to the actor's event log: ``kind`` is a stable dotted name."""

    kind: str
    body: Any


class Reply(Command, msgspec.Struct, frozen=True, kw_only=True):
    """Answer the caller once the commit is durable; at most one per turn."""

    value: Any


@dataclass(frozen=True, slots=True, kw_only=True)
class PutKv(Command):
    """Set a key of the actor's ordered map; ``value`` is msgspec-encodable."""

    key: str
    value: Any


@dataclass(frozen=True, slots=True, kw_only=True)
class DeleteKv(Command):
    """Remove a key of the actor's ordered map."""

    key: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PutListItem(Command):
    """Write a projection row owned by this actor."""

    collection: str
    item_id: str
    sort_key: str
    body: Any


@dataclass(frozen=True, slots=True, kw_only=True)
class DeleteListItem(Command):
    """Remove a projection row owned by this actor."""

    collection: str
    item_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Audit(Command):
    """Append a record to the audit chain of the actor's shard."""

    kind: str
    body: Any


@dataclass(frozen=True, slots=True, kw_only=True)
class WriteEffect(Command):
    """Write one effect row. Only the gate (`kelpie.effects`) emits this."""

    row: EffectRow


@dataclass(frozen=True, slots=True, kw_only=True)
class Delete(Command):
    """Delete this actor: its rows go when the commit is durable."""
