"""Writes of exports: an actor is sealed, opened again, or gone for good.

Each function is a member of a transaction; checks come before writes.

A seal counts as a version of its actor. So a commit that was decided before it is refused as any
other that comes too late, and none is ever checked against the seals: a sealed actor cannot be
loaded, and who has not loaded an actor has no version to commit on.
"""

from __future__ import annotations

import msgspec

from kelpie.core.errors import ActorMovedError, ConflictError, NotFoundError
from kelpie.core.ids import ActorId
from kelpie.storage.decode import parse_actor
from kelpie.storage.moving import Seal, SealState
from kelpie.storage.records import AuditAppend
from kelpie.storage.sqlite.rows import fail_message, link_audit
from kelpie.storage.sqlite.transaction import Transaction

SEALS = "SELECT actor, state, package, destination, message_id, principal, at_ms FROM seals"


def seal_of(row: tuple[str, SealState, str, str, int, str, int]) -> Seal:
    """Return the seal of a row of ``SEALS``."""
    return Seal(parse_actor(row[0]), *row[1:])


def moved_error(seal: Seal) -> ActorMovedError:
    """Return what whoever asks a sealed actor is told."""
    return ActorMovedError(
        str(seal.actor),
        destination=seal.destination,
        package=seal.package,
        is_final=seal.state == "moved",
    )


def _find(transaction: Transaction, actor: ActorId) -> Seal | None:
    row = transaction.execute(f"{SEALS} WHERE actor = ?", (str(actor),)).fetchone()
    return None if row is None else seal_of(row)


def seal_actor(transaction: Transaction, wish: Seal, epoch: int) -> Seal:
    """Seal an actor; one that is sealed already keeps its seal, which is returned.

    Raises:
        FencedError: The shard's epoch has moved.
        NotFoundError: There is no such actor.
        ConflictError: An effect of it is started.
        ActorMovedError: It moved for good.
    """
    actor = wish.actor
    name = str(actor)
    transaction.require_epoch(actor.shard, epoch)
    found = _find(transaction, actor)
    if found is not None:
        if found.state == "moved":
            raise moved_error(found)
        return found
    query = "SELECT incarnation FROM actors WHERE actor = ? AND tombstoned = 0"
    living = transaction.execute(query, (name,)).fetchone()
    if living is None:
        raise NotFoundError("actor", name)
    started = transaction.execute(
        "SELECT effect_id FROM effects WHERE actor = ? AND incarnation = ? AND is_open"
        " AND state = 'started' ORDER BY effect_id LIMIT 1",
        (name, living[0]),
    ).fetchone()
    if started is not None:
        message = f"effect {started[0]} of {name} is running; try again when it has ended"
        raise ConflictError(message, actor=name, effect_id=started[0])
    query = "SELECT coalesce(max(message_id), 0) FROM outbox WHERE receiver = ?"
    (message_id,) = transaction.execute(query, (name,)).fetchone()
    made = wish._replace(state="sealed", message_id=message_id)
    query = "UPDATE actors SET version = version + 1, epoch = ? WHERE actor = ?"
    sealed = transaction.execute(query, (epoch, name)).rowcount
    assert sealed == 1, "an actor has one row"
    transaction.execute(
        "INSERT INTO seals VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            *(name, actor.tenant, actor.shard, epoch, made.state, made.package),
            *(made.destination, message_id, made.principal, made.at_ms),
        ),
    )
    _link(transaction, "actor.sealed", made, epoch)
    return made


def unseal_actor(
    transaction: Transaction, actor: ActorId, epoch: int, principal: str, now_ms: int
) -> Seal:
    """Take an export back, and return the seal that was.

    Raises:
        FencedError: The shard's epoch has moved.
        NotFoundError: The actor is not sealed.
        ActorMovedError: The export was confirmed.
    """
    transaction.require_epoch(actor.shard, epoch)
    found = _require(transaction, actor)
    if found.state == "moved":
        raise moved_error(found)
    removed = transaction.execute("DELETE FROM seals WHERE actor = ?", (str(actor),)).rowcount
    assert removed == 1, "a seal has one row"
    _link(transaction, "actor.unsealed", found._replace(principal=principal, at_ms=now_ms), epoch)
    return found


def confirm_move(
    transaction: Transaction, actor: ActorId, epoch: int, principal: str, now_ms: int
) -> Seal:
    """Remove what the package holds from here, and remember where it went.

    Messages that are not in the package become dead letters.

    Raises:
        FencedError: The shard's epoch has moved.
        NotFoundError: The actor is not sealed.
    """
    name = str(actor)
    transaction.require_epoch(actor.shard, epoch)
    found = _require(transaction, actor)
    if found.state == "moved":
        return found
    transaction.execute("UPDATE seals SET state = 'moved' WHERE actor = ?", (name,))
    moved = found._replace(state="moved")
    query = "SELECT message_id FROM outbox WHERE receiver = ? ORDER BY message_id"
    for (message_id,) in transaction.execute(query, (name,)).fetchall():
        if message_id <= found.message_id:
            transaction.execute("DELETE FROM outbox WHERE message_id = ?", (message_id,))
        else:
            fail_message(transaction, message_id, moved_error(moved).message, None, now_ms)
    query = "SELECT call_id FROM calls WHERE actor = ?"
    calls = transaction.execute(query, (name,)).fetchall()
    transaction.execute("DELETE FROM calls WHERE actor = ?", (name,))
    query = "UPDATE call_counts SET kept = kept - ? WHERE tenant = ?"
    transaction.execute(query, (len(calls), actor.tenant))
    transaction.execute("DELETE FROM state_chunks WHERE actor = ?", (name,))
    transaction.execute("DELETE FROM pauses WHERE actor = ?", (name,))
    gone = transaction.execute(
        "UPDATE actors SET tombstoned = 1, epoch = ?, version = version + 1, checksum = 0,"
        " chunks = 0, state = x'', event_floor = event_sequence, updated_ms = ? WHERE actor = ?",
        (epoch, now_ms, name),
    ).rowcount
    assert gone == 1, "an actor has one row"
    transaction.execute(
        "INSERT INTO purges (tenant, actor, incarnation, shard, epoch, event_floor, at_ms)"
        " SELECT tenant, actor, incarnation, shard, ?, event_sequence, ? FROM actors"
        " WHERE actor = ?",
        (epoch, now_ms, name),
    )
    _link(transaction, "actor.moved", moved._replace(principal=principal, at_ms=now_ms), epoch)
    return moved


def _require(transaction: Transaction, actor: ActorId) -> Seal:
    found = _find(transaction, actor)
    if found is None:
        raise NotFoundError("export", str(actor), hint="nothing of it was exported from here")
    return found


def _link(transaction: Transaction, kind: str, seal: Seal, epoch: int) -> None:
    assert seal.at_ms > 0, "it happened at some time"
    proof = {"package": seal.package, "destination": seal.destination}
    append = AuditAppend(kind, seal.principal, msgspec.msgpack.encode(proof))
    link_audit(transaction, seal.actor, append, epoch=epoch, at_ms=seal.at_ms)
