"""Why a member was refused: looked up after the batch was undone, in the order of the checks.

Only reads, and decides nothing: the functions of the schema alone say what is written. A member
for which nothing is found here may be tried again.
"""

from __future__ import annotations

from typing import Any
from zlib import crc32

from kelpie.core.errors import CorruptionError, KelpieError, NotFoundError
from kelpie.core.ids import ActorId
from kelpie.storage import refusals
from kelpie.storage.postgres.driver import ServerConnection
from kelpie.storage.postgres.plan import Append, Member, Submit
from kelpie.storage.records import Commit, ListPut, StoredCall, Submission

_CALL = (
    "SELECT call_id, actor, method, principal, key, request, message_id, state, created_ms,"
    " ended_ms, expires_ms, checksum, body FROM calls"
    " WHERE actor = $1 AND method = $2 AND key = $3"
)


async def find_refusal(connection: ServerConnection, member: Member) -> KelpieError | None:
    """Return why ``member`` cannot be written now, or None when nothing speaks against it."""
    actor = member.call.actor if isinstance(member, Submit) else member.actor
    shard = member.shard if isinstance(member, Commit) else actor.shard
    fenced = await find_fence(connection, shard, member.epoch)
    if fenced is not None:
        return fenced
    if isinstance(member, Commit):
        return await _refuse_commit(connection, member)
    if isinstance(member, Append):
        return await _refuse_chunks(connection, member)
    return None  # a call is looked up by its key: see `find_call`


async def find_fence(connection: ServerConnection, shard: int, epoch: int) -> KelpieError | None:
    """Return the refusal of an epoch that is not the shard's."""
    current = await connection.fetchval("SELECT epoch FROM shards WHERE shard = $1", shard)
    if current == epoch:
        return None
    return refusals.fenced(shard, epoch, int(current or 0))


async def read_epochs(connection: ServerConnection) -> dict[int, int]:
    """Return the epoch of every shard."""
    rows = await connection.fetch("SELECT shard, epoch FROM shards")
    return {row["shard"]: row["epoch"] for row in rows}


async def _refuse_commit(connection: ServerConnection, commit: Commit) -> KelpieError | None:
    name = str(commit.actor)
    return (
        await _refuse_version(connection, commit, name)
        or await _refuse_cause(connection, commit, name)
        or await _refuse_owner(connection, commit, name)
        or await _refuse_key(connection, commit, name)
    )


async def _refuse_version(
    connection: ServerConnection, commit: Commit, name: str
) -> KelpieError | None:
    row = await connection.fetchrow(
        "SELECT incarnation, version, tombstoned, shard FROM actors WHERE actor = $1", name
    )
    incarnation, version, is_tombstoned, shard = row or (0, 0, False, commit.shard)
    assert shard == commit.shard, "a commit goes to its actor's shard"
    if row is None or is_tombstoned:
        is_expected = commit.expected_version == 0 and commit.incarnation > incarnation
    else:
        is_expected = commit.expected_version == version and commit.incarnation == incarnation
    if is_expected:
        return None
    return refusals.version_conflict(
        commit, incarnation=incarnation, version=version, is_tombstoned=is_tombstoned
    )


async def _refuse_cause(
    connection: ServerConnection, commit: Commit, name: str
) -> KelpieError | None:
    if commit.consumes is not None:
        query = "SELECT 1 FROM outbox WHERE message_id = $1 AND receiver = $2"
        if await connection.fetchval(query, commit.consumes, name) is None:
            return refusals.message_gone(name, commit.consumes)
    if commit.fired is not None:
        query = (
            "SELECT 1 FROM reminders"
            " WHERE actor = $1 AND incarnation = $2 AND name = $3 AND due_ms = $4"
        )
        if await connection.fetchval(query, name, commit.incarnation, *commit.fired) is None:
            return refusals.reminder_gone(name, *commit.fired)
    return None


async def _refuse_owner(
    connection: ServerConnection, commit: Commit, name: str
) -> KelpieError | None:
    tenant = commit.actor.tenant
    for effect in commit.effects:
        query = "SELECT actor, incarnation FROM effects WHERE tenant = $1 AND effect_id = $2"
        row = await connection.fetchrow(query, tenant, effect.effect_id)
        if row is not None and tuple(row) != (name, commit.incarnation):
            return refusals.effect_owned(effect.effect_id, row[0])
    for item in commit.lists:
        # What a deleted actor owned is anybody's, although its removal may still be under way.
        owner = await connection.fetchval(
            "SELECT l.owner FROM lists l JOIN actors a ON a.actor = l.owner"
            " AND a.incarnation = l.incarnation AND NOT a.tombstoned"
            " WHERE l.tenant = $1 AND l.collection = $2 AND l.item_id = $3"
            " AND l.deleted_ms IS NULL AND l.owner <> $4",
            *(tenant, item.collection, item.item_id, name),
        )
        if owner is not None and isinstance(item, ListPut):
            return refusals.item_owned(item.collection, item.item_id, owner)
    return None


async def _refuse_key(
    connection: ServerConnection, commit: Commit, name: str
) -> KelpieError | None:
    reply = commit.reply
    if reply is None:
        return None
    request = await connection.fetchval(
        "SELECT request FROM replies WHERE actor = $1 AND incarnation = $2 AND method = $3"
        " AND key = $4 AND expires_ms > $5",
        *(name, commit.incarnation, reply.method, reply.key, commit.now_ms),
    )
    return None if request is None else refusals.key_reused(name, reply, kept_request=request)


async def _refuse_chunks(connection: ServerConnection, member: Append) -> KelpieError | None:
    name = str(member.actor)
    query = "SELECT incarnation FROM actors WHERE actor = $1 AND NOT tombstoned"
    incarnation = await connection.fetchval(query, name)
    if incarnation is None:
        return NotFoundError("actor", name)
    newest: dict[tuple[str, int], int] = {}
    for chunk in member.chunks:
        attempt = (chunk.effect_id, chunk.attempt)
        if attempt not in newest:
            newest[attempt] = await connection.fetchval(
                "SELECT coalesce(max(sequence), 0) FROM streams"
                " WHERE actor = $1 AND incarnation = $2 AND effect_id = $3 AND attempt = $4",
                *(name, incarnation, *attempt),
            )
        if chunk.sequence <= newest[attempt]:
            return refusals.chunk_behind(chunk, newest[attempt])
        newest[attempt] = chunk.sequence
    return None


async def find_call(connection: ServerConnection, call: Submission) -> StoredCall | None:
    """Return the call that the key of ``call`` stands for, expired or not."""
    if not call.key:
        return None
    row = await connection.fetchrow(_CALL, str(call.actor), call.method, call.key)
    return None if row is None else _stored_call(row)


async def find_oldest_ended(connection: ServerConnection, tenant: str) -> str | None:
    """Return the tenant's ended call that expires first; None when all are pending."""
    found: str | None = await connection.fetchval(
        "SELECT c.call_id FROM call_counts k CROSS JOIN LATERAL (SELECT d.call_id, d.expires_ms"
        " FROM calls d WHERE d.tenant = k.tenant AND d.shard = k.shard AND d.expires_ms > 0"
        " ORDER BY d.expires_ms LIMIT 1) c WHERE k.tenant = $1 ORDER BY c.expires_ms LIMIT 1",
        tenant,
    )
    return found


def _stored_call(row: Any) -> StoredCall:
    if crc32(row["body"]) != row["checksum"]:
        subject = f"call {row['call_id']} of {row['actor']}"
        message = f"{subject} is damaged (checksum differs); run a check, then restore a backup"
        raise CorruptionError(message, subject=subject)
    return StoredCall(
        call_id=row["call_id"],
        actor=ActorId.parse(row["actor"]),
        method=row["method"],
        principal=row["principal"],
        key=row["key"],
        request=row["request"],
        message_id=row["message_id"],
        state=row["state"],
        created_ms=row["created_ms"],
        ended_ms=row["ended_ms"],
        expires_ms=row["expires_ms"],
        body=row["body"],
    )
