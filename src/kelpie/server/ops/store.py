"""The store's own care, and its audit chains.

A backup writes where the caller says, and a release lets held work go on: both are for whoever may
open the store's Unix socket, never for the network.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import msgspec

from kelpie.core.errors import InvalidFieldError
from kelpie.server.errors import LocalOnlyError
from kelpie.server.http import Response, json_response
from kelpie.server.operations import Call, Nothing
from kelpie.server.ops.requests import AuditQuery, BackupRequest
from kelpie.server.ops.responses import (
    AuditOut,
    AuditPage,
    BackupOut,
    StoreHeld,
)
from kelpie.storage.records import AuditRecord

_decode: Final = msgspec.msgpack.Decoder().decode


async def show_stats(call: Call[Nothing, Nothing]) -> Response:
    """Return counts and sizes."""
    return json_response(await call.deps.store.stats())


async def back_up(call: Call[Nothing, BackupRequest]) -> Response:
    """Write a consistent copy of the whole store beside the running server."""
    _require_local(call, "/v1/store/backup")
    target = Path(call.body.target)
    if not target.is_absolute() or "\0" in call.body.target:
        raise InvalidFieldError("body.target", "must be an absolute path")
    if call.body.recipients is None:
        await call.deps.store.backup(target)
    else:
        await call.deps.teleport.back_up(target, recipients=call.body.recipients)
    return json_response(BackupOut(target=str(target)))


async def compact(call: Call[Nothing, Nothing]) -> Response:
    """Give the space of removed rows back to the file system beside the running server."""
    _require_local(call, "/v1/store/compact")
    return json_response(await call.deps.store.compact())


async def release(call: Call[Nothing, Nothing]) -> Response:
    """End the held state that follows a restore: effects and timers go on."""
    _require_local(call, "/v1/store/release")
    await call.deps.care.release()
    return json_response(StoreHeld(held=call.deps.store.held))


async def list_audit(call: Call[AuditQuery, Nothing]) -> Response:
    """Return audit records by shard and sequence."""
    after = (-1, -1)
    if call.query.after is not None:
        shard, _, sequence = call.query.after.partition(":")
        after = (int(shard), int(sequence))
    shown: list[AuditOut] = []
    more = False
    async for record in call.deps.store.audit(call.tenant):
        if (record.shard, record.sequence) <= after:
            continue
        if len(shown) == call.query.limit:
            more = True
            break
        shown.append(_view(record))
    return json_response(AuditPage(records=shown, next_after=shown[-1].cursor if more else None))


async def verify_audit(call: Call[Nothing, Nothing]) -> Response:
    """Check every audit chain and say what was found, and what the check cannot prove."""
    return json_response(await call.deps.care.verify_audit())


async def check(call: Call[Nothing, Nothing]) -> Response:
    """Read the whole store and its blobs, and report damage."""
    return json_response(await call.deps.care.check())


def _require_local(call: Call[Any, Any], path: str) -> None:
    if not call.local:
        raise LocalOnlyError(path)


def _view(record: AuditRecord) -> AuditOut:
    body: Any = _decode(record.body) if record.body else None
    return AuditOut(
        cursor=f"{record.shard}:{record.sequence}",
        shard=record.shard,
        sequence=record.sequence,
        at_ms=record.at_ms,
        actor=str(record.actor),
        kind=record.kind,
        principal=record.principal,
        body=body,
        previous=record.previous.hex(),
        hash=record.hash.hex(),
    )
