"""From a decision to a commit: pure encoding and bounds, no store, no clock."""

from __future__ import annotations

from typing import Any, NamedTuple

import msgspec

from kelpie.actors import commands as c
from kelpie.actors.activation import Activation, Envelope
from kelpie.core import limits
from kelpie.core.errors import LimitExceededError
from kelpie.core.ids import ActorId
from kelpie.storage.records import (
    AuditAppend,
    CallEnd,
    Commit,
    EffectRow,
    EventAppend,
    KvDelete,
    KvPut,
    ListDelete,
    ListPut,
    OutboxRow,
    ReminderDelete,
    ReminderRow,
    ReplyRecord,
)

_encode = msgspec.msgpack.Encoder().encode


class Drafted(NamedTuple):
    """A commit ready to submit, and the value its caller gets once it is durable."""

    commit: Commit
    reply: Any


def encode_bounded(field: str, value: Any, limit: int) -> bytes:
    """Return ``value`` as msgpack.

    Raises:
        LimitExceededError: The encoding is longer than ``limit`` bytes.
    """
    data = _encode(value)
    if len(data) > limit:
        raise LimitExceededError(field, actual=len(data), limit=limit, unit="bytes")
    return data


class _Draft(msgspec.Struct):
    """Collects the rows of one commit, command by command. A struct: every commit makes one."""

    actor: ActorId
    principal: str
    kv: list[KvPut | KvDelete] = []
    effects: list[EffectRow] = []
    sends: list[OutboxRow] = []
    reminders: list[ReminderRow | ReminderDelete] = []
    events: list[EventAppend] = []
    lists: list[ListPut | ListDelete] = []
    audit: list[AuditAppend] = []
    reply: Any = None
    tombstone: bool = False

    def add(self, command: c.Command) -> None:
        """Turn one command into rows."""
        match command:
            case c.Emit(kind=kind, body=body):
                data = encode_bounded(f"event {kind}", body, limits.EVENT_BYTES_MAX)
                self.events.append(EventAppend(kind, data))
            case c.Reply(value=value):
                self.reply = value
            case c.Send(receiver=receiver, message=message):
                data = encode_bounded("message", message, limits.MESSAGE_BYTES_MAX)
                self.sends.append(OutboxRow(sender=self.actor, receiver=receiver, body=data))
            case c.WriteEffect(row=row):
                assert row.actor == self.actor, "an effect is written by its own actor alone"
                self.effects.append(row)
            case c.Audit(kind=kind, body=body):
                data = encode_bounded(f"audit {kind}", body, limits.EVENT_BYTES_MAX)
                self.audit.append(AuditAppend(kind, self.principal, data))
            case c.Delete():
                self.tombstone = True
            case _:
                self._add_row(command)

    def _add_row(self, command: c.Command) -> None:
        match command:
            case c.PutKv(key=key, value=value):
                self.kv.append(KvPut(key, encode_bounded(key, value, limits.KV_VALUE_BYTES_MAX)))
            case c.DeleteKv(key=key):
                self.kv.append(KvDelete(key))
            case c.Remind(name=name, at_ms=at_ms, message=message):
                data = encode_bounded("reminder", message, limits.MESSAGE_BYTES_MAX)
                row = ReminderRow(actor=self.actor, name=name, due_ms=at_ms, body=data)
                self.reminders.append(row)
            case c.Forget(name=name):
                self.reminders.append(ReminderDelete(name))
            case c.PutListItem(collection=collection, item_id=item_id, sort_key=sort, body=body):
                data = encode_bounded(collection, body, limits.KV_VALUE_BYTES_MAX)
                self.lists.append(ListPut(collection, item_id, sort, data))
            case c.DeleteListItem(collection=collection, item_id=item_id):
                self.lists.append(ListDelete(collection, item_id))
            case _:
                raise AssertionError(f"{type(command).__name__} must pass through the gate")


def draft_commit(
    activation: Activation,
    envelope: Envelope,
    decided: tuple[Any, tuple[c.Command, ...]],
    *,
    epoch: int,
    now_ms: int,
) -> Drafted:
    """Return the commit of one turn on ``activation``.

    Raises:
        LimitExceededError: A row or the state is larger than its limit.
    """
    state, commands = decided
    draft = _Draft(activation.actor, envelope.principal)
    for command in commands:
        draft.add(command)
    encoded: bytes | None = None
    if state is not activation.state or activation.version == 0:
        encoded = activation.hosted.machine.dump(state)
        if len(encoded) > limits.ACTOR_STATE_BYTES_MAX:
            raise LimitExceededError(
                "actor.state",
                actual=len(encoded),
                limit=limits.ACTOR_STATE_BYTES_MAX,
                unit="bytes",
                hint="keep large values in the ordered map",
            )
    commit = Commit(
        actor=activation.actor,
        shard=activation.shard,
        epoch=epoch,
        incarnation=activation.incarnation,
        expected_version=activation.version,
        schema_version=activation.hosted.machine.schema_version,
        now_ms=now_ms,
        state=encoded,
        kv=tuple(draft.kv),
        effects=tuple(draft.effects),
        sends=tuple(draft.sends),
        consumes=envelope.message_id,
        fired=envelope.fired,
        reminders=tuple(draft.reminders),
        events=tuple(draft.events),
        lists=tuple(draft.lists),
        audit=tuple(draft.audit),
        reply=_reply_record(envelope, draft.reply, now_ms),
        call=complete_call(draft.reply, now_ms) if envelope.is_call else None,
        tombstone=draft.tombstone,
    )
    return Drafted(commit, draft.reply)


def complete_call(result: Any, now_ms: int) -> CallEnd:
    """Return the end of a submitted call that came to ``result``.

    Raises:
        LimitExceededError: The result is larger than its limit.
    """
    data = encode_bounded("result", result, limits.MESSAGE_BYTES_MAX)
    return CallEnd("completed", data, now_ms, now_ms + limits.CALL_TTL_MS)


def _reply_record(envelope: Envelope, value: Any, now_ms: int) -> ReplyRecord | None:
    if envelope.key is None:
        return None
    assert envelope.request is not None, "a key comes with its request's digest"
    data = encode_bounded("reply", value, limits.MESSAGE_BYTES_MAX)
    method = type(envelope.message).__struct_config__.tag
    assert isinstance(method, str), "messages are tagged with strings"
    return ReplyRecord(
        method, envelope.key, envelope.request, data, now_ms + limits.IDEMPOTENCY_TTL_MS
    )
