"""Rows of the file as records. Every opaque body is compared with its checksum first."""

from __future__ import annotations

from functools import lru_cache
from typing import Any, Final

from kelpie.core.ids import ActorId
from kelpie.storage.records import (
    AuditRecord,
    DeadLetter,
    EffectRow,
    ListItem,
    ReminderRow,
    StoredCall,
    StoredEvent,
    StoredMessage,
    StreamChunk,
)
from kelpie.storage.sealing import unseal

Row = tuple[Any, ...]

EFFECT_COLUMNS: Final = (
    "e.effect_id, e.actor, e.kind, e.state, e.digest, e.attempt, e.session, e.due_ms,"
    " e.created_ms, e.updated_ms, e.checksum, e.body"
)
AUDIT_COLUMNS: Final = "shard, sequence, at_ms, actor, kind, principal, body, previous, hash"

CALL_HEAD_COLUMNS: Final = (
    "c.call_id, c.actor, c.method, c.principal, c.key, c.request, c.message_id, c.state,"
    " c.created_ms, c.ended_ms, c.expires_ms"
)
CALL_COLUMNS: Final = f"{CALL_HEAD_COLUMNS}, c.checksum, c.body"

# Ids repeat from row to row, and parsing one costs more than fetching the row.
parse_actor = lru_cache(maxsize=16_384)(ActorId.parse)


def effect_row(row: Row) -> EffectRow:
    """Return the effect in ``EFFECT_COLUMNS``."""
    return EffectRow(
        effect_id=row[0],
        actor=parse_actor(row[1]),
        kind=row[2],
        state=row[3],
        digest=row[4],
        attempt=row[5],
        session=row[6],
        due_ms=row[7],
        created_ms=row[8],
        updated_ms=row[9],
        body=unseal(row[10], row[11], f"effect {row[0]} of {row[1]}"),
    )


def stored_message(row: Row) -> StoredMessage:
    """Return the message in (id, sender, receiver, attempts, not_before_ms, checksum, body)."""
    return StoredMessage(
        message_id=row[0],
        sender=parse_actor(row[1]),
        receiver=parse_actor(row[2]),
        attempts=row[3],
        not_before_ms=row[4],
        body=unseal(row[5], row[6], f"message {row[0]} to {row[2]}"),
    )


def dead_letter(row: Row) -> DeadLetter:
    """Return the letter in (id, sender, receiver, attempts, error, at_ms, checksum, body)."""
    return DeadLetter(
        message_id=row[0],
        sender=parse_actor(row[1]),
        receiver=parse_actor(row[2]),
        attempts=row[3],
        error=row[4],
        at_ms=row[5],
        body=unseal(row[6], row[7], f"dead letter {row[0]} to {row[2]}"),
    )


def stored_call(row: Row) -> StoredCall:
    """Return the call in ``CALL_COLUMNS``."""
    return call_head(row, unseal(row[11], row[12], f"call {row[0]} of {row[1]}"))


def call_head(row: Row, body: bytes = b"") -> StoredCall:
    """Return the call in ``CALL_HEAD_COLUMNS``, without its body."""
    return StoredCall(
        call_id=row[0],
        actor=parse_actor(row[1]),
        method=row[2],
        principal=row[3],
        key=row[4],
        request=row[5],
        message_id=row[6],
        state=row[7],
        created_ms=row[8],
        ended_ms=row[9],
        expires_ms=row[10],
        body=body,
    )


def reminder_row(row: Row) -> ReminderRow:
    """Return the reminder in (actor, name, due_ms, checksum, body)."""
    body = unseal(row[3], row[4], f"reminder {row[1]!r} of {row[0]}")
    return ReminderRow(actor=parse_actor(row[0]), name=row[1], due_ms=row[2], body=body)


def stored_event(row: Row) -> StoredEvent:
    """Return the event in (position, actor, sequence, at_ms, kind, checksum, body)."""
    body = unseal(row[5], row[6], f"event {row[2]} of {row[1]}")
    return StoredEvent(row[0], parse_actor(row[1]), row[2], row[3], row[4], body)


def list_item(row: Row) -> ListItem:
    """Return the item in (item_id, sort_key, owner, checksum, body)."""
    body = unseal(row[3], row[4], f"list item {row[0]!r} of {row[2]}")
    return ListItem(row[0], row[1], parse_actor(row[2]), body)


def stream_chunk(row: Row) -> StreamChunk:
    """Return the chunk in (effect_id, attempt, sequence, kind, checksum, body)."""
    body = unseal(row[4], row[5], f"stream chunk {row[2]} of effect {row[0]}")
    return StreamChunk(row[0], row[1], row[2], row[3], body)


def audit_record(row: Row) -> AuditRecord:
    """Return the record in ``AUDIT_COLUMNS``; its hash is checked by `verify_chain`, not here."""
    return AuditRecord(row[0], row[1], row[2], parse_actor(row[3]), *row[4:])
