"""Actors that leave as packages and arrive from them.

A package is a file on the server's machine, and holds all that an actor knows: every operation is
for whoever may open the store's Unix socket, never for the network.
"""

from __future__ import annotations

from pathlib import Path

from kelpie.core.errors import InvalidFieldError
from kelpie.core.ids import ActorId
from kelpie.server.errors import LocalOnlyError
from kelpie.server.http import Response, json_response
from kelpie.server.operations import Call, Nothing
from kelpie.server.ops.names import actor_name, parse_actor
from kelpie.server.ops.requests import ExportRequest, ImportRequest, NamedActor
from kelpie.server.ops.responses import ActorReleased


async def export_actor(call: Call[Nothing, ExportRequest]) -> Response:
    """Seal an actor and write its package."""
    _require_local(call, "/v1/teleport/export")
    body = call.body
    written = await call.deps.teleport.export(
        parse_actor(call, body.actor, field="body.actor"),
        _path("body.target", body.target),
        kind="checkpoint" if body.checkpoint else "suspend",
        recipients=body.recipients,
        principal=call.principal,
    )
    return json_response(written)


async def import_actor(call: Call[Nothing, ImportRequest]) -> Response:
    """Read a package and write its actor, held."""
    _require_local(call, "/v1/teleport/import")
    body = call.body
    arrived = await call.deps.teleport.receive(
        _path("body.source", body.source),
        workspace=str(_path("body.workspace", body.workspace)) if body.workspace else "",
        tenant=call.tenant,
        principal=call.principal,
    )
    return json_response(arrived)


async def list_exports(call: Call[Nothing, Nothing]) -> Response:
    """Return the exports that were not taken back."""
    _require_local(call, "/v1/teleport/exports")
    return json_response(await call.deps.teleport.exports(call.tenant))


async def abort_export(call: Call[Nothing, NamedActor]) -> Response:
    """Take an export back: the actor goes on here."""
    _require_local(call, "/v1/teleport/abort")
    actor = _actor(call)
    return json_response(await call.deps.teleport.abort(actor, principal=call.principal))


async def confirm_export(call: Call[Nothing, NamedActor]) -> Response:
    """End an export: the actor is gone here."""
    _require_local(call, "/v1/teleport/confirm")
    actor = _actor(call)
    return json_response(await call.deps.teleport.confirm(actor, principal=call.principal))


async def release_actor(call: Call[Nothing, NamedActor]) -> Response:
    """Let an actor that arrived go on."""
    _require_local(call, "/v1/teleport/release")
    actor = _actor(call)
    await call.deps.teleport.release(actor, principal=call.principal)
    return json_response(ActorReleased(actor=actor_name(actor)))


def _actor(call: Call[Nothing, NamedActor]) -> ActorId:
    return parse_actor(call, call.body.actor, field="body.actor")


def _path(field: str, text: str) -> Path:
    path = Path(text)
    if not path.is_absolute() or "\0" in text:
        raise InvalidFieldError(field, "must be an absolute path")
    return path


def _require_local(
    call: Call[Nothing, ExportRequest]
    | Call[Nothing, ImportRequest]
    | Call[Nothing, NamedActor]
    | Call[Nothing, Nothing],
    path: str,
) -> None:
    if not call.local:
        raise LocalOnlyError(path)
