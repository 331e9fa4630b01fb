"""Writes beside a commit's own: list items, audit links, streams, failed deliveries, housekeeping.

Each function is a member of a transaction or a part of one; checks come before writes.
"""

# ruff: noqa: S608  # the texts joined into SQL are constants of this package; values are bound

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from kelpie.core.errors import NotFoundError
from kelpie.core.ids import ActorId, Tenant
from kelpie.core.limits import COMPACT_SLICE_PAGES, LIST_CURSOR_TTL_MS, PURGE_SLICE_ROWS
from kelpie.storage import refusals
from kelpie.storage.audit import AuditHead, link_record
from kelpie.storage.records import (
    AuditAppend,
    Commit,
    ListDelete,
    ListPut,
    ReminderRow,
    StreamChunk,
)
from kelpie.storage.sealing import seal
from kelpie.storage.sqlite.calls import expire_calls, revive_call
from kelpie.storage.sqlite.transaction import Transaction

# Each names the rows of one deleted incarnation; a slice of them goes at a time.
_PURGED_TABLES: Final = ("kv", "effects", "reminders", "replies", "streams")


def write_list_item(
    transaction: Transaction, commit: Commit, actor: str, item: ListPut | ListDelete
) -> None:
    """Write or remove one projection row that ``actor`` owns.

    A removed row keeps its place for the life of a cursor.
    """
    if isinstance(item, ListDelete):
        transaction.list_deletions += 1
        removed = transaction.execute(
            "UPDATE lists SET deleted_ms = ?, checksum = 0, body = x''"
            " WHERE tenant = ? AND collection = ? AND item_id = ? AND owner = ?"
            " AND deleted_ms IS NULL",
            (commit.now_ms, commit.actor.tenant, item.collection, item.item_id, actor),
        ).rowcount
        assert removed <= 1, "an item has one row"
        return
    assert commit.expected_version >= 0, "versions count from one"
    assert commit.incarnation >= 1, "only a living actor writes items"
    transaction.execute(
        "INSERT OR REPLACE INTO lists VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, NULL, ?, ?)",
        (
            *(commit.actor.tenant, item.collection, item.item_id, item.sort_key, actor),
            *(commit.incarnation, commit.expected_version + 1, commit.shard, commit.epoch),
            *seal(item.body),
        ),
    )


def write_audit(transaction: Transaction, commit: Commit) -> None:
    """Link the commit's audit records into its shard's chain."""
    for append in commit.audit:
        link_audit(transaction, commit.actor, append, epoch=commit.epoch, at_ms=commit.now_ms)


def link_audit(
    transaction: Transaction, actor: ActorId, append: AuditAppend, *, epoch: int, at_ms: int
) -> None:
    """Link one record into the chain of the actor's shard."""
    head = transaction.audit_head(actor.shard)
    record = link_record(
        head,
        at_ms=at_ms,
        actor=actor,
        kind=append.kind,
        principal=append.principal,
        body=append.body,
    )
    assert record.shard == actor.shard, "a record lies in its actor's chain"
    assert record.previous == head.hash, "a record names the one before it"
    transaction.execute(
        "INSERT INTO audit VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            *(record.shard, record.sequence, actor.tenant, epoch),
            *(record.at_ms, str(record.actor), record.kind, record.principal),
            *(record.body, record.previous, record.hash),
        ),
    )
    transaction.advance_audit(AuditHead(record.shard, record.sequence, record.hash))


def append_stream(
    transaction: Transaction, actor: ActorId, epoch: int, chunks: Sequence[StreamChunk]
) -> None:
    """Append stream chunks of a living actor.

    Raises:
        FencedError: The shard's epoch has moved.
        NotFoundError: The actor does not exist.
        ConflictError: A chunk does not come after those of its attempt.
    """
    name = str(actor)
    transaction.require_epoch(actor.shard, epoch)
    query = "SELECT incarnation FROM actors WHERE actor = ? AND tombstoned = 0"
    row = transaction.execute(query, (name,)).fetchone()
    if row is None:
        raise NotFoundError("actor", name)
    newest: dict[tuple[str, int], int] = {}
    for chunk in chunks:
        attempt = (chunk.effect_id, chunk.attempt)
        if attempt not in newest:
            (newest[attempt],) = transaction.execute(
                "SELECT coalesce(max(sequence), 0) FROM streams"
                " WHERE actor = ? AND incarnation = ? AND effect_id = ? AND attempt = ?",
                (name, row[0], *attempt),
            ).fetchone()
        if chunk.sequence <= newest[attempt]:
            raise refusals.chunk_behind(chunk, newest[attempt])
        newest[attempt] = chunk.sequence
    written = transaction.connection.executemany(
        "INSERT INTO streams VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            (
                *(actor.tenant, name, chunk.effect_id, chunk.attempt, chunk.sequence, row[0]),
                *(actor.shard, epoch, chunk.kind, *seal(chunk.body)),
            )
            for chunk in chunks
        ),
    ).rowcount
    assert written == len(chunks), "every chunk has a row"


def fail_message(
    transaction: Transaction, message_id: int, error: str, retry_at_ms: int | None, now_ms: int
) -> None:
    """Count a failed delivery; harmless when the message was consumed meanwhile."""
    if retry_at_ms is not None:
        transaction.execute(
            "UPDATE outbox SET attempts = attempts + 1, not_before_ms = ?, error = ?"
            " WHERE message_id = ?",
            (retry_at_ms, error, message_id),
        )
        return
    buried = transaction.execute(
        "INSERT INTO dead_letters SELECT message_id, tenant, shard, epoch, sender, receiver,"
        " attempts + 1, ?, ?, checksum, body FROM outbox WHERE message_id = ?",
        (error, now_ms, message_id),
    ).rowcount
    query = "DELETE FROM outbox WHERE message_id = ?"
    removed = transaction.execute(query, (message_id,)).rowcount
    assert removed == buried, "a message is either waiting or a dead letter"
    assert removed <= 1, "a message has one row"


def bury_reminder(
    transaction: Transaction, reminder: ReminderRow, attempts: int, error: str, now_ms: int
) -> None:
    """Make a reminder a dead letter to its own actor; harmless when it is gone or was moved."""
    assert attempts >= 1, "a dead letter was tried"
    actor = str(reminder.actor)
    living = transaction.execute(
        "SELECT r.incarnation FROM reminders r JOIN actors a ON a.actor = r.actor"
        " AND a.incarnation = r.incarnation WHERE r.actor = ? AND r.name = ? AND r.due_ms = ?",
        (actor, reminder.name, reminder.due_ms),
    ).fetchone()
    if living is None:
        return
    key = (actor, living[0], reminder.name)
    buried = transaction.execute(
        "INSERT INTO dead_letters SELECT ?, tenant, shard, epoch, actor, actor, ?, ?, ?, checksum,"
        " body FROM reminders WHERE actor = ? AND incarnation = ? AND name = ?",
        (transaction.take("message", 1), attempts, error, now_ms, *key),
    ).rowcount
    query = "DELETE FROM reminders WHERE actor = ? AND incarnation = ? AND name = ?"
    removed = transaction.execute(query, key).rowcount
    assert buried == removed == 1, "a reminder either waits or is a dead letter"


def revive_message(transaction: Transaction, tenant: Tenant, message_id: int) -> int:
    """Move a dead letter back into the outbox under a new id, with no attempts; return that id."""
    found = transaction.execute(
        "SELECT 1 FROM dead_letters WHERE tenant = ? AND message_id = ?", (tenant, message_id)
    ).fetchone()
    if found is None:
        raise NotFoundError("dead letter", str(message_id))
    revived_id = transaction.take("message", 1)
    revived = transaction.execute(
        "INSERT INTO outbox SELECT ?, tenant, shard, epoch, sender, receiver, 0, 0, '',"
        " checksum, body FROM dead_letters WHERE message_id = ?",
        (revived_id, message_id),
    ).rowcount
    query = "DELETE FROM dead_letters WHERE message_id = ?"
    removed = transaction.execute(query, (message_id,)).rowcount
    assert revived == removed == 1, "a message is either waiting or a dead letter"
    assert revived_id > message_id, "ids grow"
    revive_call(transaction, message_id, revived_id)
    return revived_id


def compact_slice(transaction: Transaction) -> int:
    """Give up to ``COMPACT_SLICE_PAGES`` free pages back; return how many are left.

    The last pages of the file move into the gaps; the file shrinks with the next checkpoint.
    """
    query = "PRAGMA freelist_count"
    (before,) = transaction.execute(query).fetchone()
    for _ in range(min(before, COMPACT_SLICE_PAGES)):
        # One at a time, because the driver runs a statement without rows for a single step.
        transaction.execute("PRAGMA incremental_vacuum(1)")
    (left,) = transaction.execute(query).fetchone()
    assert left <= before, "compacting never makes gaps"
    return int(left)


def release_store(transaction: Transaction) -> None:
    """End the held state."""
    marks = transaction.execute("DELETE FROM meta WHERE name = 'held'").rowcount
    assert marks <= 1, "a store is held once"


def keep_house(transaction: Transaction) -> bool:
    """Remove a bounded number of rows nobody can see any more; return whether deletions wait.

    Replies and removed list items go two for each new one, so that neither can pile up.
    """
    if transaction.replies_written:
        assert transaction.now_ms > 0, "a reply was written at some time"
        transaction.execute(
            "DELETE FROM replies WHERE rowid IN"
            " (SELECT rowid FROM replies WHERE expires_ms <= ? ORDER BY expires_ms LIMIT ?)",
            (transaction.now_ms, 2 * transaction.replies_written),
        )
    if transaction.calls_written:
        expire_calls(transaction)
    if transaction.list_deletions:
        assert transaction.now_ms > 0, "an item was removed at some time"
        transaction.execute(
            "DELETE FROM lists WHERE rowid IN"
            " (SELECT rowid FROM lists WHERE deleted_ms IS NOT NULL AND deleted_ms <= ?"
            "  ORDER BY deleted_ms LIMIT ?)",
            (transaction.now_ms - LIST_CURSOR_TTL_MS, 2 * transaction.list_deletions),
        )
    return _purge_slice(transaction)


def _purge_slice(transaction: Transaction) -> bool:
    """Remove up to ``PURGE_SLICE_ROWS`` rows of the oldest deleted actor still being removed."""
    query = "SELECT purge, actor, incarnation, event_floor, at_ms FROM purges ORDER BY purge"
    row = transaction.execute(f"{query} LIMIT 1").fetchone()
    if row is None:
        return False
    purge, actor, incarnation, floor, at_ms = row
    left = PURGE_SLICE_ROWS
    for table in _PURGED_TABLES:
        left -= transaction.execute(
            f"DELETE FROM {table} WHERE rowid IN"
            f" (SELECT rowid FROM {table} WHERE actor = ? AND incarnation = ? LIMIT ?)",
            (actor, incarnation, left),
        ).rowcount
    left -= transaction.execute(
        "DELETE FROM events WHERE position IN"
        " (SELECT position FROM events WHERE actor = ? AND sequence <= ? LIMIT ?)",
        (actor, floor, left),
    ).rowcount
    left -= transaction.execute(
        "UPDATE lists SET deleted_ms = ?, checksum = 0, body = x'' WHERE rowid IN"
        " (SELECT rowid FROM lists WHERE owner = ? AND incarnation = ? AND deleted_ms IS NULL"
        "  LIMIT ?)",
        (at_ms, actor, incarnation, left),
    ).rowcount
    assert 0 <= left <= PURGE_SLICE_ROWS, "a slice is bounded"
    if left:
        transaction.execute("DELETE FROM purges WHERE purge = ?", (purge,))
    query = "SELECT 1 FROM purges LIMIT 1"
    return transaction.execute(query).fetchone() is not None
