"""The write of an import: a whole actor in one transaction, paused, as a new incarnation.

A member of a transaction; checks come before writes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import msgspec

from kelpie.core.errors import ConflictError
from kelpie.storage.moving import HELD_BY, Arrival
from kelpie.storage.records import AuditAppend
from kelpie.storage.sqlite.rows import link_audit
from kelpie.storage.sqlite.tables import write_rows
from kelpie.storage.sqlite.transaction import Transaction
from kelpie.storage.tables import (
    ACTOR_TABLES,
    ACTORS,
    CALLS,
    EFFECTS,
    EVENTS,
    LISTS,
    OUTBOX,
    Row,
    Table,
)

_LEFTOVERS: Final = ("kv", "effects", "reminders", "events", "streams", "replies", "purges")
"""Tables with rows of the actor's earlier, deleted life here, which the new one must not meet."""


def import_actor(transaction: Transaction, arrival: Arrival, epoch: int) -> int:
    """Write a whole actor, paused, under the next incarnation of its id, which is returned.

    Raises:
        FencedError: The shard's epoch has moved.
        ConflictError: It lives here, or the package arrived before; or what it owns belongs to
            another actor.
    """
    actor = arrival.actor
    name = str(actor)
    transaction.require_epoch(actor.shard, epoch)
    before = _require_absent(transaction, arrival)
    _require_free(transaction, arrival)
    given = arrival.row[ACTORS.place("incarnation")]
    assert isinstance(given, int), "the row was checked"
    incarnation = max(before, given) + 1
    for left in _LEFTOVERS:
        transaction.execute(f"DELETE FROM {left} WHERE actor = ?", (name,))  # noqa: S608
    transaction.execute("DELETE FROM lists WHERE owner = ?", (name,))
    transaction.execute("DELETE FROM seals WHERE actor = ?", (name,))
    transaction.execute("DELETE FROM actors WHERE actor = ?", (name,))
    fence: dict[str, int] = {"shard": actor.shard, "epoch": epoch, "incarnation": incarnation}
    write_rows(transaction.connection, ACTORS, [_with(ACTORS, arrival.row, fence)])
    message_ids = _write_messages(transaction, arrival, fence)
    for table in ACTOR_TABLES:
        rows: Sequence[Row] = arrival.rows.get(table.name, ())
        if table is OUTBOX or not rows:
            continue
        if table is EVENTS:
            first = transaction.take("event", len(rows))
            rows = [_with(table, row, {"position": first + n}) for n, row in enumerate(rows)]
        if table is CALLS:
            rows = [_recalled(transaction, row, message_ids) for row in rows]
        write_rows(transaction.connection, table, [_with(table, row, fence) for row in rows])
    _note(transaction, arrival, epoch)
    assert transaction.connection.in_transaction, "all of it, or nothing"
    return incarnation


def _require_absent(transaction: Transaction, arrival: Arrival) -> int:
    """Return the newest incarnation that lived here, 0 if none did."""
    name = str(arrival.actor)
    query = "SELECT at_ms FROM arrivals WHERE package = ?"
    if transaction.execute(query, (arrival.package,)).fetchone() is not None:
        message = f"package {arrival.package} was imported here before; a package arrives once"
        raise ConflictError(message, package=arrival.package)
    query = "SELECT incarnation, tombstoned FROM actors WHERE actor = ?"
    row = transaction.execute(query, (name,)).fetchone()
    if row is None:
        return 0
    if not row[1]:
        message = f"{name} is in this store; delete it, or confirm its export, before it arrives"
        raise ConflictError(message, actor=name)
    return int(row[0])


def _require_free(transaction: Transaction, arrival: Arrival) -> None:
    """Return if nothing that the actor brings has a name that is taken here.

    Raises:
        ConflictError: Something has.
    """
    name = str(arrival.actor)
    for table, owner in ((EFFECTS, "actor"), (LISTS, "owner"), (CALLS, "actor")):
        condition = " AND ".join(f"{column} = ?" for column in table.key)
        free = " AND deleted_ms IS NULL" if table is LISTS else ""
        query = f"SELECT {owner} FROM {table.name} WHERE {condition}{free}"  # noqa: S608
        for row in arrival.rows.get(table.name, ()):
            found = transaction.execute(query, table.key_of(row)).fetchone()
            if found is not None and (found[0] != name or table is CALLS):
                what = row[table.place(table.key[-1])]
                message = f"{table.name} {what!r} belongs to {found[0]} in this store"
                raise ConflictError(message, owner=found[0])


def _write_messages(
    transaction: Transaction, arrival: Arrival, fence: dict[str, int]
) -> dict[int, int]:
    """Write the queue under new numbers, in its order; return the new by the old."""
    rows = arrival.rows.get(OUTBOX.name, ())
    if not rows:
        return {}
    first = transaction.take("message", len(rows))
    renamed = [_with(OUTBOX, row, {"message_id": first + n}) for n, row in enumerate(rows)]
    write_rows(transaction.connection, OUTBOX, [_with(OUTBOX, row, fence) for row in renamed])
    place = OUTBOX.place("message_id")
    return {int(row[place] or 0): first + n for n, row in enumerate(rows)}


def _recalled(transaction: Transaction, row: Row, message_ids: dict[int, int]) -> Row:
    """Return a call's row with the number that its message has here; one of its own if it ended."""
    message_id = message_ids.get(int(row[CALLS.place("message_id")] or 0))
    if message_id is None:
        message_id = transaction.take("message", 1)
    transaction.execute(
        "INSERT INTO call_counts VALUES (?, 1) ON CONFLICT (tenant) DO UPDATE SET kept = kept + 1",
        (row[CALLS.place("tenant")],),
    )
    return _with(CALLS, row, {"message_id": message_id})


def _with(table: Table, row: Row, values: dict[str, int]) -> Row:
    return tuple(values.get(name, value) for name, value in zip(table.names, row, strict=True))


def _note(transaction: Transaction, arrival: Arrival, epoch: int) -> None:
    """Write down the pause in which the actor arrives, the package, and the audit record."""
    actor, name = arrival.actor, str(arrival.actor)
    assert arrival.at_ms > 0, "it happened at some time"
    fence = (actor.shard, epoch)
    transaction.execute(
        "INSERT OR REPLACE INTO pauses VALUES (?, ?, ?, ?, ?, ?)",
        (name, actor.tenant, *fence, HELD_BY, arrival.at_ms),
    )
    transaction.execute(
        "INSERT INTO arrivals VALUES (?, ?, ?, ?, ?, ?)",
        (arrival.package, actor.tenant, name, *fence, arrival.at_ms),
    )
    proof = msgspec.msgpack.encode({"package": arrival.package})
    append = AuditAppend("actor.imported", arrival.principal, proof)
    link_audit(transaction, actor, append, epoch=epoch, at_ms=arrival.at_ms)
