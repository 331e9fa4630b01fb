"""Writes of submitted calls: each is a message in the outbox and a row that keeps how it ended.

Each function is a member of a transaction or a part of one; checks come before writes.

Invariants: a pending call has a message in the outbox, and no other call has; a call ends once.
"""

# ruff: noqa: S608  # the texts joined into SQL are constants of this package; values are bound

from __future__ import annotations

from typing import Final

from kelpie.core.ids import Tenant
from kelpie.core.limits import CALLS_KEPT_MAX
from kelpie.storage import refusals
from kelpie.storage.decode import CALL_COLUMNS, Row, stored_call
from kelpie.storage.records import CallEnd, StoredCall, Submission
from kelpie.storage.sealing import seal
from kelpie.storage.sqlite.transaction import Transaction

COMPLETE_CALL: Final = (
    "UPDATE calls SET state = ?, ended_ms = ?, expires_ms = ?, checksum = ?, body = ?"
    " WHERE message_id = ? AND state = 'pending'"
)


def submit_call(transaction: Transaction, submission: Submission, epoch: int) -> StoredCall:
    """Keep a call and its message, or return the call that its key stands for.

    Raises:
        FencedError: The shard's epoch has moved.
        KeyReusedError: The key came before with another request.
        OverloadedError: The tenant has too many calls that have not ended.
    """
    call = submission
    transaction.require_epoch(call.actor.shard, epoch)
    known = _find_by_key(transaction, call) if call.key else None
    if known is not None and not 0 < known.expires_ms <= call.now_ms:
        if known.request == call.request:
            return known
        raise refusals.call_key_reused(call)
    crowded = _find_crowded(transaction, call.actor.tenant)
    for call_id in {known.call_id if known else "", crowded} - {""}:
        _forget(transaction, call.actor.tenant, call_id)
    message_id = transaction.take("message", 1)
    fence = (call.actor.shard, epoch)
    transaction.execute(
        "INSERT INTO outbox VALUES (?, ?, ?, ?, ?, ?, 0, 0, '', ?, ?)",
        (
            *(message_id, call.actor.tenant, *fence),
            *(str(call.sender), str(call.actor), *seal(call.body)),
        ),
    )
    row: Row = (
        *(call.actor.tenant, call.call_id, str(call.actor), call.method, call.principal),
        *(call.key, call.request, message_id, *fence, "pending", call.now_ms, 0, 0, *seal(b"")),
    )
    transaction.execute(
        "INSERT INTO calls VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", row
    )
    _count(transaction, call.actor.tenant, 1)
    transaction.calls_written += 1  # one goes for each that comes, so that they cannot pile up
    transaction.now_ms = max(transaction.now_ms, call.now_ms)
    return StoredCall(
        call_id=call.call_id,
        actor=call.actor,
        method=call.method,
        principal=call.principal,
        key=call.key,
        request=call.request,
        message_id=message_id,
        state="pending",
        created_ms=call.now_ms,
        ended_ms=0,
        expires_ms=0,
        body=b"",
    )


def _find_by_key(transaction: Transaction, call: Submission) -> StoredCall | None:
    query = f"SELECT {CALL_COLUMNS} FROM calls c WHERE actor = ? AND method = ? AND key = ?"
    row = transaction.execute(query, (str(call.actor), call.method, call.key)).fetchone()
    return None if row is None else stored_call(row)


def _find_crowded(transaction: Transaction, tenant: Tenant) -> str:
    """Return the ended call that has to go for another; empty while there is room."""
    query = "SELECT kept FROM call_counts WHERE tenant = ?"
    row = transaction.execute(query, (tenant,)).fetchone()
    if row is None or row[0] < CALLS_KEPT_MAX:
        return ""
    oldest = transaction.execute(
        "SELECT call_id FROM calls WHERE tenant = ? AND expires_ms > 0 ORDER BY expires_ms LIMIT 1",
        (tenant,),
    ).fetchone()
    if oldest is None:
        raise refusals.too_many_calls()
    return str(oldest[0])


def _forget(transaction: Transaction, tenant: Tenant, call_id: str) -> None:
    removed = transaction.execute(
        "DELETE FROM calls WHERE tenant = ? AND call_id = ? AND expires_ms > 0", (tenant, call_id)
    ).rowcount
    assert removed == 1, "only a call that ended is forgotten"
    _count(transaction, tenant, -1)


def _count(transaction: Transaction, tenant: str, change: int) -> None:
    transaction.execute(
        "INSERT INTO call_counts VALUES (?, ?)"
        " ON CONFLICT (tenant) DO UPDATE SET kept = kept + excluded.kept",
        (tenant, change),
    )


def complete_call(transaction: Transaction, message_id: int, end: CallEnd) -> None:
    """End the call of a message that its turn consumes; a call that was forgotten has no row."""
    assert end.expires_ms > end.at_ms, "an end is kept for some time"
    ended = transaction.execute(COMPLETE_CALL, end_values(message_id, end)).rowcount
    assert ended <= 1, "a message is one call's"
    transaction.calls_written += ended


def end_values(message_id: int, end: CallEnd) -> Row:
    """Return what ``COMPLETE_CALL`` binds."""
    return (end.state, end.at_ms, end.expires_ms, *seal(end.body), message_id)


def end_call(transaction: Transaction, message_id: int, end: CallEnd, error: str) -> bool:
    """End the call of a waiting message without a turn; return whether it was pending.

    The message goes; that of a ``dead`` call becomes a dead letter with ``error``.
    """
    assert end.state not in {"pending", "completed"}, "a call completes with its turn"
    assert end.expires_ms > end.at_ms, "an end is kept for some time"
    if end.state == "dead":
        buried = transaction.execute(
            "INSERT INTO dead_letters SELECT message_id, tenant, shard, epoch, sender, receiver,"
            " attempts + 1, ?, ?, checksum, body FROM outbox WHERE message_id = ?",
            (error, end.at_ms, message_id),
        ).rowcount
        assert buried <= 1, "a message has one row"
    query = "DELETE FROM outbox WHERE message_id = ?"
    was_waiting = bool(transaction.execute(query, (message_id,)).rowcount)
    if was_waiting:
        complete_call(transaction, message_id, end)
        transaction.now_ms = max(transaction.now_ms, end.at_ms)
    return was_waiting


def revive_call(transaction: Transaction, message_id: int, revived_id: int) -> None:
    """Let a dead call wait again, now under the message ``revived_id``."""
    assert revived_id > message_id, "ids grow"
    revived = transaction.execute(
        "UPDATE calls SET message_id = ?, state = 'pending', ended_ms = 0, expires_ms = 0,"
        " checksum = ?, body = ? WHERE message_id = ? AND state = 'dead'",
        (revived_id, *seal(b""), message_id),
    ).rowcount
    assert revived <= 1, "a message is one call's"


def expire_calls(transaction: Transaction) -> None:
    """Remove expired calls, two for each that came or ended, so that they cannot pile up."""
    assert transaction.now_ms > 0, "a call came or ended at some time"
    gone = transaction.execute(
        "DELETE FROM calls WHERE rowid IN (SELECT c.rowid FROM call_counts n CROSS JOIN calls c"
        " ON c.tenant = n.tenant AND c.expires_ms > 0 AND c.expires_ms <= ? LIMIT ?)"
        " RETURNING tenant",
        (transaction.now_ms, 2 * transaction.calls_written),
    ).fetchall()
    assert len(gone) <= 2 * transaction.calls_written, "a slice is bounded"
    for (tenant,) in gone:
        _count(transaction, tenant, -1)
