"""One commit inside a transaction: first every check, then every write.

The checks raise before anything is written (see `transaction`). The writes raise nothing but engine
errors.
"""

from __future__ import annotations

from typing import NamedTuple

from kelpie.core.limits import STATE_CHUNK_BYTES
from kelpie.storage import refusals
from kelpie.storage.records import (
    EFFECT_STATES_OPEN,
    Commit,
    CommitReceipt,
    EffectRow,
    KvPut,
    ListPut,
    ReminderRow,
    ReplyRecord,
)
from kelpie.storage.sealing import seal
from kelpie.storage.sqlite.calls import complete_call
from kelpie.storage.sqlite.rows import write_audit, write_list_item
from kelpie.storage.sqlite.transaction import Transaction


class _Current(NamedTuple):
    """The actor's row before the commit."""

    incarnation: int
    version: int
    tombstoned: int
    event_sequence: int
    chunks: int
    shard: int


_NOBODY = _Current(0, 0, 0, 0, 0, -1)


def apply_commit(transaction: Transaction, commit: Commit) -> CommitReceipt:
    """Write everything ``commit`` asks for and return its receipt.

    Raises:
        FencedError: The shard's epoch has moved.
        VersionConflictError: Version or incarnation is not the expected one.
        MessageGoneError: The consumed message or reminder does not exist any more.
        ConflictError: An effect or list item belongs to another actor.
        KeyReusedError: The idempotency key has a reply already.
    """
    actor = str(commit.actor)
    transaction.require_epoch(commit.shard, commit.epoch)
    current = _require_version(transaction, commit, actor)
    _require_cause(transaction, commit, actor)
    _require_ownership(transaction, commit, actor)
    if commit.reply is not None:
        _require_new_key(transaction, commit, commit.reply, actor)

    transaction.now_ms = max(transaction.now_ms, commit.now_ms)
    _write_actor(transaction, commit, actor, current)
    _remove_cause(transaction, commit, actor)
    _write_rows(transaction, commit, actor)
    message_ids = _write_sends(transaction, commit)
    first_sequence = _write_events(transaction, commit, actor, current.event_sequence + 1)
    write_audit(transaction, commit)
    if commit.tombstone:
        _schedule_purge(transaction, commit, actor, current.event_sequence)
    return CommitReceipt(_next_version(commit), message_ids, first_sequence)


def _next_version(commit: Commit) -> int:
    return commit.expected_version + 1


# --- checks -------------------------------------------------------------------------------------


def _require_version(transaction: Transaction, commit: Commit, actor: str) -> _Current:
    row = transaction.execute(
        "SELECT incarnation, version, tombstoned, event_sequence, chunks, shard FROM actors"
        " WHERE actor = ?",
        (actor,),
    ).fetchone()
    current = _Current(*row) if row else _NOBODY
    assert row is None or current.shard == commit.shard, "a commit goes to its actor's shard"
    if row is None or current.tombstoned:
        is_expected = commit.expected_version == 0 and commit.incarnation > current.incarnation
    else:
        is_expected = (
            commit.expected_version == current.version and commit.incarnation == current.incarnation
        )
    if not is_expected:
        raise refusals.version_conflict(
            commit,
            incarnation=current.incarnation,
            version=current.version,
            is_tombstoned=bool(current.tombstoned),
        )
    return current


def _require_cause(transaction: Transaction, commit: Commit, actor: str) -> None:
    if commit.consumes is not None:
        query = "SELECT 1 FROM outbox WHERE message_id = ? AND receiver = ?"
        if transaction.execute(query, (commit.consumes, actor)).fetchone() is None:
            raise refusals.message_gone(actor, commit.consumes)
    if commit.fired is not None:
        name, due_ms = commit.fired
        found = transaction.execute(
            "SELECT 1 FROM reminders"
            " WHERE actor = ? AND incarnation = ? AND name = ? AND due_ms = ?",
            (actor, commit.incarnation, name, due_ms),
        ).fetchone()
        if found is None:
            raise refusals.reminder_gone(actor, name, due_ms)


def _require_ownership(transaction: Transaction, commit: Commit, actor: str) -> None:
    for effect in commit.effects:
        query = "SELECT actor, incarnation FROM effects WHERE tenant = ? AND effect_id = ?"
        key = (commit.actor.tenant, effect.effect_id)
        row = transaction.execute(query, key).fetchone()
        if row is not None and row != (actor, commit.incarnation):
            raise refusals.effect_owned(effect.effect_id, row[0])
    for item in commit.lists:
        # What a deleted actor owned is anybody's, although its removal may still be under way.
        row = transaction.execute(
            "SELECT l.owner FROM lists l JOIN actors a ON a.actor = l.owner"
            " AND a.incarnation = l.incarnation AND a.tombstoned = 0"
            " WHERE l.tenant = ? AND l.collection = ? AND l.item_id = ?"
            " AND l.deleted_ms IS NULL AND l.owner != ?",
            (commit.actor.tenant, item.collection, item.item_id, actor),
        ).fetchone()
        if row is not None and isinstance(item, ListPut):
            raise refusals.item_owned(item.collection, item.item_id, row[0])


def _require_new_key(
    transaction: Transaction, commit: Commit, reply: ReplyRecord, actor: str
) -> None:
    row = transaction.execute(
        "SELECT request FROM replies WHERE actor = ? AND incarnation = ? AND method = ?"
        " AND key = ? AND expires_ms > ?",
        (actor, commit.incarnation, reply.method, reply.key, commit.now_ms),
    ).fetchone()
    if row is not None:
        raise refusals.key_reused(actor, reply, kept_request=row[0])


# --- writes -------------------------------------------------------------------------------------


def _write_actor(transaction: Transaction, commit: Commit, actor: str, current: _Current) -> None:
    state = b"" if commit.tombstone else commit.state
    is_new = current.incarnation != commit.incarnation
    if is_new and state is None:
        state = b""
    if state is not None and current.chunks:
        transaction.execute("DELETE FROM state_chunks WHERE actor = ?", (actor,))
    common = (
        commit.epoch,
        commit.incarnation,
        _next_version(commit),
        current.event_sequence + len(commit.events),
        current.event_sequence if commit.tombstone else None,
        commit.now_ms,
        int(commit.tombstone),
    )
    if state is None:
        transaction.execute(
            "UPDATE actors SET epoch = ?, incarnation = ?, version = ?, event_sequence = ?,"
            " event_floor = coalesce(?, event_floor), updated_ms = ?, tombstoned = ?"
            " WHERE actor = ?",
            (*common, actor),
        )
        return
    body = seal(state)
    chunks = _write_chunks(transaction, commit, actor, state)
    inline = b"" if chunks else state
    if current is _NOBODY:
        epoch, incarnation, version, sequence, floor, now_ms, tombstoned = common
        transaction.execute(
            "INSERT INTO actors VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                *(commit.actor.tenant, actor, commit.shard, epoch, incarnation, version),
                *(commit.schema_version, sequence, floor or 0, now_ms, tombstoned),
                *(body.checksum, chunks, inline),
            ),
        )
        return
    transaction.execute(
        "UPDATE actors SET epoch = ?, incarnation = ?, version = ?, event_sequence = ?,"
        " event_floor = coalesce(?, event_floor), updated_ms = ?, tombstoned = ?,"
        " schema_version = ?, checksum = ?, chunks = ?, state = ? WHERE actor = ?",
        (*common, commit.schema_version, body.checksum, chunks, inline, actor),
    )


def _write_chunks(transaction: Transaction, commit: Commit, actor: str, state: bytes) -> int:
    """Write a large state in rows of its own and return how many, 0 for a small one."""
    if len(state) <= STATE_CHUNK_BYTES:
        return 0
    offsets = range(0, len(state), STATE_CHUNK_BYTES)
    transaction.connection.executemany(
        "INSERT INTO state_chunks VALUES (?, ?, ?, ?, ?, ?)",
        (
            (
                *(commit.actor.tenant, actor, chunk, commit.shard, commit.epoch),
                state[offset : offset + STATE_CHUNK_BYTES],
            )
            for chunk, offset in enumerate(offsets)
        ),
    )
    return len(offsets)


def _remove_cause(transaction: Transaction, commit: Commit, actor: str) -> None:
    if commit.consumes is not None:
        transaction.execute("DELETE FROM outbox WHERE message_id = ?", (commit.consumes,))
        if commit.call is not None:
            complete_call(transaction, commit.consumes, commit.call)
    if commit.fired is not None:
        key = (actor, commit.incarnation, commit.fired[0])
        transaction.execute(_DELETE_REMINDER, key)


_DELETE_REMINDER = "DELETE FROM reminders WHERE actor = ? AND incarnation = ? AND name = ?"


def _write_rows(transaction: Transaction, commit: Commit, actor: str) -> None:
    """Write everything that belongs to the actor and has no number of its own."""
    owner = (commit.actor.tenant, actor, commit.incarnation)
    fence = (commit.shard, commit.epoch)
    for write in commit.kv:
        if isinstance(write, KvPut):
            transaction.execute(
                "INSERT OR REPLACE INTO kv VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                (*owner, write.key, *fence, *seal(write.value)),
            )
        else:
            query = "DELETE FROM kv WHERE actor = ? AND incarnation = ? AND key = ?"
            transaction.execute(query, (actor, commit.incarnation, write.key))
    for effect in commit.effects:
        _write_effect(transaction, commit, actor, effect)
    for reminder in commit.reminders:
        if isinstance(reminder, ReminderRow):
            transaction.execute(
                "INSERT OR REPLACE INTO reminders VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (*owner, reminder.name, *fence, reminder.due_ms, *seal(reminder.body)),
            )
        else:
            key = (actor, commit.incarnation, reminder.name)
            transaction.execute(_DELETE_REMINDER, key)
    for item in commit.lists:
        write_list_item(transaction, commit, actor, item)
    if commit.reply is not None:
        reply = commit.reply
        transaction.replies_written += 1
        transaction.execute(
            "INSERT OR REPLACE INTO replies VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                *(*owner, reply.method, reply.key, *fence),
                *(reply.request, reply.expires_ms, *seal(reply.reply)),
            ),
        )


def _write_effect(transaction: Transaction, commit: Commit, actor: str, effect: EffectRow) -> None:
    transaction.execute(
        "INSERT OR REPLACE INTO effects VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            *(commit.actor.tenant, effect.effect_id, actor, commit.incarnation),
            *(commit.shard, commit.epoch, effect.kind, effect.state),
            *(int(effect.state in EFFECT_STATES_OPEN), effect.digest, effect.attempt),
            *(effect.session, effect.due_ms, effect.created_ms, effect.updated_ms),
            *seal(effect.body),
        ),
    )


def _write_sends(transaction: Transaction, commit: Commit) -> tuple[int, ...]:
    if not commit.sends:
        return ()
    first = transaction.take("message", len(commit.sends))
    for message_id, send in enumerate(commit.sends, start=first):
        transaction.execute(
            "INSERT INTO outbox VALUES (?, ?, ?, ?, ?, ?, 0, ?, '', ?, ?)",
            (
                *(message_id, send.receiver.tenant, commit.shard, commit.epoch),
                *(str(send.sender), str(send.receiver), send.not_before_ms, *seal(send.body)),
            ),
        )
    return tuple(range(first, first + len(commit.sends)))


def _write_events(transaction: Transaction, commit: Commit, actor: str, first: int) -> int:
    """Append the commit's events from sequence ``first`` on; return it, 0 without events."""
    if not commit.events:
        return 0
    position = transaction.take("event", len(commit.events))
    for offset, event in enumerate(commit.events):
        transaction.execute(
            "INSERT INTO events VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                *(position + offset, commit.actor.tenant, actor, first + offset),
                *(commit.shard, commit.epoch, commit.now_ms, event.kind, *seal(event.body)),
            ),
        )
    return first


def _schedule_purge(transaction: Transaction, commit: Commit, actor: str, floor: int) -> None:
    transaction.execute(
        "INSERT INTO purges (tenant, actor, incarnation, shard, epoch, event_floor, at_ms)"
        " VALUES (?, ?, ?, ?, ?, ?, ?)",
        (
            *(commit.actor.tenant, actor, commit.incarnation, commit.shard, commit.epoch),
            *(floor, commit.now_ms),
        ),
    )
