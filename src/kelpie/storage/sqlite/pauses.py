"""Writes of pauses: a person's wish that an actor rest, with its link in the audit chain.

Each function is a member of a transaction; checks come before writes.
"""

from __future__ import annotations

import msgspec

from kelpie.core.limits import PAUSED_ACTORS_MAX
from kelpie.storage import refusals
from kelpie.storage.records import AuditAppend, StoredPause
from kelpie.storage.sqlite.rows import link_audit
from kelpie.storage.sqlite.transaction import Transaction


def pause_actor(transaction: Transaction, pause: StoredPause, epoch: int) -> bool:
    """Note a pause and its audit record; return whether the actor was not paused before.

    Raises:
        FencedError: The shard's epoch has moved.
        OverloadedError: Too many actors are paused.
    """
    actor = pause.actor
    transaction.require_epoch(actor.shard, epoch)
    query = "SELECT 1 FROM pauses WHERE actor = ?"
    if transaction.execute(query, (str(actor),)).fetchone() is not None:
        return False
    (count,) = transaction.execute("SELECT count(*) FROM pauses").fetchone()
    if count >= PAUSED_ACTORS_MAX:
        raise refusals.too_many_pauses()
    assert pause.at_ms > 0, "a pause begins at some time"
    written = transaction.execute(
        "INSERT INTO pauses VALUES (?, ?, ?, ?, ?, ?)",
        (str(actor), actor.tenant, actor.shard, epoch, pause.principal, pause.at_ms),
    ).rowcount
    assert written == 1, "a pause has one row"
    _link(transaction, "actor.paused", pause, epoch)
    return True


def resume_actor(transaction: Transaction, pause: StoredPause, epoch: int) -> bool:
    """Note the end of a pause and its audit record; return whether there was one.

    Raises:
        FencedError: The shard's epoch has moved.
    """
    transaction.require_epoch(pause.actor.shard, epoch)
    assert pause.at_ms > 0, "a pause ends at some time"
    query = "DELETE FROM pauses WHERE actor = ?"
    removed = transaction.execute(query, (str(pause.actor),)).rowcount
    assert removed <= 1, "a pause has one row"
    if removed:
        _link(transaction, "actor.resumed", pause, epoch)
    return bool(removed)


def _link(transaction: Transaction, kind: str, pause: StoredPause, epoch: int) -> None:
    body = msgspec.msgpack.encode({})
    append = AuditAppend(kind, pause.principal, body)
    link_audit(transaction, pause.actor, append, epoch=epoch, at_ms=pause.at_ms)
